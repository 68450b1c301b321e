"""Masks on a plain vision transformer, from any method: arrays by name, what they may be, and the network in IR under them.

    patches              [patches], or [depth, patches]: patches of every block, or block by block
    blocks.3.patches     [patches]: those that block 3 sees; the others are zero rows behind its norms
    blocks.3.heads       [H]: whole heads
    blocks.3.channels    [H, d]: channels of q, k and v at once
    blocks.3.qk          [H, d]: channels of queries and keys
    blocks.3.v           [H, d]: channels of values
    blocks.3.hidden      [F]: hidden units of the FFN
    attn_pool.heads, ...: likewise of a pool by a learnt query

Entries are 1 where something stays and 0 where it goes, of any type. What has several masks stays where all of them say so.
Channels and patches count as in the module. A pool reads the patches that the last block sees.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slimc import ir
from slimc.errors import CheckpointError, OptionError
from slimc.ir import FloatArray, IndexArray
from slimc.ir.interpret.attention import turns_key_bias

_NAME = re.compile(r"(?:blocks\.(?P<block>\d+)|(?P<pool>attn_pool))\.(?P<kind>patches|heads|channels|qk|v|hidden)")


@dataclass(frozen=True, eq=False)
class BlockMasks:
    """The masks of one block, 0 and 1: q and k [H, d], v [H, d], hidden units [F], rows of the stream [N]; none: all one."""

    qk: FloatArray | None = None
    value: FloatArray | None = None
    hidden: FloatArray | None = None
    tokens: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class NetworkMasks:
    """The masks of a network: of every block, and of its latent pool. `read` are the rows that its pool reads, none: all."""

    blocks: tuple[BlockMasks, ...]
    pool: BlockMasks | None = None
    read: IndexArray | None = None


def read_mask_file(path: Path) -> dict[str, Any]:
    """Masks by name, of a .npz or .safetensors file; nothing in it is executed.

    Raises:
        CheckpointError: it is missing, or something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected masks in a .npz or .safetensors file") from None
    except Exception as error:  # both readers raise whatever they come across in a damaged file
        if isinstance(error, MemoryError):
            raise
        kind = type(error).__name__ if not isinstance(error, zipfile.BadZipFile) else "damaged"
        raise CheckpointError(
            f"{path}: cannot be read as masks ({kind}); expected a .npz or .safetensors file"
        ) from None


def read_masks(model: ir.Model, given: Mapping[str, Any]) -> NetworkMasks:
    """The masks `given` by name for the unmasked `model`.

    Raises:
        OptionError: there is nothing of such a name to mask, or a mask cannot be used; the message names it.
    """
    if not given:
        raise OptionError(f"masks: there are none; expected {_names(model)}")
    blocks = [_Collected(block.attention, block.mlp) for block in model.blocks]
    latent = model.classifier.pool if isinstance(model.classifier.pool, ir.LatentPool) else None
    pool = _Collected(latent, None if latent is None else latent.mlp)
    patches = ir.embedded_rows(model) - model.prefix
    rows: list[FloatArray] = [np.ones(patches, np.float32) for _ in blocks]
    for name, value in given.items():
        array = _binary(name, value)
        if name == "patches":
            for i, own in enumerate(_each(name, array, len(blocks), patches)):
                rows[i] = rows[i] * own
            continue
        match = _NAME.fullmatch(name)
        number = -1 if match is None or match["block"] is None else int(match["block"])
        if match is None or number >= len(blocks) or (match["pool"] and latent is None):
            raise OptionError(f"masks: this network has no {name}; expected {_names(model)}")
        if match["kind"] == "patches":
            if match["pool"]:
                raise OptionError(f"masks: {name}: a pool reads what the last block sees; give {_last(model)}")
            rows[number] = rows[number] * _shaped(name, array, (patches,))
        else:
            (pool if match["pool"] else blocks[number]).add(name, match["kind"], array)
    return _finished(model, blocks, pool, rows)


class _Collected:
    """Masks of one attention and its FFN, as they come in."""

    def __init__(self, attention: Any, mlp: Any) -> None:  # noqa: ANN401
        self.heads: tuple[Any, ...] = getattr(attention, "heads", ())
        self.normed = isinstance(attention, ir.Attention) and attention.normed
        self.width = 0 if mlp is None else len(mlp.up.weight)
        self.qk: FloatArray | None = None
        self.value: FloatArray | None = None
        self.hidden: FloatArray | None = None

    def add(self, name: str, kind: str, array: FloatArray) -> None:
        """Take in the mask `name`."""
        if kind == "hidden":
            self.hidden = _and(self.hidden, _shaped(name, array, (self.width,)))
            return
        count = len(self.heads)
        d_qk = len(self.heads[0].key.weight) if count else 0
        d_v = len(self.heads[0].value.weight) if count else 0
        if kind == "heads":
            heads = _shaped(name, array, (count,))[:, None]
            self.value = _and(self.value, np.repeat(heads, d_v, axis=1))
            if not self.normed:
                self.qk = _and(self.qk, np.repeat(heads, d_qk, axis=1))
            return
        if kind in ("qk", "channels"):
            if self.normed:
                raise OptionError(
                    f"masks: {name}: queries and keys have a norm, which makes something else of zeros; mask v or heads"
                )
            self.qk = _and(self.qk, _shaped(name, array, (count, d_qk)))
        if kind in ("v", "channels"):
            self.value = _and(self.value, _shaped(name, array, (count, d_v)))

    def masks(self) -> BlockMasks:
        """What came in."""
        return BlockMasks(self.qk, self.value, self.hidden)


def _finished(model: ir.Model, blocks: list[_Collected], pool: _Collected, rows: list[FloatArray]) -> NetworkMasks:
    """The masks of all blocks, with those of the rows; a pool reads what the last block sees."""
    finished = []
    for block, collected, own in zip(model.blocks, blocks, rows, strict=True):
        tokens: FloatArray | None = None
        if not own.all():
            check_rows(block, f"masks: {block.name}.patches")
            tokens = np.concatenate([np.ones(model.prefix, own.dtype), own])
        finished.append(replace(collected.masks(), tokens=tokens))
    read: IndexArray | None = None
    last = finished[-1].tokens if finished else None
    if last is not None and model.classifier.pool is not None:
        kept = np.flatnonzero(last)
        if not last[model.prefix :].any():
            raise OptionError("masks: the last block sees no patch, and nothing is left to pool; keep one")
        read = kept
    return NetworkMasks(tuple(finished), None if not pool.heads else pool.masks(), read)


def check_rows(block: ir.Block, name: str) -> None:
    """Check that rows may be masked in `block`, by the mask `name`.

    Raises:
        OptionError: the keys of masked rows differ.
    """
    assert isinstance(block.attention, ir.Attention)
    if turns_key_bias(block.attention):
        raise OptionError(
            f"{name}: its keys have a bias that is turned by position, so that masked patches differ and cannot leave; keep "
            "all patches"
        )


def apply_masks(model: ir.Model, masks: NetworkMasks, order: IndexArray | None) -> ir.Model:
    """The unmasked `model` under `masks`; its queries and keys have the channels of the module in this `order`."""
    blocks = []
    for block, own in zip(model.blocks, masks.blocks, strict=True):
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, ir.Attention)
        assert isinstance(mlp, ir.Mlp)
        heads = tuple(_masked(head, i, own, order) for i, head in enumerate(attention.heads))
        attention = replace(attention, heads=heads, token_mask=_like(own.tokens, mlp))
        blocks.append(
            replace(
                block,
                attention=attention,
                mlp=replace(mlp, mask=_like(own.hidden, mlp), token_mask=_like(own.tokens, mlp)),
            )
        )
    return replace(model, blocks=tuple(blocks), classifier=_classifier(model.classifier, masks))


def _classifier(classifier: ir.Classifier, masks: NetworkMasks) -> ir.Classifier:
    pool = classifier.pool
    if pool is not None and masks.read is not None:
        pool = replace(pool, rows=np.intersect1d(pool.rows, masks.read))
    if isinstance(pool, ir.LatentPool) and masks.pool is not None:
        heads = tuple(_masked(head, i, masks.pool, None) for i, head in enumerate(pool.heads))
        mlp = None if pool.mlp is None else replace(pool.mlp, mask=_like(masks.pool.hidden, pool.mlp))
        pool = replace(pool, heads=heads, mlp=mlp)
    return classifier if pool is classifier.pool else replace(classifier, pool=pool)


def _masked(head: Any, number: int, masks: BlockMasks, order: IndexArray | None) -> Any:  # noqa: ANN401
    """A head, or one of a latent pool, under its masks."""
    dtype = head.output.dtype
    qk = None if masks.qk is None else masks.qk[number].astype(dtype)
    if qk is not None and order is not None:
        qk = qk[order]
    value = None if masks.value is None else masks.value[number].astype(dtype)
    return replace(head, mask=qk, value_mask=value)


def _like(mask: FloatArray | None, mlp: ir.Mlp) -> FloatArray | None:
    return None if mask is None else mask.astype(mlp.up.weight.dtype)


def _and(first: FloatArray | None, second: FloatArray) -> FloatArray:
    return second if first is None else first * second


def _binary(name: str, value: Any) -> FloatArray:  # noqa: ANN401
    """A mask as float32.

    Raises:
        OptionError: it has entries that are neither 0 nor 1.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise OptionError(
            f"masks: {name}: has entries that are neither 0 nor 1; multiply soft masks into the weights first"
        )
    return array.astype(np.float32)


def _shaped(name: str, array: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    if array.shape != shape:
        raise OptionError(f"masks: {name}: has the shape {list(array.shape)}, expected {list(shape)}")
    return array


def _each(name: str, array: FloatArray, depth: int, patches: int) -> FloatArray:
    """The mask of the patches of every block [depth, patches]."""
    if array.shape not in ((patches,), (depth, patches)):
        raise OptionError(
            f"masks: {name}: has the shape {list(array.shape)}, expected [{patches}] or [{depth}, {patches}]"
        )
    return np.broadcast_to(array, (depth, patches))


def _last(model: ir.Model) -> str:
    return f"blocks.{len(model.blocks) - 1}.patches"


def _names(model: ir.Model) -> str:
    pool = ", attn_pool.heads" if isinstance(model.classifier.pool, ir.LatentPool) else ""
    return (
        f"patches, blocks.0.heads, .channels, .qk, .v, .hidden or .patches up to blocks.{len(model.blocks) - 1}{pool}"
    )
