"""From IR to ONNX: static shapes, names that follow the checkpoint, nothing but standard operators.

The residual stream is a matrix [B * N, C], so that every linear layer is a Gemm with its bias inside; it becomes [B, N, C]
only where rows are selected in a batch. Attention is MatMul, Softmax, MatMul over [B, H, N, d] for each group of heads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from slimc import ir
from slimc.emit.attention import emit_attention
from slimc.emit.branch import add_last_product
from slimc.emit.convolution import emit_convolution
from slimc.emit.gates import emit_adaptive_block
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.stem import emit_soft_split
from slimc.emit.stream import Stream
from slimc.emit.tokens import Kept, emit_select
from slimc.errors import InternalError
from slimc.ir.interpret.linear import zero_row_output
from slimc.targets.plan import BlockPlan, MlpPlan, plan_model
from slimc.targets.target import ATTENTION_OPSET, Target, for_opset

# LayerNormalization came with opset 17: the oldest opset that says all a vision transformer needs, and so the one that
# most runtimes read (ONNX Runtime >= 1.12, TensorRT >= 8.6, OpenVINO >= 2022.3).
DEFAULT_OPSET = 17
OPSETS = range(17, 24)
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def emit(
    model: ir.Model, target: Target, *, batch_size: int = 1, opset: int | None = None, conditional: bool = False
) -> oir.Model:
    """The ONNX model of `model`: ``images`` [batch_size, 3, height, width] to ``logits`` [batch_size, classes], float32.

    With `conditional`, which needs batch 1, a branch that its gate switches off is not computed. By default the opset is the
    oldest that has the operators of `target`.
    """
    opset = default_opset(target) if opset is None else opset
    graph = GraphBuilder(opset)
    images = graph.input("images", (batch_size, model.embedding.channels, *model.image))
    stream = _embed(graph, model, images)
    kept: Kept | None = None
    for block, plan in zip(model.blocks, plan_model(model, for_opset(target, opset)), strict=True):
        if block.select is not None:
            stream, kept = emit_select(graph, block.select, stream, kept, block.name)
        if block.gates is None:
            stream = _block(graph, block, plan, stream, kept)
        else:
            stream = emit_adaptive_block(graph, block, plan, stream, model.prefix, conditional=conditional)
    logits = _classify(graph, model, stream, kept)
    return oir.Model(graph.build([logits], "slimc"), ir_version=_IR_VERSIONS[opset], producer_name="slimc")


def default_opset(target: Target) -> int:
    """The oldest opset that has the operators of `target`."""
    return ATTENTION_OPSET if target.attention_operator else DEFAULT_OPSET


def _embed(graph: GraphBuilder, model: ir.Model, images: Value) -> Stream:
    embedding, batch = model.embedding, dims(images)[0]
    prefix = graph.parameter("cls_token", embedding.prefix)
    if embedding.prefix_position is not None:
        prefix = graph.add(prefix, graph.parameter("pos_embed.prefix", embedding.prefix_position), "cls_token.position")
    prefix = graph.reshape(prefix, (1, *dims(prefix)), "cls_token.rows")
    if batch > 1:
        shape = (batch, *dims(prefix)[1:])
        prefix = graph.op(
            "Expand", [prefix, graph.constant(np.array(shape, np.int64), "shape")], "cls_token.batch", shape
        )
    parts = [prefix, _patches(graph, model, images)] if ir.embedded_rows(model) > model.prefix else [prefix]
    rows = graph.concat(parts, 1, "embed.rows")
    matrix = graph.reshape(rows, (batch * dims(rows)[1], model.dim), "embed")
    return Stream(matrix, batch)


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
        stream = _mlp(graph, plan.mlp, stream, name)
    elif isinstance(block.mlp, ir.Constant):
        bias = graph.parameter(f"{name}.mlp.fc2.bias", block.mlp.vector)
        stream = stream.replace(graph.add(stream.matrix, bias, f"{name}.mlp.residual"))
    return stream


def _mlp(graph: GraphBuilder, plan: MlpPlan, stream: Stream, block: str) -> Stream:
    mlp, name = plan.node, f"{block}.mlp"
    everything = np.arange(stream.rows)
    rows = everything if mlp.rows is None else mlp.rows
    seen = stream.take(graph, rows, f"{name}.rows")
    n = graph.layer_norm(seen.matrix, mlp.norm, f"{block}.norm2", f"{block}.norm2")
    if mlp.token_mask is not None:
        n = graph.mul(n, seen.column(graph, mlp.token_mask), f"{block}.norm2.mask")
    hidden = graph.gelu(graph.linear(n, mlp.up, f"{name}.fc1"), f"{name}.act")
    if mlp.mask is not None:
        hidden = graph.mul(hidden, graph.constant(mlp.mask.astype(np.float32), "mask"), f"{name}.mask")
    scale, in_product = mlp.residual_scale, plan.residual_in_product
    summed = add_last_product(graph, hidden, mlp.down, scale, seen, name, "fc2", residual_in_product=in_product)
    if len(rows) == stream.rows:
        return summed
    others = np.setdiff1d(everything, rows)
    idle = stream.take(graph, others, f"{name}.idle")
    constant = graph.parameter(f"{name}.idle.bias", zero_row_output(mlp))
    idle = idle.replace(graph.add(idle.matrix, constant, f"{name}.idle.residual"))
    return Stream.merge(graph, [(idle, others), (summed, rows)], f"{name}.merged")


def _classify(graph: GraphBuilder, model: ir.Model, stream: Stream, kept: Kept | None) -> Value:
    classifier = model.classifier
    plain = len(classifier.heads) == 1 and classifier.scale == 1.0 and classifier.auxiliary is None
    norm: tuple[Value, Value] | None = None
    total: Value | None = None
    for i, (row, head) in enumerate(zip(classifier.rows, classifier.heads, strict=True)):
        name = ("head", "head_dist")[i]
        features = stream.take(graph, np.array([row]), f"{name}.row").matrix
        if norm is None:
            norm = (
                graph.parameter("norm.weight", classifier.norm.weight),
                graph.parameter("norm.bias", classifier.norm.bias),
            )
        attributes = {"axis": -1, "epsilon": classifier.norm.eps}
        features = graph.op("LayerNormalization", [features, *norm], f"{name}.norm", dims(features), attributes)
        if classifier.pre_logits is not None:
            hidden = graph.linear(features, classifier.pre_logits, "pre_logits.fc")
            features = graph.op("Tanh", [hidden], "pre_logits", dims(hidden))
        weight = graph.parameter(f"{name}.weight", head.weight)
        bias = None if head.bias is None else graph.parameter(f"{name}.bias", head.bias)
        logits = graph.gemm(features, weight, bias, "logits" if plain else name)
        last = i == len(classifier.heads) - 1 and classifier.scale == 1.0 and classifier.auxiliary is None
        total = logits if total is None else graph.add(total, logits, "logits" if last else "head.sum")
    assert total is not None
    assert norm is not None
    if classifier.scale != 1.0:
        total = graph.scale(total, classifier.scale, "logits" if classifier.auxiliary is None else "head.scaled")
    if classifier.auxiliary is None:
        return total
    patches = stream.take(graph, np.arange(model.prefix, stream.rows), "aux_head.rows")
    largest = _auxiliary(graph, classifier.auxiliary, classifier.norm.eps, norm, patches, kept)
    return graph.add(total, largest, "logits")


def _auxiliary(
    graph: GraphBuilder, head: ir.Linear, eps: float, norm: tuple[Value, Value], patches: Stream, kept: Kept | None
) -> Value:
    """The largest of every class over the patches that are visible: [B, classes]."""
    attributes = {"axis": -1, "epsilon": eps}
    n = graph.op("LayerNormalization", [patches.matrix, *norm], "aux_head.norm", dims(patches.matrix), attributes)
    logits = patches.replace(graph.linear(n, head, "aux_head")).images(graph, "aux_head.images")
    if kept is not None:
        batch, rows = dims(kept.rows)
        column = graph.reshape(kept.bias, (batch, rows, 1), "aux_head.hiding")
        bias = graph.take(column, np.arange(rows - patches.rows, rows), 1, "aux_head.hiding.patches")
        logits = graph.add(logits, bias, "aux_head.visible")
    return graph.largest(logits, 1, "aux_head.largest")
