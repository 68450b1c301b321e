"""What the IR means, runnable: a `Model` evaluated in float64 NumPy.

This is the definition that every pass must keep (to 1e-9) and that the emitted ONNX model must reach in float32. Nothing
here is fast on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slimc.ir import Attention, Block, BoolArray, Constant, FloatArray, Gates, IndexArray, Mlp, Model, live_rows
from slimc.ir.interpret.attention import attend, visible
from slimc.ir.interpret.embedding import embed
from slimc.ir.interpret.gates import Decisions, channel_gates, decide, undecided
from slimc.ir.interpret.linear import Float64, apply, branch_scale, hidden_units, normalise
from slimc.ir.interpret.readout import read_out, token_rows
from slimc.ir.interpret.tokens import Stream, kept_patches, select_tokens, selection_margin


@dataclass(frozen=True, eq=False)
class Trace:
    """The outputs by name; the patches that every selection kept, ascending, [B, K] each, and how surely all of them do so
    [B]; what every block decided.
    """

    outputs: Mapping[str, Float64]
    kept: tuple[IndexArray, ...]
    margins: Float64
    decisions: tuple[Decisions, ...] = ()

    @property
    def logits(self) -> Float64:
        """Logits [B, classes], of a model that has this output."""
        return self.outputs["logits"]


def interpret(model: Model, images: FloatArray) -> Float64:
    """Logits [B, classes] of `images` [B, channels, height, width], of a model that has this output."""
    return trace(model, images).logits


def trace(model: Model, images: FloatArray) -> Trace:
    """Outputs of `images` [B, channels, height, width], and what was selected on the way."""
    stream = start(model, np.asarray(images, np.float64))
    kept, decisions = [], []
    outputs: dict[str, Float64] = {}
    margins = np.full(len(images), np.inf)
    for i, block in enumerate(model.blocks):
        if block.select is not None:
            margins = np.minimum(margins, selection_margin(block.select, stream))
            stream = select_tokens(block.select, stream)
            kept.append(kept_patches(stream))
        decisions.append(decide(block.gates, stream.rows, model.prefix) if block.gates else undecided(stream.rows))
        rows = run_block(block, stream.rows, stream.kept, decisions[-1])
        live = slice(None) if block.live is None else block.live
        stream = Stream(rows, stream.patches[:, live], stream.kept[:, live])
        for output in model.outputs:
            if output.block == i:
                outputs[output.name] = token_rows(output, stream.rows, model.grid)
    patches = stream.kept & (stream.patches >= 0)
    last = [output for output in model.outputs if output.kind != "blocks"]
    outputs |= read_out(model.classifier, last, stream.rows, model.grid, patches)
    return Trace(
        {output.name: outputs[output.name] for output in model.outputs}, tuple(kept), margins, tuple(decisions)
    )


def start(model: Model, images: Float64) -> Stream:
    """The first stream, every row kept."""
    rows = embed(model.embedding, images)
    patches = model.embedding.patch.patches
    if patches is None:
        patches = np.arange(rows.shape[1] - model.prefix)
    shape = rows.shape[:2]
    return Stream(rows, np.broadcast_to(np.r_[np.arange(-model.prefix, 0), patches], shape), np.ones(shape, bool))


def run_block(block: Block, x: Float64, kept: BoolArray | None = None, decided: Decisions | None = None) -> Float64:
    """The rows after one block; `kept` [B, N] are its attention's keys, none for all, `decided` its decisions, if any."""
    decided, gates = decided or undecided(x), block.gates or Gates()
    live = live_rows(block, x.shape[1])
    y = x[:, live]
    if isinstance(block.attention, Attention):
        added = attend(block.attention, x, kept, decided, gates) * decided.tokens[:, :, None]
        y = y + added[:, live] * decided.attention[:, None, None]
    elif isinstance(block.attention, Constant):
        y = y + block.attention.vector
    if isinstance(block.mlp, Mlp):
        used = decided.tokens[:, live, None] if gates.tokens_gate_mlp else 1.0
        y = y + feed_forward(block.mlp, y, decided) * used * decided.mlp[:, None, None]
    elif isinstance(block.mlp, Constant):
        y = y + block.mlp.vector
    return y


def feed_forward(mlp: Mlp, x: Float64, decided: Decisions | None = None) -> Float64:
    """What the FFN branch adds to every row of `x`."""
    n = visible(normalise(mlp.norm, x), mlp.token_mask, mlp.rows)
    if mlp.inputs is not None:
        n = n[:, :, mlp.inputs]
    hidden = hidden_units(mlp, n * channel_gates(mlp.input_gates, decided))
    added = apply(mlp.down, hidden * channel_gates(mlp.unit_gates, decided))
    return added * branch_scale(mlp.residual_scale, mlp.layer_scale)
