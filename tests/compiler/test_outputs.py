"""Outputs by name: what may be asked for, what PyTorch says they are, what the passes must keep, what files say of them."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import slimc
from slimc import ir
from slimc.backends import ort
from slimc.compiler.load import load_module, load_network
from slimc.compiler.outputs import describe, names_of, read_names, with_outputs
from slimc.compiler.pipeline import check_passes
from slimc.compiler.reference import make_reference, shipped_part
from slimc.errors import MismatchError, ModelFileError, OptionError, PassError
from slimc.files.reference import Reference, read_reference, reference_path, write_reference
from slimc.ir.interpret.model import trace
from slimc.models.system import Network
from tests.artefacts import VECTORS
from tests.digits import write_digits
from tests.models.test_folders import network as timm_network

MANY = ("logits", "features", "tokens", "blocks.0:nchw")
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@cache
def plain() -> Network:
    return load_module(timm_network("vit_tiny_patch16_224"), HALF)


@cache
def headless() -> Network:
    return load_module(timm_network("vit_tiny_patch16_224", num_classes=0), HALF)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (None, None),
        ("logits", ("logits",)),
        ("features, tokens:nchw", ("features", "tokens:nchw")),
        (["blocks.1", "features"], ("blocks.1", "features")),
    ],
)
def test_names_come_as_texts_or_lists(said, names):
    assert read_names(said) == names


class TestChoosing:
    def test_nothing_said_leaves_the_front_ends_choice(self):
        assert with_outputs(plain(), None) is plain()
        assert names_of(plain()) == ("logits",)
        assert names_of(headless()) == ("features",)

    def test_the_network_and_its_baseline_get_them_in_order(self):
        found = with_outputs(plain(), MANY)
        for model in (found.masked, found.dense):
            assert tuple(output.name for output in model.outputs) == MANY
        assert found.dense is found.masked

    @pytest.mark.parametrize(
        ("names", "match"),
        [
            (("logit",), "--outputs: 'logit' is unknown; expected logits, features, tokens, blocks.0 to blocks.1"),
            (("blocks.2",), "--outputs: this network has no blocks.2; expected"),
            (("logits:nchw",), "--outputs: this network has no logits:nchw"),
            (("",), "--outputs: '' is unknown"),
            ((), "--outputs: none is named"),
            (("tokens", "tokens"), "--outputs: tokens stands twice"),
        ],
    )
    def test_what_there_is_not_is_refused(self, names, match):
        with pytest.raises(OptionError, match=match):
            slimc.compile(plain(), outputs=names)

    @pytest.mark.parametrize("names", ["features", "tokens", "blocks.0", "tokens:nchw,blocks.1"])
    def test_what_no_output_needs_is_left_out(self, names):
        found = slimc.compile(plain(), outputs=names, check_passes=True)
        everything = slimc.compile(plain(), outputs=MANY)
        assert found.slim.params < everything.slim.params
        assert found.dense.params < everything.dense.params
        assert found.pass_errors is not None
        assert max(found.pass_errors.values()) < 1e-9

    def test_a_network_without_a_head_has_no_logits(self):
        with pytest.raises(OptionError, match="--outputs: this network has no logits; expected features, tokens"):
            with_outputs(headless(), ("logits",))
        with pytest.raises(OptionError, match="--knn: this network has no logits"):
            with_outputs(headless(), ("logits",), "--knn")

    def test_searched_systems_give_logits(self):
        searched = load_network(VECTORS["channel"])
        assert with_outputs(searched, ("logits",)) is searched
        with pytest.raises(OptionError, match="--outputs: ViT-Slim networks give logits only; leave it out"):
            slimc.compile(searched, outputs="features")


def test_descriptions_say_what_the_interpreter_gives():
    found = with_outputs(plain(), MANY).masked
    outputs = trace(found, np.zeros((3, 3, 32, 32), np.float32)).outputs
    described = describe(found, 3)
    assert [(facts.name, facts.shape) for facts in described] == [(name, a.shape) for name, a in outputs.items()]
    assert [facts.layout for facts in described] == ["NC", "NC", "NLC", "NCHW"]
    assert describe(headless().masked, 1)[0].shape == (1, 24)


def test_the_reference_is_what_timm_computes():
    module = timm_network("vit_tiny_patch16_224")
    reference = make_reference(with_outputs(plain(), MANY), "slim", 1, 1e-4, [], None, lambda *_: None)
    assert tuple(reference.outputs) == MANY
    images = torch.from_numpy(reference.images[:])
    with torch.inference_mode():
        rows = module.forward_features(images)
        expected = {
            "logits": module(images),
            "features": module.forward_head(rows, pre_logits=True),
            "tokens": rows[:, 1:],
        }
        (block,) = module.forward_intermediates(images, indices=[0], intermediates_only=True, norm=False)
    for name, values in expected.items():
        np.testing.assert_allclose(reference.outputs[name], values.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(reference.outputs["blocks.0:nchw"], block.numpy(), rtol=0, atol=1e-5)
    assert {name: array.shape for name, array in shipped_part(reference).outputs.items()} == {
        name: array.shape for name, array in reference.outputs.items()
    }


class Spoil:
    """A pass that changes what is read from the rows, and not the logits."""

    def __call__(self, model: ir.Model) -> ir.Model:
        block = model.blocks[-1]
        assert isinstance(block.mlp, ir.Mlp)
        bias = block.mlp.down.bias
        assert bias is not None
        # A norm does not see what all channels share.
        mlp = replace(block.mlp, down=replace(block.mlp.down, bias=bias + 1e-3))
        return replace(model, blocks=(*model.blocks[:-1], replace(block, mlp=mlp)))


class Drop:
    """A pass that forgets an output."""

    def __call__(self, model: ir.Model) -> ir.Model:
        return replace(model, outputs=model.outputs[:1])


def test_every_output_is_checked_after_every_pass():
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32))
    assert check_passes(plain().masked, [Spoil()], images)["Spoil"] < 1e-9
    found = with_outputs(plain(), ("logits", "features", "blocks.1")).masked
    with pytest.raises(PassError, match=r"Spoil: changed the blocks\.1 by 0\.001"):
        check_passes(found, [Spoil()], images)
    with pytest.raises(PassError, match=r"Drop: changed the outputs logits, features, blocks\.1 to logits"):
        check_passes(found, [Drop()], images)


class TestExport:
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    @pytest.mark.parametrize("variant", ["slim", "dense"])
    def test_all_outputs_are_verified_and_described(self, variant, precision, tmp_path):
        path = tmp_path / "m.onnx"
        report = slimc.export(plain(), path, outputs=MANY, variant=variant, precision=precision, batch_size=2)
        assert report.comparison is not None
        assert report.comparison.passed
        assert tuple(each.output for each in report.comparison.outputs) == MANY
        session = ort.load(path)
        found = slimc.read_metadata(path).outputs
        assert [(spec.name, spec.shape, spec.dtype) for spec in session.outputs] == [
            (facts.name, facts.shape, "float32") for facts in found
        ]
        assert found == describe(report.compiled.network.masked, 2)
        assert tuple(read_reference(reference_path(path)).outputs) == MANY
        verdict = slimc.verify(path)
        assert verdict.passed
        assert verdict.comparison is not None
        assert tuple(each.output for each in verdict.comparison.outputs) == MANY

    def test_one_of_them_that_is_wrong_fails_by_its_name(self, tmp_path):
        path = tmp_path / "m.onnx"
        slimc.export(plain(), path, outputs="logits,features,blocks.0")
        right = read_reference(reference_path(path))
        wrong = {**right.outputs, "blocks.0": right.outputs["blocks.0"] * np.float32(1.01)}
        write_reference(reference_path(path), Reference(right.images, wrong, right.facts))
        verdict = slimc.verify(path)
        assert not verdict.passed
        assert verdict.comparison is not None
        assert verdict.comparison.worst.output == "blocks.0"
        assert [each.passed for each in verdict.comparison.outputs] == [True, True, False]

        def spoilt(module: torch.nn.Module, images: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
            assert read is not None
            found = dict(read(module, images, names))
            return {**found, "features": found["features"] * 1.01}

        read = plain().read
        before = sorted(tmp_path.iterdir())
        with pytest.raises(MismatchError, match=r"of the spread of features on input [0-3], more than 1e-04"):
            slimc.export(replace(plain(), read=spoilt), tmp_path / "new.onnx", outputs="logits,features")
        assert sorted(tmp_path.iterdir()) == before

    def test_a_reference_of_other_outputs_is_refused(self, tmp_path):
        path = tmp_path / "m.onnx"
        slimc.export(plain(), path, outputs="logits,features")
        right = read_reference(reference_path(path))
        write_reference(reference_path(path), Reference(right.images, {"logits": right.logits}, right.facts))
        with pytest.raises(ModelFileError, match="a reference of logits: it belongs to another model"):
            slimc.verify(path)

    def test_a_model_with_logits_only_says_what_it_said_before_there_were_others(self, tmp_path):
        import onnx

        slimc.export(load_network(VECTORS["channel"]), tmp_path / "m.onnx")
        keys = {prop.key for prop in onnx.load(tmp_path / "m.onnx").metadata_props}
        assert "slimc.outputs" not in keys
        (found,) = slimc.read_metadata(tmp_path / "m.onnx").outputs
        assert (found.name, found.shape, found.layout) == ("logits", (1, 10), "NC")
        slimc.export(plain(), tmp_path / "f.onnx", outputs="features")
        props = {prop.key: prop.value for prop in onnx.load(tmp_path / "f.onnx").metadata_props}
        assert json.loads(props["slimc.outputs"]) == [
            {
                "name": "features",
                "shape": [1, 24],
                "layout": "NC",
                "meaning": "what the head reads: the class token or a pool",
            }
        ]

    def test_no_statement_is_made_about_labels_without_logits(self, tmp_path):
        data = write_digits(tmp_path / "digits", every=90)
        report = slimc.export(headless(), tmp_path / "m.onnx", data=data)
        assert report.accuracy is None
        assert report.comparison is not None
        assert (report.comparison.inputs, report.comparison.logits) == (8, None)

    def test_compiled_networks_are_exported_with_what_they_were_compiled_for(self, tmp_path):
        compiled = slimc.compile(plain(), outputs="features,blocks.0")
        assert len(compiled.structure.layers) == 2
        report = compiled.export(tmp_path / "m.onnx", batch_size=2)
        assert report.comparison is not None
        assert [each.shape for each in report.comparison.outputs] == [(24,), (4, 24)]
        assert len(slimc.compile(plain(), outputs="blocks.0").structure.layers) == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_have_them_too(precision, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    slimc.export(plain(), tmp_path / "m.onnx", outputs="features,tokens:nchw", target="sm89")
    built = slimc.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", precision=precision, target="sm89")
    assert [spec.name for spec in built.facts.outputs] == ["features", "tokens:nchw"]
    assert built.graph_comparison is None or built.graph_comparison.passed
    again = slimc.build_engine(plain(), tmp_path / "n.engine", outputs="features", target="sm89")
    assert [spec.name for spec in again.facts.outputs] == ["features"]
