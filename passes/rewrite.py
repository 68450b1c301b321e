"""What passes share: walking the branches of a model while keeping identity where nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from slimc.ir import Attention, Block, Constant, IndexArray, LatentPool, Mlp, Model, Rotation

AttentionBranch = Attention | Constant | None
MlpBranch = Mlp | Constant | None


class Pass(Protocol):
    """A rewrite that keeps what a model means; it returns the same object when it had nothing to do."""

    def __call__(self, model: Model) -> Model:
        """The rewritten model."""
        ...


def map_branches(
    model: Model,
    attention: Callable[[Attention], AttentionBranch] | None = None,
    mlp: Callable[[Mlp], MlpBranch] | None = None,
) -> Model:
    """`model` with its attention and FFN branches rewritten; the same object where every branch stayed itself."""

    def rewrite(block: Block) -> Block:
        first: AttentionBranch = block.attention
        second: MlpBranch = block.mlp
        if attention is not None and isinstance(first, Attention):
            first = attention(first)
        if mlp is not None and isinstance(second, Mlp):
            second = mlp(second)
        same = first is block.attention and second is block.mlp
        return block if same else replace(block, attention=first, mlp=second)

    return with_blocks(model, tuple(rewrite(block) for block in model.blocks))


def with_blocks(model: Model, blocks: tuple[Block, ...]) -> Model:
    """`model` with other blocks; the same object where they are the same objects."""
    if all(new is old for new, old in zip(blocks, model.blocks, strict=True)):
        return model
    return replace(model, blocks=blocks)


def map_pool(
    model: Model,
    change: Callable[[LatentPool], LatentPool] | None = None,
    mlp: Callable[[Mlp], Mlp] | None = None,
) -> Model:
    """`model` with its latent pool rewritten, and then the FFN in that; the same object where all stayed itself."""
    pool = model.classifier.pool
    if not isinstance(pool, LatentPool):
        return model
    changed = pool if change is None else change(pool)
    if mlp is not None and changed.mlp is not None:
        hidden = mlp(changed.mlp)
        changed = changed if hidden is changed.mlp else replace(changed, mlp=hidden)
    return model if changed is pool else replace(model, classifier=replace(model.classifier, pool=changed))


def map_rotations(attention: Attention, change: Callable[[Rotation], Rotation]) -> Attention:
    """`attention` with the rotations of its heads rewritten; heads that shared one go on sharing one."""
    changed: dict[int, Rotation] = {}
    heads = []
    for head in attention.heads:
        if head.rotation is not None:
            if id(head.rotation) not in changed:
                changed[id(head.rotation)] = change(head.rotation)
            head = replace(head, rotation=changed[id(head.rotation)])  # noqa: PLW2901
        heads.append(head)
    return attention if not changed else replace(attention, heads=tuple(heads))


def renumber_reads(model: Model, after: Sequence[IndexArray], last: IndexArray) -> Model:
    """`model` whose outputs and classifier find row i of the stream at `after[block][i]`, or `last[i]` behind all blocks."""
    classifier = model.classifier
    pool = classifier.pool
    if pool is not None:
        pool = replace(pool, rows=last[pool.rows])
    rows = tuple(int(last[row]) for row in classifier.rows)
    outputs = tuple(
        output
        if output.rows is None
        else replace(output, rows=(last if output.block is None else after[output.block])[output.rows])
        for output in model.outputs
    )
    return replace(model, classifier=replace(classifier, rows=rows, pool=pool), outputs=outputs)
