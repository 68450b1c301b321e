"""Emission of blocks that decide for each image what runs.

The decisions about branches and heads come from one Gemm on the cls rows. A gate is a multiplication, or with
`conditional` (batch 1) an ``If`` around the whole branch, whose bodies read the weights of the outer graph. Tokens that
are not used get a large negative score as keys, and their rows of a branch are multiplied by zero. With a capacity the
rows that may be used are gathered once for the block's branches and scattered back behind them: everything between has
static shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slimc import ir
from slimc.emit.attention import HeadGates, emit_gated_attention
from slimc.emit.branch import LastProduct, last_product
from slimc.emit.graph import GraphBuilder, Value, dims
from slimc.emit.mlp import hidden_units
from slimc.emit.norms import normalise
from slimc.emit.projection import stacked
from slimc.emit.stream import Stream
from slimc.ir.interpret.linear import branch_scale, zero_row_output
from slimc.targets.plan import BlockPlan, MlpPlan

# What is added to the score of a key that is not used: exp of it is 0, and float16 holds it.
_UNSEEN = -30000.0
# What is added to the score of a prefix row, which every image uses.
_ALWAYS = 1e9


@dataclass(frozen=True)
class Tokens:
    """Which rows an image uses: `used` [B, n], booleans, for rows `rows` (int64 [B * n]) of the stream, all where none."""

    used: Value
    rows: Value | None


@dataclass(frozen=True)
class _Block:
    """A block under emission: its decisions [B, n] as booleans and as floats (attention, FFN, heads) and its tokens."""

    graph: GraphBuilder
    block: ir.Block
    plan: BlockPlan
    gates: ir.Gates
    decided: Value | None
    decisions: Value | None
    tokens: Tokens | None
    conditional: bool

    @property
    def name(self) -> str:
        return self.block.name


def emit_adaptive_block(
    graph: GraphBuilder, block: ir.Block, plan: BlockPlan, stream: Stream, prefix: int, *, conditional: bool
) -> Stream:
    """The stream after `block`, which has gates."""
    gates, name = block.gates, block.name
    assert gates is not None
    decided = _decide(graph, gates, stream, name)
    decisions = None
    if decided is not None and (gates.heads is not None or not conditional):
        decisions = graph.as_float(decided, f"{name}.decisions")
    normalised: Stream | None = None
    tokens = None
    if gates.tokens is not None and plan.scores_tokens:
        norm = normalise(graph, stream.matrix, gates.tokens.norm, f"{name}.norm1")
        normalised = stream.replace(norm)
        tokens = choose_tokens(graph, gates.tokens, normalised, prefix, name)
    this = _Block(graph, block, plan, gates, decided, decisions, tokens, conditional)
    work, normalised = _gather(this, stream), None if normalised is None else _gather(this, normalised, ".norm1")
    work = _attention(this, work, normalised)
    scattered = tokens is not None and tokens.rows is not None and block.live is None
    if scattered and not gates.tokens_gate_mlp:
        work, scattered = _scatter(this, stream, work), False
    work = _mlp(this, work)
    return _scatter(this, stream, work) if scattered else work


def _decide(graph: GraphBuilder, gates: ir.Gates, stream: Stream, name: str) -> Value | None:
    """The branch and head decisions [B, n], booleans, in the order attention, FFN, heads; none where there is none."""
    policies = [linear for linear in (gates.attention, gates.mlp, gates.heads) if linear is not None]
    if not policies:
        return None
    first = graph.constant(np.arange(stream.batch) * stream.rows, "first")
    p = graph.gather(stream.matrix, first, f"{name}.policy.row")
    if gates.norm is not None:
        p = normalise(graph, p, gates.norm, f"{name}.norm_policy")
    logits = graph.linear(p, stacked(policies), f"{name}.policy")
    return graph.exceeds(logits, 0.0, f"{name}.decided")


def choose_tokens(graph: GraphBuilder, gate: ir.TokenGate, normalised: Stream, prefix: int, name: str) -> Tokens:
    """The rows that `gate` uses of a stream that its norm has been applied to; prefix rows come first."""
    batch, count = normalised.batch, normalised.rows
    module = f"{name}.token_select"
    column = graph.linear(normalised.matrix, gate.score, module)
    always = np.where(np.arange(count) < prefix, _ALWAYS, 0.0).astype(np.float32)
    scores = graph.reshape(column, (batch, count), f"{module}.rows")
    scores = graph.add(scores, graph.constant(always[None], "always"), f"{module}.scores")
    rows = None
    if gate.capacity is not None and gate.capacity < count - prefix:
        scores, rows = _best(graph, scores, prefix + gate.capacity, module)
    return Tokens(graph.exceeds(scores, gate.threshold, f"{name}.tokens"), rows)


def _best(graph: GraphBuilder, scores: Value, capacity: int, name: str) -> tuple[Value, Value]:
    """The `capacity` best of the scores [B, N], falling (of equal ones the first), and their rows of the stream."""
    batch, count = dims(scores)
    best, indices = graph.top_k(scores, capacity, f"{name}.kept")
    if batch > 1:
        first = graph.constant(np.arange(batch)[:, None] * count, "first")
        indices = graph.add(indices, first, f"{name}.kept.rows")
    return best, graph.reshape(indices, (batch * capacity,), f"{name}.kept.flat")


def _gather(this: _Block, stream: Stream, part: str = "") -> Stream:
    """The rows of `stream` that the block may use."""
    if this.tokens is None or this.tokens.rows is None:
        return stream
    return stream.replace(this.graph.gather(stream.matrix, this.tokens.rows, f"{this.name}{part}.gathered"))


def _scatter(this: _Block, stream: Stream, work: Stream) -> Stream:
    """`stream` with the rows of `work` put back."""
    assert this.tokens is not None
    assert this.tokens.rows is not None
    return stream.replace(this.graph.scatter(stream.matrix, this.tokens.rows, work.matrix, f"{this.name}.scattered"))


def _attention(this: _Block, work: Stream, normalised: Stream | None) -> Stream:
    """`work` with the attention branch added; only its live rows where some end here."""
    graph, plan, name = this.graph, this.plan.attention, f"{this.name}.attn"
    live = ir.live_rows(this.block, work.rows)
    queries = work.take(graph, live, f"{this.name}.live")
    if plan is None or (not plan.node.heads and plan.node.output_bias is None):
        return queries
    attention = plan.node

    def branch() -> Value:
        if not attention.heads and attention.output_bias is not None:
            factor = branch_scale(attention.residual_scale, attention.layer_scale)
            return graph.parameter(f"{name}.proj.bias", attention.output_bias * factor)
        rows = normalised or work.replace(normalise(graph, work.matrix, attention.norm, f"{this.name}.norm1"))
        gates = HeadGates(
            lambda x, numbers, label: _times_channels(this, x, numbers, work.batch, label), this.gates.off_heads
        )
        return emit_gated_attention(graph, plan, rows, name, _key_bias(this, name), gates)

    tokens = this.tokens if len(live) == work.rows else None
    return _add(this, queries, branch, this.gates.attention, 0, tokens, name)


def _key_bias(this: _Block, name: str) -> Value | None:
    """What is added to the scores of the keys: [B, 1, 1, keys]."""
    if this.tokens is None:
        return None
    graph, used = this.graph, this.tokens.used
    batch, keys = dims(used)
    used = graph.reshape(used, (batch, 1, 1, keys), f"{name}.keys_used")
    zero, unseen = (graph.constant(np.float32(number)) for number in (0.0, _UNSEEN))
    return graph.op("Where", [used, zero, unseen], f"{name}.key_bias", dims(used), dtype=zero.dtype)


def _mlp(this: _Block, work: Stream) -> Stream:
    """`work` with the FFN branch added."""
    plan, name = this.plan.mlp, f"{this.name}.mlp"
    if plan is None:
        return work
    index = 0 if this.gates.attention is None else 1
    tokens = this.tokens if this.gates.tokens_gate_mlp and this.block.live is None else None
    return _add(this, work, lambda: _feed_forward(this, plan, work, name), this.gates.mlp, index, tokens, name)


def _feed_forward(this: _Block, plan: MlpPlan, work: Stream, name: str) -> Value:
    graph, mlp = this.graph, plan.node
    if plan.rows == 0:
        return graph.parameter(f"{name}.fc2.bias", zero_row_output(mlp))
    n = normalise(graph, work.matrix, mlp.norm, f"{this.name}.norm2")

    def gated(x: Value) -> Value:
        return _times_channels(this, x, mlp.input_gates, work.batch, f"{name}.fc1.gated")

    hidden = hidden_units(graph, mlp, n, name, gated)
    hidden = _times_channels(this, hidden, mlp.unit_gates, work.batch, f"{name}.act.gated")
    return last_product(graph, hidden, LastProduct(mlp.down, f"{name}.fc2", mlp.residual_scale, mlp.layer_scale), name)


def _times_channels(this: _Block, x: Value, numbers: ir.IndexArray | None, batch: int, name: str) -> Value:
    """`x` [B * rows, n] times the head decisions that `numbers` [n] names."""
    if numbers is None or (numbers < 0).all():
        return x
    graph, (rows, width) = this.graph, dims(x)
    if batch == 1:
        return graph.mul(x, _pick(this, numbers, f"{name}.gates"), name)
    images = graph.reshape(x, (batch, rows // batch, width), f"{name}.images")
    gated = graph.mul(images, _pick(this, numbers[None], f"{name}.gates"), f"{name}.product")
    return graph.reshape(gated, (rows, width), name)


def _pick(this: _Block, numbers: ir.IndexArray, name: str) -> Value:
    """The head decisions `numbers` [...], -1 for always: [B, ...]."""
    graph, decisions = this.graph, this.decisions
    assert decisions is not None
    batch, count = dims(decisions)
    if (numbers < 0).any():
        one = graph.constant(np.ones((batch, 1), np.float32), "ones")
        decisions = graph.concat([decisions, one], 1, f"{name}.padded")
    first = sum(linear is not None for linear in (this.gates.attention, this.gates.mlp))
    return graph.pick(decisions, np.where(numbers < 0, count, first + numbers), name)


def _add(
    this: _Block,
    stream: Stream,
    branch: Callable[[], Value],
    policy: ir.Linear | None,
    index: int,
    tokens: Tokens | None,
    name: str,
) -> Stream:
    """`stream` plus the branch: on the tokens that are used, and where decision number `index`, if there is one, says so."""
    graph = this.graph
    condition = None
    if policy is not None and this.conditional:
        assert this.decided is not None
        condition = graph.reshape(graph.pick(this.decided, np.array([index]), f"{name}.gate"), (), f"{name}.runs")

    def summed() -> Value:
        added = branch()
        gate = None if policy is None or condition is not None else index
        factor = _row_factor(this, stream, gate, tokens, name)
        added = added if factor is None else graph.mul(added, factor, f"{name}.branch")
        return graph.add(stream.matrix, added, f"{name}.residual")

    if condition is None:
        return stream.replace(summed())
    return stream.replace(graph.branch(condition, summed, lambda: stream.matrix, f"{name}.if"))


def _row_factor(this: _Block, stream: Stream, index: int | None, tokens: Tokens | None, name: str) -> Value | None:
    """What multiplies the rows of a branch [B * rows, 1]; none for one everywhere."""
    graph, shape = this.graph, (stream.batch * stream.rows, 1)
    factor = None if tokens is None else graph.as_float(tokens.used, f"{name}.tokens_used")
    if index is not None:
        assert this.decisions is not None
        gate = graph.pick(this.decisions, np.array([index]), f"{name}.branch_gate")
        if factor is None:
            factor = graph.constant(np.ones((1, stream.rows), np.float32), "ones")
        factor = graph.mul(factor, gate, f"{name}.row_gate")
    return None if factor is None else graph.reshape(factor, shape, f"{name}.row_gate.rows")
