"""What is compiled from a slim file is, byte for byte, what is compiled from the checkpoint."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

import slimc
from slimc import ir
from slimc.compiler import export_slim
from slimc.compiler.adaptive import Adaptive, find_adaptive
from slimc.compiler.compile import compile_network, make_slim
from slimc.compiler.export import emit_onnx, export_network
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.compiler.outputs import with_outputs
from slimc.compiler.pipeline import compile_model, lasting_passes, passes_for
from slimc.emit.file import write_model
from slimc.errors import CheckpointError, InternalError, MismatchError, OptionError
from slimc.evaluate.gate_decisions import Exactness
from slimc.evaluate.kept_patches import Agreement
from slimc.models import slim_file
from slimc.models.system import Network
from slimc.targets.target import find_target
from tests import gated, selecting, vectors
from tests.command_line import snapshot
from tests.files.test_slim import assert_same_node
from tests.models.test_folders import network as timm_network
from tests.models.timm_networks import masks_of
from tests.networks import masked_networks
from tests.plain_networks import plain_networks

OPTIONS: dict[str, dict[str, Any]] = {vector.name: vector.options for vector in selecting.VECTORS}
VECTORS = sorted(path.name for path in vectors.DATA.iterdir() if (path / "checkpoint.pth").is_file())
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@cache
def original(name: str) -> Network:
    return load_network(vectors.DATA / name / "checkpoint.pth", OPTIONS.get(name, {}))


@cache
def masked(name: str) -> Network:
    """A network of timm's with about a third of everything masked."""
    network = slimc.load(timm_network(name), **HALF)
    return slimc.mask(network, masks_of(network.dense, np.random.default_rng(0)))


def written(network: Network, directory: Path, options: CompileOptions | None = None, **how: Any) -> Path:
    """A slim file of `network`."""
    return export_network(network, directory / "small.safetensors", options or CompileOptions(), **how).onnx


def onnx_of(network: Network, directory: Path, options: CompileOptions) -> bytes:
    """The ONNX file that `network` becomes."""
    path = directory / "model.onnx"
    write_model(emit_onnx(compile_network(network, options)), path)
    return path.read_bytes()


def assert_same_models(first: Network, second: Network, directory: Path, *outputs: tuple[str, ...] | None) -> None:
    for target in ("generic", "cpu", "sm89"):
        for batch_size in (1, 3):
            for names in outputs or (None,):
                options = CompileOptions(target=find_target(target), batch_size=batch_size, outputs=names)
                same = onnx_of(first, directory, options) == onnx_of(second, directory, options)
                assert same, (target, batch_size, names)


class TestSameModels:
    def test_there_is_a_vector_of_every_system(self):
        assert {original(name).system.name for name in VECTORS} == {"vit_slim", "dynamic_vit", "ada_vit"}

    @pytest.mark.parametrize("name", VECTORS)
    def test_every_vector(self, name, tmp_path):
        network = original(name)
        report = export_network(network, tmp_path / "small.safetensors", CompileOptions(), check_passes=True)
        assert report.comparison is not None
        assert report.comparison.passed
        assert report.comparison.inputs == 4
        chooses = {"dynamic_vit": Agreement, "ada_vit": Exactness}
        assert isinstance(report.agreement, chooses.get(network.system.name, type(None)))
        assert set(snapshot(tmp_path)) == {"small.safetensors"}
        assert_same_models(network, load_network(report.onnx), tmp_path)

    @pytest.mark.parametrize(
        ("opset", "precision"), [(17, "fp32"), (23, "fp32"), (None, "fp16"), (None, "bf16")], ids=str
    )
    def test_opsets_and_precisions(self, opset, precision, tmp_path):
        network = original("vitslim-e-patch-cls")
        small = load_network(written(network, tmp_path, verify=False))
        options = CompileOptions(opset=opset, precision=precision, target=find_target("cpu"))
        models = []
        for each in (network, small):
            path = tmp_path / "model.onnx"
            export_network(each, path, options, verify=False)
            models.append(path.read_bytes())
        assert models[0] == models[1]

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_base_patch16_siglip_224"])
    def test_networks_of_timms_and_their_outputs(self, name, tmp_path):
        network = masked(name)
        small = load_network(written(network, tmp_path))
        features = ("features", "tokens:nchw", "blocks.0")
        assert_same_models(network, small, tmp_path, None, features, ("blocks.0",))

    def test_outputs_that_were_asked_for_are_those_that_there_are(self, tmp_path):
        network = masked("vit_tiny_patch16_224")
        small = load_network(written(network, tmp_path, CompileOptions(outputs=("blocks.0", "blocks.0:nchw"))))
        assert len(small.masked.blocks) == 1
        chosen = with_outputs(network, ("blocks.0", "blocks.0:nchw"))
        assert_same_models(chosen, small, tmp_path, None, ("blocks.0",))
        with pytest.raises(OptionError, match=r"this network has no logits; expected .*blocks\.0 to blocks\.0"):
            compile_network(small, CompileOptions(outputs=("logits",)))

    def test_a_slim_file_of_a_slim_file_is_the_same_file(self, tmp_path):
        for name in ("vitslim-a-channel-0.7", "dynamicvit-a-deit-0.7", "adavit-b-head-layer-tokenmlp"):
            path = written(original(name), tmp_path)
            again = export_network(load_network(path), tmp_path / "again.safetensors", CompileOptions())
            assert path.read_bytes() == again.onnx.read_bytes()

    @pytest.mark.parametrize("seed", [0, 3])
    @pytest.mark.parametrize("effect", ["plain", "v2", "attn"])
    def test_gates_of_every_kind(self, effect, seed, tmp_path):
        network = gated.random_adaptive(seed, head_effect=effect)
        small = load_network(written(network, tmp_path))
        for way in (Adaptive(), Adaptive(conditional=True)):
            options = CompileOptions(adaptive=way)
            assert onnx_of(network, tmp_path, options) == onnx_of(small, tmp_path, options)

    @given(searched=selecting.searched_models())
    def test_selections_of_every_kind(self, searched, tmp_path_factory):
        directory = tmp_path_factory.mktemp("selecting")
        small = load_network(written(searched, directory, verify=False))
        assert onnx_of(searched, directory, CompileOptions()) == onnx_of(small, directory, CompileOptions())


class TestLastingPasses:
    @given(plain_networks(masks="binary"))
    def test_they_leave_nothing_for_themselves_to_do(self, network):
        _assert_settled(network)

    @given(masked_networks())
    def test_nor_with_masked_tokens(self, network):
        _assert_settled(network)

    @given(plain_networks(masks="binary"))
    def test_what_follows_them_finds_what_it_would_have_found(self, network):
        network = ir.map_arrays(network, lambda array: array.astype(np.float32))
        try:
            slim = compile_model(network, lasting_passes())
        except slimc.SlimcError:  # masks in front of norms, which no front end makes
            return
        for target in ("generic", "cpu", "sm89"):
            passes = passes_for(find_target(target))
            assert_same_node(compile_model(slim, passes), compile_model(network, passes))


def _assert_settled(network: ir.Model) -> None:
    try:
        slim = compile_model(network, lasting_passes())
    except slimc.SlimcError:
        return
    assert_same_node(compile_model(slim, lasting_passes()), slim)


@pytest.fixture(scope="module")
def deciding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AdaViT checkpoint with a folder of pictures."""
    directory: Path = tmp_path_factory.mktemp("deciding")
    content = {
        "state_dict": dict(gated.random_checkpoint(seed=4).state),
        "args": argparse.Namespace(**gated.arguments(gated.SMALL)),
    }
    torch.save(content, directory / "ada.pth.tar")
    (directory / "pictures").mkdir()
    for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)):
        Image.fromarray(picture).save(directory / "pictures" / f"{i:02}.png")
    return directory


class TestLimits:
    def options(self, deciding: Path, way: str, quantile: float = 1.0) -> CompileOptions:
        return CompileOptions(adaptive=find_adaptive(way, quantile), data=deciding / "pictures")

    @pytest.mark.parametrize(("way", "later"), [("capacity", "masked"), ("conditional+capacity", "conditional")])
    def test_limits_lie_in_the_file(self, deciding, tmp_path, way, later):
        network = load_network(deciding / "ada.pth.tar")
        options = self.options(deciding, "capacity", 0.5)
        report = export_network(network, tmp_path / "small.safetensors", options, check_passes=True)
        assert isinstance(report.agreement, Exactness)
        assert 0 < report.agreement.exact < report.agreement.images
        assert report.agreement.worst_other_over_spread is not None
        assert report.compiled.limits is not None
        small = load_network(report.onnx)
        assert small.limits == report.compiled.limits.to_json()
        direct = onnx_of(network, tmp_path, self.options(deciding, way, 0.5))
        assert direct == onnx_of(small, tmp_path, CompileOptions(adaptive=find_adaptive(later)))

    @pytest.mark.parametrize("way", ["capacity", "conditional+capacity"])
    def test_limits_can_be_found_later(self, deciding, tmp_path, way):
        network = load_network(deciding / "ada.pth.tar")
        small = load_network(written(network, tmp_path))
        options = self.options(deciding, way)
        assert onnx_of(network, tmp_path, options) == onnx_of(small, tmp_path, options)

    def test_models_of_a_limited_file_are_exact_for_it(self, deciding, tmp_path):
        network = load_network(deciding / "ada.pth.tar")
        small = written(network, tmp_path, self.options(deciding, "capacity", 0.5))
        report = export_network(load_network(small), tmp_path / "m.onnx", CompileOptions(data=deciding / "pictures"))
        assert isinstance(report.agreement, Exactness)
        assert report.agreement.exact == report.agreement.images == 16
        verdict = slimc.verify(report.onnx, against=small, data=deciding / "pictures")
        assert verdict.passed

    def test_limits_do_not_mix(self, deciding, tmp_path):
        network = load_network(deciding / "ada.pth.tar")
        small = written(network, tmp_path, self.options(deciding, "capacity", 0.5))
        with pytest.raises(OptionError, match=r"--adaptive capacity: .*small.safetensors has its capacities"):
            compile_network(load_network(small), self.options(deciding, "capacity"))
        export_network(network, tmp_path / "free.onnx", CompileOptions())
        with pytest.raises(
            OptionError, match=r"--against: .*small.safetensors has limits that .*free.onnx does not have"
        ):
            slimc.verify(tmp_path / "free.onnx", against=small)

    def test_limits_that_are_none_are_refused(self, deciding, tmp_path):
        network = load_network(deciding / "ada.pth.tar")
        path = tmp_path / "broken.safetensors"
        slim_file.save(replace(load_network(written(network, tmp_path)), limits={"settled": 3}), path)
        with pytest.raises(CheckpointError, match="its limits cannot be read"):
            load_network(path)


def spoilt(network: Network) -> Network:
    """`network` with another class token."""
    embedding = replace(network.masked.embedding, prefix=2 * network.masked.embedding.prefix)
    return replace(network, masked=replace(network.masked, embedding=embedding))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "option"),
        [
            ({"variant": "dense"}, "--dense"),
            ({"variant": "masked"}, "--masked"),
            ({"target": find_target("sm89")}, "--target"),
            ({"batch_size": 2}, "--batch-size"),
            ({"opset": 17}, "--opset"),
            ({"precision": "fp16"}, "--precision"),
            ({"adaptive": Adaptive(conditional=True)}, "--adaptive"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_slim_file_is_for_any_target(self, changes, option, tmp_path):
        network = original("adavit-a-head-layer" if option == "--adaptive" else "vitslim-a-channel-0.7")
        with pytest.raises(OptionError, match=rf"{option}: .*small.safetensors is a slim file, for any"):
            written(network, tmp_path, replace(CompileOptions(), **changes))
        assert snapshot(tmp_path) == {}

    @pytest.mark.parametrize("variant", ["dense", "masked"])
    def test_baselines_need_the_checkpoint(self, variant, tmp_path):
        path = written(original("vitslim-a-channel-0.7"), tmp_path)
        with pytest.raises(OptionError, match=f"--{variant}: {path} holds the slim network alone; give the checkpoint"):
            slimc.export(path, tmp_path / "m.onnx", variant=variant)
        dense = export_network(original("vitslim-a-channel-0.7"), tmp_path / "d.onnx", CompileOptions(variant="dense"))
        with pytest.raises(
            OptionError, match=r"--against: .* holds the slim network alone, and .*d.onnx is the dense one"
        ):
            slimc.verify(dense.onnx, against=path)

    def test_the_checkpoint_is_not_overwritten(self, tmp_path):
        path = written(original("vitslim-a-channel-0.7"), tmp_path)
        with pytest.raises(OptionError, match="is the checkpoint itself"):
            slimc.export(path, path)

    def test_nothing_is_written_that_computes_something_else(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            export_slim, "make_slim", lambda *given: spoilt(make_slim(*given))
        )  # what a defect would do
        with pytest.raises(MismatchError, match=r"small.safetensors: not written: what was written differs"):
            written(original("vitslim-a-channel-0.7"), tmp_path)
        assert snapshot(tmp_path) == {}

    def test_nor_what_is_not_read_back_as_it_was(self, tmp_path, monkeypatch):
        save = slim_file.save
        monkeypatch.setattr(slim_file, "save", lambda network, path: save(spoilt(network), path))
        with pytest.raises(InternalError, match="does not hold what was written"):
            written(original("vitslim-a-channel-0.7"), tmp_path)
        assert snapshot(tmp_path) == {}

    def test_weights_that_are_no_numbers_are_refused(self, tmp_path):
        network = slimc.load(timm_network("vit_tiny_patch16_224"), **HALF)
        embedding = replace(network.masked.embedding, prefix=np.full_like(network.masked.embedding.prefix, np.nan))
        with pytest.raises(CheckpointError, match=r"cannot be kept: 'embedding.prefix' has a number that is NaN"):
            slim_file.save(replace(network, masked=replace(network.masked, embedding=embedding)), tmp_path / "nan")


def prune(module: Any) -> None:
    """Take heads, head channels, hidden units and a block from a network of timm's, as pruning libraries do."""
    with torch.no_grad():
        for block, heads, width, hidden in zip(module.blocks, (2, 3), (8, 5), (40, 17), strict=True):
            attention, kept = block.attn, heads * width
            attention.num_heads, attention.head_dim, attention.scale = heads, width, width**-0.5
            attention.attn_dim = kept
            qkv, proj = torch.nn.Linear(24, 3 * kept), torch.nn.Linear(kept, 24)
            attention.qkv, attention.proj = qkv, proj
            block.mlp.fc1, block.mlp.fc2 = torch.nn.Linear(24, hidden), torch.nn.Linear(hidden, 24)


class TestSave:
    @pytest.mark.parametrize("change", [lambda _: None, prune], ids=["whole", "pruned"])
    def test_a_module_comes_back_as_the_network_that_it_is(self, change: Callable[[Any], None], tmp_path):
        torch.manual_seed(0)
        module = timm_network("vit_tiny_patch16_224")
        change(module)
        path = tmp_path / "saved.safetensors"
        slimc.save(module.eval(), path, **HALF)
        direct, saved = slimc.load(module.eval(), **HALF), slimc.load(path)
        assert_same_node(saved.masked, direct.masked)
        assert saved.masked is saved.dense
        assert (saved.sha256, saved.settings) == (direct.sha256, direct.settings)
        assert_same_models(direct, saved, tmp_path, None, ("features", "tokens"))
        images = torch.randn(2, 3, 32, 32)
        expected = module(images).detach()
        assert torch.allclose(saved.pytorch("masked")(images), expected, rtol=0, atol=1e-5)

    def test_its_baselines_are_those_of_the_module(self, tmp_path):
        module = timm_network("vit_small_patch14_reg4_dinov2.lvd142m")
        path = tmp_path / "saved.safetensors"
        slimc.save(module, path, **HALF)
        direct, saved = slimc.load(module, **HALF), slimc.load(path)
        for variant in ("dense", "masked", "slim"):
            options = CompileOptions(variant=variant)
            assert onnx_of(direct, tmp_path, options) == onnx_of(saved, tmp_path, options)

    def test_what_it_refuses(self, tmp_path):
        module = timm_network("vit_tiny_patch16_224")
        with pytest.raises(OptionError, match=r"ends in \.pth; expected \.safetensors"):
            slimc.save(module, tmp_path / "m.pth")
        with pytest.raises(OptionError, match="masks: save keeps a network as it is; export makes a slim file"):
            slimc.save(module, tmp_path / "m.safetensors", masks="masks.npz")
        with pytest.raises(OptionError, match="--budget"):
            slimc.save(module, tmp_path / "m.safetensors", budget=0.5)
        assert snapshot(tmp_path) == {}
