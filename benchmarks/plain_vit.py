"""Plain vision transformers: slimc against torch.onnx.export with onnxslim, dense, in turns: latency and compile time.

    python -m benchmarks.plain_vit [CASE ...] [--real dinov2_small.safetensors] [--seconds 30] [--runs 3]

Also how far every precision is from timm's features and tokens, and what TensorRT-RTX makes of the attentions. Weights are
random but for DINOv2-small's, where a file of the real ones is given. Results are kept case by case in
benchmarks/results/plain_vit.json and plain_vit.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.compile import run
from benchmarks.timing import Effort, measure

RESULTS = Path(__file__).parent / "results"
CASES = {
    "DINOv2 S/14, 224 px": ("vit_small_patch14_dinov2", 224),
    "DINOv2 S/14, 518 px": ("vit_small_patch14_dinov2", 518),
    "ViT-B/16, 224 px": ("vit_base_patch16_224", 224),
    "SigLIP 2 B/16, 224 px": ("vit_base_patch16_siglip_224", 224),
    "DINOv3 S/16, 224 px": ("vit_small_patch16_dinov3", 224),
    "EVA-02 S/14, 224 px": ("eva02_small_patch14_224", 224),
}
THREADS = (1, 2)
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        latency: by threads, the median of slimc's time over the other's, round by round, with its quartiles.
        compiling: of whole processes, the median ratio of slimc's time to the other's, which verifies nothing: as slimc is
            used, and with --no-verify; and the medians of the three in seconds.
        errors: by precision and output, the largest difference as a share of the spread, and the least cosine.
        fused: attentions that TensorRT-RTX fuses for SM89 in float16, of how many.
        real: whether the weights are trained ones.
    """

    case: str
    latency: dict[str, tuple[float, float, float]]
    compiling: dict[str, float]
    errors: dict[str, dict[str, tuple[float, float]]]
    fused: tuple[int, int]
    real: bool


def weights_of(name: str, real: Path | None, folder: Path) -> tuple[Path, bool]:
    """A file of weights for timm's network `name`, and whether they are trained ones."""
    if real is not None and "dinov2" in name:
        return real, True
    path = folder / f"{name}.safetensors"
    if not path.exists():
        import timm
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False)
        for parameter in network.parameters():
            if parameter.ndim == 1 or parameter.std() < 1e-3:  # biases, norms and heads that start at a constant
                torch.nn.init.normal_(parameter, float(parameter.mean()), 0.02)
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        save_file(state, path, metadata={"architecture": name})
    return path, False


def slimc(*arguments: str) -> dict[str, Any]:
    """What a command of slimc's prints as JSON."""
    done = subprocess.run([sys.executable, "-m", "slimc", *arguments, "--json"], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure_case(case: str, real: Path | None, seconds: float, runs: int, *, only_compile: bool) -> dict[str, Any]:
    """The fields of a `Row`; with `only_compile` only what was measured of that."""
    name, size = CASES[case]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        weights, trained = weights_of(name, real, folder)
        sized = ["--img-size", str(size), str(size)]
        usual = folder / "usual.onnx"
        theirs = [sys.executable, "-m", "benchmarks.timm_export", str(weights), name, str(usual), *sized, "--onnxslim"]
        compiling = time_compiling(ours(weights, sized, folder / "slimc1.onnx", 1), theirs, runs)
        if only_compile:
            return {"compiling": compiling}
        latency = {}
        for threads in THREADS:
            model = folder / f"slimc{threads}.onnx"
            run(ours(weights, sized, model, threads))
            times = measure([usual, model], "onnxruntime", threads, Effort(seconds, 9))[0]
            low, middle, high = np.quantile(times[1] / times[0], (0.25, 0.5, 0.75))
            latency[str(threads)] = (float(middle), float(low), float(high))
        row = Row(
            case=case,
            latency=latency,
            compiling=compiling,
            errors={precision: errors_of(weights, sized, precision, folder) for precision in PRECISIONS},
            fused=fused(weights, sized, folder),
            real=trained,
        )
        return asdict(row)


def ours(weights: Path, sized: Iterable[str], model: Path, threads: int) -> list[str]:
    """The command that writes `model` for a CPU with so many threads."""
    aim = ["--target", "cpu", "--threads", str(threads)]
    return [sys.executable, "-m", "slimc", "export", str(weights), *sized, "-o", str(model), *aim, "--json"]


def time_compiling(command: list[str], theirs: list[str], runs: int) -> dict[str, float]:
    """How long whole processes take, in turns: see `Row.compiling`."""
    rounds = [(run(command), run([*command, "--no-verify"]), run(theirs)) for _ in range(runs)]
    verified, unverified, other = ([each[i].seconds for each in rounds] for i in range(3))
    return {
        "ratio": median(a / b for a, b in zip(verified, other, strict=True)),
        "ratio_unverified": median(a / b for a, b in zip(unverified, other, strict=True)),
        "seconds": median(verified),
        "seconds_unverified": median(unverified),
        "seconds_other": median(other),
    }


def errors_of(weights: Path, sized: Iterable[str], precision: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Features and tokens against timm's, in ONNX Runtime, half precision rounded as a GPU rounds it."""
    output = str(folder / f"{precision}.onnx")
    outputs = ["--outputs", "features,tokens", "--precision", precision]
    report = slimc("export", str(weights), *sized, "-o", output, *outputs)
    outputs = report["verify"]["outputs"]
    return {found["output"]: (found["max_abs_over_spread"], found["cosine"]) for found in outputs}


def fused(weights: Path, sized: Iterable[str], folder: Path) -> tuple[int, int]:
    """Attentions that TensorRT-RTX fuses for SM89 in float16, and how many there are."""
    engine = str(folder / "model.engine")
    found = slimc("build-engine", str(weights), *sized, "-o", engine, "--fp16", "--target", "sm89")
    return sum(block["fused"] for block in found["blocks"]), sum(block["attentions"] for block in found["blocks"])


def write(rows: list[dict[str, Any]]) -> None:
    """Keep the results."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "plain_vit.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "| network | latency, 1 thread | 2 threads | compile time | not verified | fp32 | fp16 | bf16 | fused on SM89 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        worst = {
            p: (max(e[0] for e in row["errors"][p].values()), min(e[1] for e in row["errors"][p].values()))
            for p in PRECISIONS
        }
        cells = [
            row["case"] + (" (real weights)" if row["real"] else ""),
            *(f"{row['latency'][str(t)][0]:.3f}" for t in THREADS),
            f"{row['compiling']['ratio']:.2f}",
            f"{row['compiling']['ratio_unverified']:.2f}",
            f"{worst['fp32'][0]:.1e}",
            *(f"cosine {worst[p][1]:.5f}" for p in PRECISIONS[1:]),
            f"{row['fused'][0]} of {row['fused'][1]}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    (RESULTS / "plain_vit.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure the cases that are asked for, and keep the others' results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--real", type=Path, help="DINOv2-small's trained weights under timm's names")
    parser.add_argument("--seconds", type=float, default=30, help="of timing, a case and number of threads")
    parser.add_argument("--runs", type=int, default=3, help="of the processes that compile")
    parser.add_argument("--only-compile", action="store_true", help="measure that again, and keep the rest")
    options = parser.parse_args()
    kept = RESULTS / "plain_vit.json"
    found = {row["case"]: row for row in json.loads(kept.read_text())} if kept.exists() else {}
    for case in options.cases or CASES:
        measured = measure_case(case, options.real, options.seconds, options.runs, only_compile=options.only_compile)
        found[case] = {**found.get(case, {}), **measured}
        write([found[name] for name in CASES if name in found])
        print(json.dumps(found[case]))


if __name__ == "__main__":
    main()
