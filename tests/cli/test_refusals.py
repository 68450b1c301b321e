"""The command line ignores nothing: an option that does not apply is one line, exit code 2, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.artefacts import VECTORS
from tests.checkpoints import small_checkpoint
from tests.command_line import slimc, snapshot

# Names are of files in the `workplace`; DEIT is a checkpoint of DynamicViT, GATES and HEADS are of AdaViT, with and without
# decisions about tokens.
NAMES = {"DEIT": VECTORS["deit"], "GATES": VECTORS["tokens"], "HEADS": VECTORS["gates"]}
DEIT = ("DEIT", "--num-heads", "4", "--pruning-loc", "3,6,9")
OUT = ("-o", "new.onnx")
ENGINE = ("-o", "new.engine")

COMPILED = "says how to compile a checkpoint; m.onnx is compiled already"
LOADED = "says how to load a checkpoint; give it with --against"
EXPORTED = "m.onnx is compiled already; its options are those it was exported with"
NO_PLOT = "says how a picture looks; give --plot OUT.png too"
ONE_PRECISION = "give one of them, or neither for float32"
NOT_CPU = "are those of a CPU"
NO_OPERATOR = "leaves no attention operator, so every head is computed alone"

EXPORT = [
    (("v.pth", "--threads", "2"), f"--threads: {NOT_CPU}; generic is compiled the same for any"),
    (("v.pth", "--target", "sm80", "--threads", "2"), f"--threads: {NOT_CPU}; sm80 is"),
    (("v.pth", "--target", "cpu", "--threads", "0"), "--threads: 0 threads cannot run anything"),
    (("v.pth", "--target", "cpu", "--threads", "-1"), "--threads: -1 threads cannot run anything"),
    (("v.pth", "--target", "cpu", "--threads", "2", "--tuning", "one.json"), "--threads: 2, but one.json was"),
    (("v.pth", "--target", "cpu", "--threads", "2", "--opset", "17"), f"--threads: --opset 17 {NO_OPERATOR}"),
    (("v.pth", "--target", "cpu", "--threads", "2", "--fp16"), f"--threads: --precision fp16 {NO_OPERATOR}"),
    (("v.pth", "--target", "cpu", "--tuning", "one.json", "--bf16"), f"--tuning: --precision bf16 {NO_OPERATOR}"),
    (("v.pth", "--tuning", "one.json"), "--tuning: its costs are those of CPUs; generic has none"),
    (("v.pth", "--target", "sm89", "--tuning", "one.json"), "--tuning: its costs are those of CPUs; sm89 has none"),
    (("v.pth", "--target", "cpu", "--tuning", "m.reference.npz"), "--tuning: m.reference.npz is no file that slimc tune"),
    (("v.pth", "--dense", "--check-passes"), "--check-passes: no pass runs"),
    (("v.pth", "--masked", "--check-passes"), "--check-passes: no pass runs"),
    (("v.pth", "--dense", "--masked"), "--dense and --masked: give one of them"),
    (("v.pth", "--dense", "--budget", "0.5"), "--budget: --dense keeps everything; leave one of them out"),
    (("v.pth", "--budget-patch", "0.5", "--dense"), "--budget-patch: --dense keeps everything; leave one of them out"),
    ((*DEIT, "--dense", "--keep-ratios", "0.7,0.5,0.3"), "--keep-ratios: --dense keeps everything; leave one of them out"),
    (("v.pth", "--no-verify", "--data", "images"), "--data: its images are compared on, which --no-verify leaves out"),
    (("v.pth", "--adaptive", "masked"), "--adaptive: ViT-Slim checkpoints decide nothing"),
    ((*DEIT, "--adaptive", "conditional"), "--adaptive: DynamicViT checkpoints decide nothing"),
    (("GATES", "--capacity-quantile", "0.5"), "--capacity-quantile: needs --adaptive capacity"),
    (("GATES", "--adaptive", "conditional", "--capacity-quantile", "0.5"), "--capacity-quantile: needs --adaptive capacity"),
    (("GATES", "--adaptive", "capacity"), "--adaptive capacity: needs calibration images"),
    (("GATES", "--adaptive", "capacity", "--data", "images", "--capacity-quantile", "0"), "--capacity-quantile: 0.0 is not"),
    (("GATES", "--adaptive", "capacity", "--data", "images", "--capacity-quantile", "nan"), "--capacity-quantile: nan is"),
    (("GATES", "--adaptive", "masked", "--dense"), "--adaptive: compiles the slim network"),
    (("GATES", "--adaptive", "conditional", "--batch-size", "2"), "--adaptive conditional: needs --batch-size 1"),
    (("GATES", "--adaptive", "fast"), "--adaptive: 'fast' is unknown"),
    (("GATES", "--ada-head", "v2"), "--ada-head: v2 contradicts the training arguments"),
    (("HEADS", "--no-ada-token-with-mlp"), "has no token decisions"),
    (("v.pth", "--precision", "fp16", "--bf16"), f"--bf16: contradicts --precision; {ONE_PRECISION}"),
    (("v.pth", "--precision", "fp16", "--fp16"), f"--fp16: contradicts --precision; {ONE_PRECISION}"),
    (("v.pth", "--fp16", "--bf16"), f"--bf16: contradicts --fp16; {ONE_PRECISION}"),
    (("v.pth", "--precision", "fp8"), "--precision: 'fp8' is unknown"),
    (("v.pth", "--img-size", "5", "5"), "--img-size: 5 5 does not give the 9 patches"),
    (("v.pth", "--num-heads", "0"), "--num-heads: 0 contradicts the checkpoint"),
    (("v.pth", "--ema"), "--ema: v.pth has no averaged weights"),
    ((
        "v.pth", "--budget", "0.5", "--budget-attn", "0.5", "--budget-mlp", "0.5", "--budget-patch", "0.5",
    ), "--budget: --budget-attn, "),
    (("v.pth", "--keep-rate", "0.7"), "--keep-rate: ViT-Slim checkpoints have no such setting"),
    (("v.pth", "--ada-head", "v2"), "--ada-head: ViT-Slim checkpoints have no such setting"),
    ((*DEIT, "--budget", "0.7"), "--budget: DynamicViT checkpoints have no such setting"),
    ((*DEIT, "--no-ada-token-with-mlp"), "--ada-token-with-mlp: DynamicViT checkpoints have no such setting"),
    ((*DEIT, "--keep-rate", "0.7", "--keep-ratios", "0.7,0.5,0.3"), "--keep-ratios: contradicts --keep-rate"),
    ((*DEIT, "--skip-lam", "2"), "--skip-lam: "),
    (("GATES", "--qk-scale", "0.1"), "--qk-scale: AdaViT checkpoints have no such setting"),
    (("GATES", "--pruning-loc", "3"), "--pruning-loc: AdaViT checkpoints have no such setting"),
    (("v.pth", "extra.pth"), "(see --help)"),
]  # fmt: skip

BENCH = [
    (("m.onnx", "--fp16"), f"--precision fp16: {COMPILED}"),
    (("m.onnx", "--bf16"), f"--precision bf16: {COMPILED}"),
    (("m.onnx", "--precision", "fp16"), f"--precision fp16: {COMPILED}"),
    (("m.onnx", "--precision", "fp32"), f"--precision fp32: {COMPILED}"),
    (("m.onnx", "--target", "cpu"), f"--target: {COMPILED}"),
    (("m.onnx", "--tuning", "one.json"), f"--tuning: {COMPILED}"),
    (("m.onnx", "--batch-size", "2"), f"--batch-size: {COMPILED}"),
    (("m.onnx", "--budget", "0.5"), f"--budget: {COMPILED}"),
    (("m.onnx", "--num-heads", "3"), f"--num-heads: {COMPILED}"),
    (("m.onnx", "--ema"), f"--ema: {COMPILED}"),
    (("m.onnx", "--no-ema"), f"--no-ema: {COMPILED}"),
    (("m.onnx", "--no-ada-token-with-mlp"), f"--no-ada-token-with-mlp: {COMPILED}"),
    (("m.onnx", "v.pth", "--batch-size", "2"), "--batch-size: the shapes of m.onnx are static"),
    (("m.onnx", "--backend", "onnxruntime-cuda", "--threads", "2"), "--threads: are those of a CPU, and nothing here runs"),
    (("v.pth", "--backend", "tensorrt-rtx", "--threads", "2"), "--threads: are those of a CPU, and nothing here runs"),
    (("m.onnx", "--threads", "0"), "--threads: 0 threads cannot run anything"),
    (("m.onnx", "--backend", "tensorrt"), "--backend: tensorrt runs engines"),
    (("m.onnx", "--backend", "onnxruntime", "--backend", "tensorrt-rtx"), "--backend: tensorrt-rtx runs engines"),
    (("m.onnx", "--backend", "fast"), "--backend: 'fast' is unknown"),
    (("m.onnx", "--csv", "x.txt"), "--csv: x.txt ends in .txt; expected .csv"),
    (("m.onnx", "--csv", "x"), "--csv: x ends in no suffix; expected .csv"),
    (("m.onnx", "--plot", "x.txt"), "--plot: x.txt has the suffix '.txt'"),
    (("m.onnx", "--plot-size", "5", "5"), f"--plot-size: {NO_PLOT}"),
    (("m.onnx", "--plot-dpi", "100"), f"--plot-dpi: {NO_PLOT}"),
    (("m.onnx", "--plot", "x.svg", "--plot-dpi", "100"), "--plot-dpi: x.svg is drawn in lines"),
    *((("m.onnx", f"--seconds={seconds}"), "--seconds: ") for seconds in ("0", "-1", "nan", "inf", "-inf")),
    (("v.pth", "--target", "generic", "--tuning", "one.json"), "--tuning: its costs are those of CPUs"),
    (("v.pth", "--fp16", "--tuning", "one.json"), f"--tuning: --precision fp16 {NO_OPERATOR}"),
    (("v.pth", "--threads", "2", "--tuning", "one.json"), "--threads: 2, but one.json was measured for 1"),
    (("v.pth", "--batch-size", "0"), "--batch-size: 0 images make no batch"),
    (("v.pth", "--keep-rate", "0.5"), "--keep-rate: ViT-Slim checkpoints have no such setting"),
    (("v.pth", "--fp16", "--bf16"), f"--bf16: contradicts --fp16; {ONE_PRECISION}"),
]  # fmt: skip

INSPECT = [
    *(((("m.onnx", *given)), f"{given[0]}: {EXPORTED}") for given in (
        ("--budget", "0.5"), ("--ema",), ("--no-ema",), ("--num-heads", "3"), ("--target", "cpu"), ("--threads", "1"),
        ("--threads", "0"), ("--tuning", "one.json"),
    )),
    (("v.pth", "--threads", "2"), f"--threads: {NOT_CPU}; generic is"),
    (("v.pth", "--tuning", "one.json"), "--tuning: its costs are those of CPUs"),
    (("v.pth", "--plot-panel", "macs"), f"--plot-panel: {NO_PLOT}"),
    (("v.pth", "--plot-size", "5", "5"), f"--plot-size: {NO_PLOT}"),
    (("v.pth", "--plot-dpi", "100"), f"--plot-dpi: {NO_PLOT}"),
    (("v.pth", "--plot-dpi", "0"), f"--plot-dpi: {NO_PLOT}"),
    (("v.pth", "--plot", "p.png", "--plot-dpi", "0"), "--plot-dpi: 0 dots an inch cannot be drawn"),
    (("v.pth", "--plot", "p.pdf", "--plot-dpi", "300"), "--plot-dpi: p.pdf is drawn in lines"),
    (("v.pth", "--plot", "p.png", "--plot-size", "nan", "5"), "--plot-size: nan inches is no side"),
    (("v.pth", "--plot", "p.png", "--plot-panel", "colours"), "--plot-panel: 'colours' is no panel; expected heads, ffn"),
    (("GATES", "--data", "images", "--plot", "p.png", "--plot-panel", "tokens"), "--plot-panel: 'tokens' is no panel"),
    (("v.pth", "--plot", "p.txt"), "--plot: p.txt has the suffix '.txt'"),
    (("v.pth", "--image", "images/0.png"), "--image: is drawn; give --plot OUT.png too"),
    (("v.pth", "--image", "images/0.png", "--plot", "p.png"), "--image: ViT-Slim networks select no patches"),
    (("m.onnx", "--image", "images/0.png", "--plot", "p.png"), "--image: m.onnx selects no patches"),
    ((*DEIT, "--image", "images/0.png", "--plot", "p.png", "--plot-panel", "macs"), "--image: is drawn in the panel"),
    (("GATES", "--data", "images", "--target", "cpu"), "is run on images and not compiled, with --data"),
    (("GATES", "--data", "images", "--threads", "2"), "is run on images and not compiled, with --data"),
    (("GATES", "--data", "images", "--tuning", "one.json"), "is run on images and not compiled, with --data"),
    (("GATES", "--data", "images", "--image", "images/0.png", "--plot", "p.png"), "is run on images and not compiled"),
    (("v.pth", "--data", "images"), "--data: ViT-Slim networks decide nothing"),
    (("m.onnx", "--data", "images"), "--data: m.onnx is a model"),
    (("v.pth", "--pruning-loc", "1"), "--pruning-loc: ViT-Slim checkpoints have no such setting"),
]  # fmt: skip

VERIFY = [
    (("m.onnx", "--budget", "0.5"), f"--budget: {LOADED}"),
    (("m.onnx", "--ema"), f"--ema: {LOADED}"),
    (("m.onnx", "--no-ema"), f"--no-ema: {LOADED}"),
    (("m.onnx", "--against", "m.reference.npz", "--ema"), f"--ema: {LOADED}"),
    (("m.onnx", "--against", "m.onnx", "--budget", "0.5"), f"--budget: {LOADED}"),
    (("m.onnx", "--against", "v.pth", "--keep-rate", "0.5"), "--keep-rate: ViT-Slim checkpoints have no such setting"),
    (("m.onnx", "--data", "images"), "--data: needs --against CKPT or ONNX"),
    (("m.onnx", "--against", "m.reference.npz", "--data", "images"), "--data: needs --against CKPT or ONNX"),
    (("m.onnx", "--against", "v.pth", "--data", "nowhere"), "--data: nowhere is not a directory"),
    (("m.onnx", "--backend", "onnxruntime-cuda", "--threads", "2"), "--threads: are those of a CPU"),
    (("m.onnx", "--threads", "0"), "--threads: 0 threads cannot run anything"),
    (("m.onnx", "--backend", "tensorrt"), "--backend: tensorrt runs engines"),
    (("m.onnx", "--backend", "fast"), "--backend: 'fast' is unknown"),
    *((("m.onnx", f"--tolerance={tolerance}"), "--tolerance: ") for tolerance in ("-1", "nan", "inf")),
]  # fmt: skip

BUILD_ENGINE = [
    (("m.onnx", "-o", "x.onnx"), "--output: x.onnx ends in .onnx; expected .engine"),
    (("v.pth", "-o", "x"), "--output: x ends in no suffix; expected .engine"),
    (("m.onnx", *ENGINE, "--batch-size", "2"), f"--batch-size: {COMPILED}"),
    (("m.onnx", *ENGINE, "--budget", "0.5"), f"--budget: {COMPILED}"),
    (("m.onnx", *ENGINE, "--ema"), f"--ema: {COMPILED}"),
    (("m.onnx", *ENGINE, "--no-ema"), f"--no-ema: {COMPILED}"),
    (("m.onnx", *ENGINE, "--fp16", "--bf16"), f"--bf16: contradicts --fp16; {ONE_PRECISION}"),
    (("m.onnx", *ENGINE, "--precision", "fp16", "--bf16"), f"--bf16: contradicts --precision; {ONE_PRECISION}"),
    (("m.onnx", *ENGINE, "--backend", "onnxruntime"), "--backend: 'onnxruntime' builds no engines"),
    (("m.onnx", *ENGINE, "--target", "cpu"), "--target: 'cpu' is no GPU"),
    (("v.pth", *ENGINE, "--target", "generic"), "--target: 'generic' is no GPU"),
]  # fmt: skip

# These get as far as the library.
BUILT = [
    (("m.onnx", *ENGINE, "--target", "sm70"), "does not build for sm70"),
    (("v.pth", *ENGINE, "--batch-size", "0"), "--batch-size: 0 images make no batch"),
    (("v.pth", *ENGINE, "--keep-rate", "0.5"), "--keep-rate: ViT-Slim checkpoints have no such setting"),
    (("half.onnx", *ENGINE, "--fp16"), "--precision fp16: half.onnx is fp16 already"),
    (("half.onnx", *ENGINE, "--precision", "fp32"), "--precision fp32: half.onnx is fp16 already"),
    (("cpu.onnx", *ENGINE), "cpu.onnx: was exported for CPUs"),
]  # fmt: skip

TUNE = [
    (("-o", "x.txt"), "--output: x.txt ends in .txt; expected .json"),
    (("-o", "x"), "--output: x ends in no suffix; expected .json"),
    (("--threads", "0"), "--threads: 0 threads cannot run anything"),
    (("--backend", "openvino-bf16"), "--backend: 'openvino-bf16' is no CPU back end"),
]  # fmt: skip

OTHERS = [
    ("doctor", ("--threads", "2"), "(see --help)"),
    ("doctor", ("m.onnx",), "(see --help)"),
    ("demo", ("--budget", "0.5"), "(see --help)"),
    ("demo", ("--output", "v.pth"), "v.pth: cannot be made a directory"),
    ("export", ("v.pth", "-o", "out.txt"), "--output: out.txt ends in .txt; expected .onnx"),
    ("export", ("v.pth", "-o", "out"), "--output: out ends in no suffix; expected .onnx"),
    ("export", ("v.pth", "-o", "v.pth"), "--output: v.pth is the checkpoint itself"),
]  # fmt: skip

CASES = [
    *(("export", (*given, *OUT), words) for given, words in EXPORT),
    *(("bench", given, words) for given, words in BENCH),
    *(("inspect", given, words) for given, words in INSPECT),
    *(("verify", given, words) for given, words in VERIFY),
    *(("build-engine", given, words) for given, words in BUILD_ENGINE),
    *(("tune", given, words) for given, words in TUNE),
    *OTHERS,
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, models of it in float32, in float16 and for CPUs, a tuning for one thread, a folder of images."""
    folder = tmp_path_factory.mktemp("workplace")
    checkpoint = small_checkpoint(folder / "v.pth")
    for name, more in (("m", ()), ("half", ("--fp16",)), ("cpu", ("--target", "cpu"))):
        assert slimc("export", checkpoint, "-o", folder / f"{name}.onnx", *more, "-q").code == 0
    shutil.copyfile(Path(__file__).parents[2] / "slimc/targets/data/tuning-1-threads.json", folder / "one.json")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "0.png")
    return folder


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workplace as the current directory, which is as it was afterwards."""
    before = snapshot(workplace)
    monkeypatch.chdir(workplace)
    yield workplace
    assert snapshot(workplace) == before


def refuse(command: str, given: tuple[str, ...], words: str) -> None:
    outcome = slimc(command, *(NAMES.get(text, text) for text in given))
    assert (outcome.code, outcome.stdout) == (2, ""), outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert words in outcome.stderr


@pytest.mark.parametrize(
    ("command", "given", "words"), CASES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else None
)
def test_what_does_not_apply_is_refused_in_one_line(here, command, given, words):
    refuse(command, given, words)


@pytest.mark.parametrize(
    ("given", "words"), BUILT, ids=lambda value: " ".join(value) if isinstance(value, tuple) else None
)
def test_what_does_not_apply_to_an_engine_is_refused_in_one_line(here, given, words):
    pytest.importorskip("tensorrt_rtx")
    refuse("build-engine", (*given, "--backend", "tensorrt-rtx"), words)


@pytest.fixture(scope="module")
def engine(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path_factory.mktemp("engine") / "e.engine"
    built = slimc("build-engine", workplace / "m.onnx", "--backend", "tensorrt-rtx", "--no-verify", "-o", path, "-q")
    assert built.code == 0, built.stderr
    return path


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("bench", ("--threads", "2"), "--threads: are those of a CPU, and nothing here runs on one"),
        ("bench", ("--fp16",), "--precision fp16: says how to compile a checkpoint"),
        ("verify", ("--threads", "2"), "--threads: are those of a CPU"),
        ("verify", ("--backend", "openvino"), "is an engine of tensorrt-rtx; openvino cannot run it"),
        ("verify", ("--budget", "0.5"), f"--budget: {LOADED}"),
        ("verify", ("--tolerance", "-1"), "--tolerance: "),
    ],
)
def test_engines_take_no_threads_and_nothing_else_that_is_not_theirs(here, engine, command, given, words):
    refuse(command, (str(engine), *given), words)


def test_threads_reach_only_what_runs_on_a_cpu(workplace):
    from slimc.backends.choose import runs_on_cpu

    cpu = [name for name in ("auto", "onnxruntime", "openvino", "openvino-bf16") if runs_on_cpu(Path("m.onnx"), name)]
    gpu = [
        name for name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt") if runs_on_cpu(Path("m.onnx"), name)
    ]
    assert (len(cpu), gpu, runs_on_cpu(Path("m.engine"), "auto")) == (4, [], False)


def test_what_was_said_to_a_loaded_network_is_refused_in_python_too(workplace, tmp_path):
    import slimc as library

    network = library.load(workplace / "v.pth")
    for function, output in ((library.export, "m.onnx"), (library.build_engine, "m.engine")):
        with pytest.raises(library.OptionError, match="budget: say how to load a checkpoint"):
            function(network, tmp_path / output, budget=0.5)
    assert list(tmp_path.iterdir()) == []
