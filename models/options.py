"""What a user may say about a checkpoint that it does not say itself: one class of options a system.

A field is an option of the command line and a keyword of `slimc.load`: ``budget_attn`` is ``--budget-attn``. None leaves a
setting to the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from slimc.errors import BudgetError, OptionError

# The options that say how much of a network stays.
WHAT_STAYS = frozenset({"budget", "budget_attn", "budget_mlp", "budget_patch", "keep_rate", "keep_ratios", "masks"})
HeadEffect = Literal["plain", "v2", "attn"]


def option(help: str, *, parse: Callable[[str, str], Any] | None = None, metavar: str | None = None) -> Any:  # noqa: A002, ANN401
    """A field that is an option.

    Args:
        help: its line in ``--help``.
        parse: makes a value of the text that was typed and the option's name; none where the field's type tells how.
        metavar: what stands for the value in ``--help``.
    """
    return field(default=None, metadata={"help": help, "parse": parse, "metavar": metavar})


def flag(name: str) -> str:
    """The option of the command line for the field `name`."""
    return "--" + name.replace("_", "-")


def said(options: Mapping[str, Any], ema: bool | None) -> list[str]:
    """What was said about a checkpoint, as it stands on the command line: those of `options` that are not None."""
    found = {"ema": ema, **options}
    return [flag(f"no_{name}" if value is False else name) for name, value in found.items() if value is not None]


def share(text: str, name: str) -> float:
    """A number in (0, 1].

    Raises:
        BudgetError: `text` is something else; the message names the option `name`.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        shown = repr(text) if value == -1.0 else text
        raise BudgetError(f"{name}: {shown} is not a share; expected a number above 0 and up to 1")
    return value


def shares(text: str, name: str) -> tuple[float, ...]:
    """Numbers in (0, 1], separated by commas."""
    return tuple(share(part, name) for part in text.split(","))


def blocks(text: str, name: str) -> tuple[int, ...]:
    """Numbers of blocks, separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{name}: {text!r} are not blocks; expected numbers such as 3,6,9") from None


def crop_share(text: str, name: str) -> float:
    """The share of an image that a centre crop keeps, in (0, 1].

    Raises:
        OptionError: `text` is something else; the message names the option `name`.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise OptionError(f"{name}: {text!r} is no share of an image; expected a number above 0 and up to 1")
    return value


def interpolation(text: str, name: str) -> str:
    """The name of an interpolation, as timm has them."""
    from slimc.ir.preprocessing import INTERPOLATIONS  # with numpy, which --help does without

    if text not in INTERPOLATIONS:
        raise OptionError(f"{name}: {text!r} is no interpolation; expected {', '.join(INTERPOLATIONS)}")
    return text


def head_effect(text: str, name: str) -> HeadEffect:
    """One of `HeadEffect`."""
    for known in get_args(HeadEffect):
        if text == known:
            effect: HeadEffect = known
            return effect
    raise OptionError(f"{name}: {text!r} is unknown; expected {', '.join(get_args(HeadEffect))}")


@dataclass(frozen=True)
class ModelOptions:
    """Options of every system: which weights to take, geometry that shapes leave open, and how images become inputs."""

    state_key: str | None = option(
        "Which weights, where the file has several: the names that lead to them, such as state_dict.student.",
        metavar="PATH",
    )
    arch: str | None = option(
        "timm's name of the network, such as vit_small_patch14_dinov2, where a file of plain weights does not say it.",
        metavar="NAME",
    )
    model_kwargs: list[str] | None = option(  # noqa: RUF009 - it is `dataclasses.field`
        "Further arguments of timm's for it, such as depth=6.", metavar="KEY=VALUE ..."
    )
    num_classes: int | None = option("0 leaves out its classifier. Default: what the weights have.")
    img_size: tuple[int, int] | None = option("Image height and width in pixels.", metavar="H W")
    num_heads: int | None = option("Heads of an attention, where the checkpoint cannot tell.")
    mean: tuple[float, float, float] | None = option(
        "Mean of the images in training, in [0, 1]. Default: the file's, else ImageNet's.", metavar="R G B"
    )
    std: tuple[float, float, float] | None = option("Their standard deviation; likewise.", metavar="R G B")
    crop_pct: float | None = option(
        "Share of the resized image that the centre crop keeps. Default: the file's, else 0.875.",
        parse=crop_share,
        metavar="SHARE",
    )
    interpolation: str | None = option(
        "bicubic, bilinear, nearest, lanczos, box or hamming. Default: the file's, else bicubic.",
        parse=interpolation,
        metavar="NAME",
    )


@dataclass(frozen=True)
class TimmOptions(ModelOptions):
    """Options of plain vision transformers: the masks of a pruning method."""

    masks: str | None = option(
        "Masks by name (blocks.3.heads, .channels, .qk, .v, .hidden, patches), in a .npz or .safetensors file.",
        metavar="FILE",
    )


@dataclass(frozen=True)
class VitSlimOptions(ModelOptions):
    """Options of ViT-Slim: the shares to keep, which a search-stage checkpoint does not have."""

    budget: float | None = option("One budget for attention, FFN and patches, in (0, 1].", parse=share, metavar="SHARE")
    budget_attn: float | None = option("Share of the attention channels to keep.", parse=share, metavar="SHARE")
    budget_mlp: float | None = option("Share of the FFN channels to keep.", parse=share, metavar="SHARE")
    budget_patch: float | None = option("Share of the patch positions to keep.", parse=share, metavar="SHARE")
    qk_scale: float | None = option("Softmax scale; default: the original head_dim to the power -0.5.")


@dataclass(frozen=True)
class DynamicVitOptions(ModelOptions):
    """Options of DynamicViT: how many tokens its stages keep, and where they stand."""

    keep_rate: float | None = option(
        "Base keep rate R in (0, 1]; stage i keeps R to the power i.", parse=share, metavar="SHARE"
    )
    keep_ratios: tuple[float, ...] | None = option(
        "Share of all patches that each stage keeps.", parse=shares, metavar="A,B,C"
    )
    pruning_loc: tuple[int, ...] | None = option(
        "Blocks before which patches are dropped.", parse=blocks, metavar="3,6,9"
    )
    skip_lam: float | None = option("LV-ViT: what divides the residual branches; default: 2.")


@dataclass(frozen=True)
class AdaVitOptions(ModelOptions):
    """Options of AdaViT: what its decisions act on."""

    ada_head: HeadEffect | None = option(  # noqa: RUF009 - it is `dataclasses.field`
        "What head decisions act on, if the file does not say.", parse=head_effect, metavar="plain|v2|attn"
    )
    ada_token_with_mlp: bool | None = option("Token decisions gate the FFN as well.")
