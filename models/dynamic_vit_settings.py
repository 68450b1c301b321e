"""What a DynamicViT checkpoint's weights do not say: keep ratios, pruning locations, heads, the residual divisor.

Options come first, then the training arguments in the file, then the published networks of the same family, width and
depth. What none of them tells is an error that names the option.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slimc.errors import BudgetError, CheckpointError, OptionError
from slimc.models.options import DynamicVitOptions

Family = Literal["DeiT", "LV-ViT"]


@dataclass(frozen=True)
class Published:
    """A network of the paper (arXiv 2106.02034, section 4)."""

    family: Family
    dim: int
    depth: int
    heads: int
    pruning_loc: tuple[int, ...]


PUBLISHED = (
    Published("DeiT", 256, 12, 4, (3, 6, 9)),
    Published("DeiT", 384, 12, 6, (3, 6, 9)),
    Published("DeiT", 768, 12, 12, (3, 6, 9)),
    Published("LV-ViT", 384, 16, 6, (4, 8, 12)),
    Published("LV-ViT", 512, 20, 8, (5, 10, 15)),
)
_SKIP_LAM: Mapping[Family, float] = {"DeiT": 1.0, "LV-ViT": 2.0}


@dataclass(frozen=True)
class Shapes:
    """What the weights do say."""

    path: Path
    family: Family
    dim: int
    depth: int
    predictors: int
    patches: int


def number_of_heads(shapes: Shapes, options: DynamicVitOptions) -> int:
    """Heads of every attention.

    Raises:
        OptionError: nothing tells them, or they do not divide the width.
    """
    known = {p.heads for p in PUBLISHED if (p.family, p.dim, p.depth) == (shapes.family, shapes.dim, shapes.depth)}
    if options.num_heads is None and not known:
        raise OptionError(
            f"--num-heads: {shapes.path}: the shapes do not tell the heads of a {shapes.family} of width {shapes.dim} "
            f"and depth {shapes.depth}, which is none of the published ones; give their number"
        )
    heads = known.pop() if options.num_heads is None else options.num_heads
    if heads < 1 or shapes.dim % heads:
        raise OptionError(f"--num-heads: {heads} does not divide the width {shapes.dim}")
    return heads


def pruning_locations(shapes: Shapes, args: Mapping[str, Any], options: DynamicVitOptions) -> tuple[int, ...]:
    """The blocks before which patches are dropped, ascending.

    Raises:
        OptionError: nothing tells them, or they do not fit the depth and the number of predictors.
    """
    given = options.pruning_loc if options.pruning_loc is not None else args.get("pruning_loc")
    if given is None:
        given = _published_locations(shapes)
    source = "--pruning-loc" if options.pruning_loc is not None else f"{shapes.path}: args.pruning_loc"
    if not _numbers(given) or not all(isinstance(n, int) and 0 <= n < shapes.depth for n in given):
        raise OptionError(f"{source}: {_text(given)} are not blocks; expected numbers from 0 to {shapes.depth - 1}")
    if len(given) != shapes.predictors or any(a >= b for a, b in itertools.pairwise(given)):
        raise OptionError(
            f"{source}: {_text(given)}; expected {shapes.predictors} ascending numbers, one for each predictor in the file"
        )
    return tuple(given)


def _published_locations(shapes: Shapes) -> tuple[int, ...]:
    for network in PUBLISHED:
        if (network.family, network.depth, len(network.pruning_loc)) == (
            shapes.family,
            shapes.depth,
            shapes.predictors,
        ):
            return network.pruning_loc
    raise OptionError(
        f"--pruning-loc: {shapes.path}: nothing tells where the {shapes.predictors} predictors of a {shapes.family} of "
        f"depth {shapes.depth} stand; give the blocks before which they do, such as 3,6,9"
    )


def keep_ratios(shapes: Shapes, args: Mapping[str, Any], options: DynamicVitOptions) -> tuple[float, ...]:
    """The share of all patches that each stage keeps: as given, or r, r^2, r^3 ... of a base rate r.

    Raises:
        BudgetError: there is no rate, it is not in (0, 1], there is another number of them, or one keeps nothing.
        OptionError: rate and ratios are both given.
    """
    if options.keep_rate is not None and options.keep_ratios is not None:
        raise OptionError("--keep-ratios: contradicts --keep-rate; give one of the two")
    if options.keep_ratios is not None:
        source, ratios = "--keep-ratios", tuple(options.keep_ratios)
    else:
        source = "--keep-rate" if options.keep_rate is not None else f"{shapes.path}: args.base_rate"
        rate = args.get("base_rate") if options.keep_rate is None else options.keep_rate
        if rate is None:
            raise BudgetError(
                f"{shapes.path}: has no keep rate; give --keep-rate R, or --keep-ratios one for each stage"
            )
        ratios = tuple(_ratio(rate, source) ** i for i in range(1, shapes.predictors + 1))
    if len(ratios) != shapes.predictors:
        raise BudgetError(
            f"{source}: {_text(ratios)}; expected {shapes.predictors}, one for each predictor in the file"
        )
    for ratio in ratios:
        if int(shapes.patches * _ratio(ratio, source)) < 1:
            raise BudgetError(f"{source}: {ratio:g} of {shapes.patches} patches keeps none")
    return ratios


def residual_divisor(shapes: Shapes, options: DynamicVitOptions) -> float:
    """What divides the residual branches: LV-ViT's skip_lam.

    Raises:
        OptionError: it is not a positive number, or given for a DeiT.
    """
    if options.skip_lam is None:
        return _SKIP_LAM[shapes.family]
    if shapes.family != "LV-ViT":
        raise OptionError(f"--skip-lam: {shapes.path} is DeiT-based, which divides no residual branch")
    if not math.isfinite(options.skip_lam) or options.skip_lam <= 0:
        raise OptionError(f"--skip-lam: {options.skip_lam} cannot divide a branch; expected a positive number")
    return options.skip_lam


def count_predictors(path: Path, predictors: int, depth: int) -> int:
    """Check the number of predictors found in a file.

    Raises:
        CheckpointError: there are none, or more than blocks.
    """
    if not 0 < predictors <= depth:
        raise CheckpointError(f"{path}: {predictors} predictors (score_predictor.i) for {depth} blocks")
    return predictors


def _ratio(value: object, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise BudgetError(f"{source}: {value!r} is not a keep rate; expected a number above 0 and up to 1")
    return float(value)


def _numbers(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and not any(isinstance(n, bool) for n in value)


def _text(values: object) -> str:
    return (
        ",".join(f"{v}" for v in values)
        if isinstance(values, Sequence) and not isinstance(values, str)
        else repr(values)
    )
