"""What passes share: walking the branches of a model while keeping identity where nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from slimc.ir import Attention, Block, Constant, Mlp, Model

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
