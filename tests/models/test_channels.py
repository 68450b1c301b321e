"""Images of one channel (scans, characters) to four (satellites): front end, IR, passes and ONNX agree with PyTorch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slimc
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.errors import CheckpointError
from slimc.files.checkpoint import read_checkpoint
from slimc.files.reference import read_reference, reference_path
from slimc.ir.interpret.model import interpret
from slimc.models.options import AdaVitOptions, VitSlimOptions
from slimc.models.system import Network
from slimc.models.systems import AdaVit, VitSlim, recognises
from slimc.targets.target import find_target
from tests import gated, selecting, vectors

T2T = replace(gated.SMALL, image=(48, 48), patch=(16, 16), token_dim=6, random_features=4, eps=1e-5)


def vit_slim(channels: int) -> Network:
    checkpoint = read_checkpoint(vectors.DATA / "vitslim-a-channel-0.7" / "checkpoint.pth", recognises)
    key = "patch_embed.proj.weight"
    weight = torch.cat([checkpoint.state[key]] * 2, 1)[:, :channels].clone()
    return VitSlim().load(replace(checkpoint, state={**checkpoint.state, key: weight}), VitSlimOptions())


def dynamic_vit(channels: int, *, lvvit: bool) -> Network:
    return selecting.random_searched(replace(selecting.small_config(lvvit=lvvit), channels=channels))


def ada_vit(channels: int, *, t2t: bool) -> Network:
    config = replace(T2T if t2t else gated.SMALL, channels=channels)
    return AdaVit().load(gated.random_checkpoint(config), AdaVitOptions())


NETWORKS = {
    "ViT-Slim": vit_slim,
    "DynamicViT": lambda channels: dynamic_vit(channels, lvvit=False),
    "DynamicViT, LV-ViT": lambda channels: dynamic_vit(channels, lvvit=True),
    "AdaViT": lambda channels: ada_vit(channels, t2t=False),
    "AdaViT, T2T-ViT": lambda channels: ada_vit(channels, t2t=True),
}


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_emitted_model_and_the_interpreter_compute_what_pytorch_does(kind: str, channels: int, tmp_path: Path):
    network = NETWORKS[kind](channels)
    assert network.masked.embedding.channels == channels
    report = slimc.export(network, tmp_path / "m.onnx", target="cpu", batch_size=2)
    assert report.comparison is not None
    assert report.comparison.max_rel < 2e-5
    reference = read_reference(reference_path(report.onnx))
    assert reference.images.shape[1] == channels
    slim = compile_model(network.masked, passes_for(find_target("generic")))
    found = interpret(slim, reference.images[:2])
    np.testing.assert_allclose(found, reference.logits[:2], rtol=0, atol=2e-5 * report.comparison.spread)
    assert slimc.verify(report.onnx).passed
    assert slimc.bench(report.onnx, threads=1, seconds=0.05)[0].subject.batch_size == 2


def test_five_channels_are_refused():
    with pytest.raises(CheckpointError, match="reads images of 5 channels; expected 1 to 4"):
        vit_slim(5)


def test_an_engine_builds_for_one_channel(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    built = slimc.build_engine(vit_slim(1), tmp_path / "m.engine", precision="fp16", target="sm89")
    assert built.facts.inputs[0].shape[1] == 1
