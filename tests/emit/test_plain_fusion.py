"""TensorRT-RTX fuses the attention of plain vision transformers in half precision, whatever is done to queries and keys."""

from dataclasses import replace

import numpy as np
import onnx_ir as oir
import pytest

from slimc import ir
from slimc.backends.fusion import attention_sites, summarise
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.emit.model import emit
from slimc.emit.precision import to_half
from slimc.targets.costs import CountedCosts
from slimc.targets.target import find_target
from tests.plain_networks import plain_network

pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT-RTX")

from slimc.backends import tensorrt_rtx

SIZE = {"heads": 4, "head_dim": 32, "dim": 128, "hidden": 256, "grid": (7, 7), "patch": (8, 8), "depth": 2}
TARGET = find_target("sm89")
# Groups of heads cost nothing: heads of several widths are not padded to one.
SEVERAL_GROUPS = replace(TARGET, costs=CountedCosts(0.0))


def assert_fused(network: ir.Model, path, batch_size: int, attentions: int = 1) -> None:
    """Every block of `network` has so many attentions, each of which is one kernel."""
    model = emit(network, TARGET, batch_size=batch_size)
    to_half(model, "fp16")
    oir.save(model, path)
    kernels = tensorrt_rtx.read_kernels(path, tensorrt_rtx.build_plan(path, ("sm89",), path))
    blocks = summarise(kernels, attention_sites(oir.load(path).graph))
    found = [(block.attentions, block.fused) for block in blocks if block.name.startswith("blocks.")]
    assert found == [(attentions, attentions)] * len(network.blocks)


def in_float32(network: ir.Model) -> ir.Model:
    return ir.map_arrays(network, lambda array: array.astype(np.float32))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    "features",
    [
        {"rotation": "shared"},
        {"rotation": "per head", "biases": "qvo"},
        {"qk_norm": "rms"},
        {"rotation": "shared", "qk_norm": "layer"},
        {"prefix": 0, "pool": "latent", "outputs": ("logits", "tokens:nchw")},
        {"rotation": "shared", "prefix": 0, "pool": "avg", "gated": True, "activation": "silu", "norm": "rms"},
        {"output_norm": "layer", "inner_norm": "layer", "outputs": ("logits", "features", "blocks.0")},
    ],
    ids=str,
)
def test_attention_is_fused(features, batch_size, tmp_path):
    network = in_float32(plain_network(0, **{**SIZE, **features}))
    assert_fused(network, tmp_path / "dense.onnx", batch_size)
    assert_fused(compile_model(network, passes_for(TARGET)), tmp_path / "slim.onnx", batch_size)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_turned_heads_of_two_widths_are_two_fused_attentions(batch_size, tmp_path):
    network = in_float32(plain_network(0, **SIZE, rotation="shared"))
    blocks = tuple(replace(block, attention=_narrower(block.attention)) for block in network.blocks)
    slim = compile_model(replace(network, blocks=blocks), passes_for(SEVERAL_GROUPS))
    assert_fused(slim, tmp_path / "slim.onnx", batch_size, attentions=2)


def _narrower(attention: object) -> ir.Attention:
    """Two heads with half of their channels masked: of queries and keys in pairs."""
    assert isinstance(attention, ir.Attention)
    mask = np.tile(np.repeat([1.0, 0.0], 8), 2).astype(np.float32)
    heads = [replace(head, mask=mask, value_mask=mask) if i % 2 else head for i, head in enumerate(attention.heads)]
    return replace(attention, heads=tuple(heads))
