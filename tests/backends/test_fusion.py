"""Reading what a builder says about kernels, and saying why an attention was not fused."""

import json
from typing import Any

import numpy as np
import onnx_ir as oir
import pytest

from slimc.backends.fusion import AttentionSite, Kernel, attention_sites, read_inspector, read_log, summarise
from slimc.backends.tensorrt_common import Message

LISTING = """Layers:
Name: __myl_Norm_0, LayerType: kgen, Inputs: [ { Name: x }], Metadata: [ONNX Layer: blocks.0.norm1]
Name: qkv_1, LayerType: gemm, Inputs: [], Metadata: [ONNX Layer: blocks.0.attn.qkv]
Name: __mye_move_2, LayerType: kgen, Inputs: []
Name: _gemm_mha_v2_3, LayerType: kgen, Metadata: [ONNX Layer: blocks.0.attn.mixed][ONNX Layer: blocks.0.attn.softmax]
Name: both_4, LayerType: kgen, Metadata: [ONNX Layer: blocks.0.mlp.residual][ONNX Layer: blocks.1.norm1]
Name: softmax_5, LayerType: kgen, Metadata: [ONNX Layer: blocks.1.attn.softmax]
Name: head_6, LayerType: gemm, Metadata: [ONNX Layer: logits]

Bindings: images, logits"""


def site(block: str, **changes: object) -> AttentionSite:
    """An attention that fuses, with changes."""
    fields: dict[str, Any] = {"batch": 1, "heads": 4, "width": 64, "half": True, "fusible": True, **changes}
    return AttentionSite(f"{block}.attn.softmax", block, **fields)


def test_the_log_yields_kernels_with_the_nodes_they_compute():
    log = [Message(4, "Layers:\nName: old, LayerType: kgen"), Message(4, LISTING), Message(4, "later")]
    kernels = read_log(log)
    assert [kernel.name for kernel in kernels][:2] == ["__myl_Norm_0", "qkv_1"]
    assert kernels[3] == Kernel("_gemm_mha_v2_3", "kgen", ("blocks.0.attn.mixed", "blocks.0.attn.softmax"))
    assert len(kernels) == 7
    assert read_log([Message(4, "nothing of the kind")]) == ()


def test_blocks_count_their_kernels_and_their_fused_attentions():
    blocks = summarise(read_log([Message(4, LISTING)]), [site("blocks.0"), site("blocks.1")])
    assert [(b.name, b.kernels, b.attentions, b.fused) for b in blocks] == [
        ("blocks.0", 5, 1, 1),
        ("blocks.1", 1, 1, 0),
    ]
    assert blocks[0].lost == ()
    assert blocks[1].lost == ("the builder gives no reason",)


def test_blocks_come_in_their_order_and_not_in_that_of_letters():
    kernels = [Kernel("k", "gemm", (f"blocks.{i}.mlp.fc1",)) for i in (10, 9, 2)]
    assert [block.name for block in summarise(kernels, [])] == ["blocks.2", "blocks.9", "blocks.10"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"half": False}, "float32"),
        ({"width": 8}, "width 8"),
        ({"width": 320}, "width 320"),
        ({"heads": 1}, "one head alone"),
        ({"fusible": False}, "--no-fused-attention"),
        ({"heads": 1, "batch": 8}, "no reason"),
    ],
)
def test_why_an_attention_is_not_fused(changes, reason):
    (block,) = summarise([], [site("blocks.0", **changes)])
    assert reason in block.lost[0]


def test_the_inspectors_json_says_the_same():
    layers = [{"Name": "_gemm_mha_v2", "LayerType": "kgen", "Metadata": "[ONNX Layer: a][ONNX Layer: b]"}, "bare name"]
    assert read_inspector(json.dumps({"Layers": layers, "Bindings": []})) == (
        Kernel("_gemm_mha_v2", "kgen", ("a", "b")),
    )


def attention_graph(
    lead: tuple[int, ...], *, dtype: oir.DataType = oir.DataType.FLOAT16, relu: bool = False
) -> oir.Graph:
    """softmax(q k + bias) v, with a cast around the softmax."""
    shapes = {"q": (*lead, 5, 24), "k": (*lead, 24, 7), "v": (*lead, 7, 24)}
    q, k, v = (oir.val(name, dtype, shape) for name, shape in shapes.items())
    scores = oir.node("MatMul", [q, k])
    wide = oir.node("Cast", [scores.outputs[0]], {"to": oir.DataType.FLOAT})
    bias = oir.val("bias", const_value=oir.tensor(np.zeros((1, 7), np.float32)))
    biased = oir.node("Add", [wide.outputs[0], bias])
    softmax = oir.node("Softmax", [biased.outputs[0]], name="blocks.3.attn.softmax")
    nodes = [scores, wide, biased, softmax]
    if relu:
        nodes.append(oir.node("Relu", [softmax.outputs[0]]))
    narrow = oir.node("Cast", [nodes[-1].outputs[0]], {"to": dtype})
    mixed = oir.node("MatMul", [narrow.outputs[0], v])
    return oir.Graph([q, k, v], mixed.outputs, nodes=[*nodes, narrow, mixed], initializers=[bias], name="attention")


@pytest.mark.parametrize(("lead", "batch", "heads"), [((), 1, 1), ((8,), 8, 1), ((1, 6), 1, 6), ((8, 2), 8, 2)])
def test_an_attention_is_found_in_the_graph_with_its_shape(lead, batch, heads):
    (found,) = attention_sites(attention_graph(lead))
    assert found == AttentionSite("blocks.3.attn.softmax", "blocks.3", batch, heads, 24, half=True, fusible=True)


def test_types_and_broken_fusion_are_seen():
    assert not attention_sites(attention_graph((1, 2), dtype=oir.DataType.FLOAT))[0].half
    assert not attention_sites(attention_graph((1, 2), relu=True))[0].fusible
