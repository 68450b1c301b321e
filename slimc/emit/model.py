"""From IR to ONNX: static shapes, names that follow the checkpoint, nothing but standard operators.

The residual stream is a matrix [B * N, C], so that every linear layer is a Gemm with its bias inside; it becomes [B, N, C]
only where rows are selected in a batch. Attention is MatMul, Softmax, MatMul over [B, H, N, d] for each group of heads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from slimc import ir
from slimc.emit.attention import emit_attention
from slimc.emit.convolution import emit_convolution
from slimc.emit.gates import emit_adaptive_block
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.mlp import emit_mlp
from slimc.emit.norms import normalise
from slimc.emit.readout import emit_readout, emit_rows
from slimc.emit.stem import emit_soft_split
from slimc.emit.stream import Stream
from slimc.emit.tokens import Kept, emit_select
from slimc.errors import InternalError
from slimc.targets.plan import BlockPlan, emitted_blocks, plan_model
from slimc.targets.target import ATTENTION_OPSET, Target, for_opset

# LayerNormalization came with opset 17: the oldest opset that says all a vision transformer needs, and so the one that
# most runtimes read (ONNX Runtime >= 1.12, TensorRT >= 8.6, OpenVINO >= 2022.3).
DEFAULT_OPSET = 17
OPSETS = range(17, 24)
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def emit(
    model: ir.Model, target: Target, *, batch_size: int = 1, opset: int | None = None, conditional: bool = False
) -> oir.Model:
    """The ONNX model of `model`: ``images`` [batch_size, 3, height, width] to its outputs, by their names, float32.

    With `conditional`, which needs batch 1, a branch that its gate switches off is not computed. By default the opset is the
    oldest that has the operators of `target`.
    """
    opset = default_opset(target) if opset is None else opset
    graph = GraphBuilder(opset)
    images = graph.input("images", (batch_size, model.embedding.channels, *model.image))
    stream = _embed(graph, model, images)
    kept: Kept | None = None
    outputs: dict[str, Value] = {}
    blocks = emitted_blocks(model)
    for i, (block, plan) in enumerate(zip(blocks, plan_model(model, for_opset(target, opset)), strict=False)):
        if block.select is not None:
            stream, kept = emit_select(graph, block.select, stream, kept, block.name)
        if block.gates is None:
            stream = _block(graph, block, plan, stream, kept)
        else:
            stream = emit_adaptive_block(graph, block, plan, stream, model.prefix, conditional=conditional)
        outputs |= _after_block(graph, model, i, stream)
    last = [output for output in model.outputs if output.kind != "blocks"]
    outputs |= emit_readout(graph, model, last, stream, kept)
    values = [outputs[output.name] for output in model.outputs]
    return oir.Model(graph.build(values, "slimc"), ir_version=_IR_VERSIONS[opset], producer_name="slimc")


def _after_block(graph: GraphBuilder, model: ir.Model, i: int, stream: Stream) -> dict[str, Value]:
    """The outputs that consist of rows behind the `i`-th block, by name."""
    found = {}
    for output in model.outputs:
        if output.block == i and output.rows is not None:
            rows = stream.take(graph, output.rows, f"{output.name}.rows")
            found[output.name] = emit_rows(graph, output, rows, model.grid)
    return found


def default_opset(target: Target) -> int:
    """The oldest opset that has the operators of `target`."""
    return ATTENTION_OPSET if target.attention_operator else DEFAULT_OPSET


def _embed(graph: GraphBuilder, model: ir.Model, images: Value) -> Stream:
    batch = dims(images)[0]
    parts = [_prefix(graph, model.embedding, batch)] if model.prefix else []
    if ir.embedded_rows(model) > model.prefix:
        parts.append(_patches(graph, model, images))
    rows = graph.concat(parts, 1, "embed.rows")
    matrix = graph.reshape(rows, (batch * dims(rows)[1], model.dim), "embed")
    return Stream(normalise(graph, matrix, model.embedding.norm, "norm_pre"), batch)


def _prefix(graph: GraphBuilder, embedding: ir.Embedding, batch: int) -> Value:
    """The prefix rows with their positions: [B, P, C]."""
    prefix = graph.parameter("cls_token", embedding.prefix)
    if embedding.prefix_position is not None:
        prefix = graph.add(prefix, graph.parameter("pos_embed.prefix", embedding.prefix_position), "cls_token.position")
    prefix = graph.reshape(prefix, (1, *dims(prefix)), "cls_token.rows")
    if batch == 1:
        return prefix
    shape = (batch, *dims(prefix)[1:])
    inputs = [prefix, graph.constant(np.array(shape, np.int64), "shape")]
    return graph.op("Expand", inputs, "cls_token.batch", shape)


def _patches(graph: GraphBuilder, model: ir.Model, images: Value) -> Value:
    """The patches with their positions: [B, patches, C]."""
    embedding = model.embedding
    for i, stage in enumerate(embedding.stem, 1):
        if isinstance(stage, ir.SoftSplit):
            images = emit_soft_split(graph, stage, images, i)
        else:
            images = emit_convolution(graph, stage, images, i)
    chosen, count = embedding.patch.patches, model.grid[0] * model.grid[1]
    if chosen is None or len(chosen) == count:
        patches = _all_patches(graph, model, images)
        patches = patches if chosen is None else graph.take(patches, chosen, 1, "patch_embed.ordered")
    else:
        patches = _some_patches(graph, model, images)
    patches = normalise(graph, patches, embedding.patch_norm, "patch_embed.norm")
    if embedding.patch_position is None:
        return patches
    position = graph.parameter("pos_embed.patches", embedding.patch_position)
    return graph.add(patches, position, "patch_embed.position")


def _all_patches(graph: GraphBuilder, model: ir.Model, images: Value) -> Value:
    """Every patch, by a convolution: [B, patches, C]."""
    patch, (rows, columns), batch = model.embedding.patch, model.grid, dims(images)[0]
    kernel = list(patch.weight.shape[2:])
    inputs = [images, graph.parameter("patch_embed.proj.weight", patch.weight)]
    if patch.bias is not None:
        inputs.append(graph.parameter("patch_embed.proj.bias", patch.bias))
    shape = (batch, model.dim, rows, columns)
    grid = graph.op("Conv", inputs, "patch_embed.proj", shape, {"kernel_shape": kernel, "strides": kernel})
    flat = graph.reshape(grid, (batch, model.dim, rows * columns), "patch_embed.flat")
    return graph.transpose(flat, (0, 2, 1), "patch_embed.rows")


def _some_patches(graph: GraphBuilder, model: ir.Model, images: Value) -> Value:
    """The patches that are read, cut out before they are embedded: [B, patches, C]."""
    patch, (rows, columns), batch = model.embedding.patch, model.grid, dims(images)[0]
    assert patch.patches is not None
    channels, height, width = patch.weight.shape[1:]
    grid = graph.reshape(images, (batch, channels, rows, height, columns, width), "patch_embed.grid")
    cells = graph.transpose(grid, (0, 2, 4, 1, 3, 5), "patch_embed.cells")
    pixels = graph.reshape(cells, (batch, rows * columns, channels * height * width), "patch_embed.pixels")
    kept = graph.take(pixels, patch.patches, 1, "patch_embed.kept")
    count = dims(kept)[1]
    matrix = graph.reshape(kept, (batch * count, dims(kept)[2]), "patch_embed.matrix")
    linear = ir.Linear(patch.weight.reshape(model.dim, -1), patch.bias)
    embedded = graph.linear(matrix, linear, "patch_embed.proj")
    return graph.reshape(embedded, (batch, count, model.dim), "patch_embed.rows")


def _block(graph: GraphBuilder, block: ir.Block, plan: BlockPlan, stream: Stream, kept: Kept | None) -> Stream:
    name = block.name
    if kept is not None and block.live is not None:
        raise InternalError(f"{name}: rows are cut after a selection that hides some")
    if plan.attention is not None:
        key_bias = None if kept is None else kept.bias
        stream = emit_attention(graph, plan.attention, stream, name, key_bias)
    else:
        stream = stream.take(graph, ir.live_rows(block, stream.rows), f"{name}.live")
    if isinstance(block.attention, ir.Constant):
        bias = graph.parameter(f"{name}.attn.proj.bias", block.attention.vector)
        stream = stream.replace(graph.add(stream.matrix, bias, f"{name}.attn.residual"))
    if plan.mlp is not None:
        stream = emit_mlp(graph, plan.mlp, stream, name)
    elif isinstance(block.mlp, ir.Constant):
        bias = graph.parameter(f"{name}.mlp.fc2.bias", block.mlp.vector)
        stream = stream.replace(graph.add(stream.matrix, bias, f"{name}.mlp.residual"))
    return stream
