"""Command-line options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.errors import BudgetError, OptionError

if TYPE_CHECKING:
    from slimc.emit.precision import Precision
    from slimc.models.options import HeadEffect, ModelOptions

Budget = Annotated[str | None, typer.Option(help="One budget for attention, FFN and patches, in (0, 1].")]
BudgetAttn = Annotated[str | None, typer.Option(help="Share of the attention channels to keep, in (0, 1].")]
BudgetMlp = Annotated[str | None, typer.Option(help="Share of the FFN channels to keep, in (0, 1].")]
BudgetPatch = Annotated[str | None, typer.Option(help="Share of the patch positions to keep, in (0, 1].")]
Ema = Annotated[bool | None, typer.Option("--ema/--no-ema", help="Take the averaged weights.")]
ImgSize = Annotated[tuple[int, int] | None, typer.Option(metavar="H W", help="Image height and width in pixels.")]
NumHeads = Annotated[int | None, typer.Option(help="Heads of an attention, where the checkpoint cannot tell.")]
QkScale = Annotated[float | None, typer.Option(help="Softmax scale; default: the original head_dim to the power -0.5.")]
KeepRate = Annotated[
    str | None, typer.Option(help="DynamicViT: base keep rate R in (0, 1]; stage i keeps R to the power i.")
]
KeepRatios = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="DynamicViT: share of all patches that each stage keeps.")
]
PruningLoc = Annotated[
    str | None, typer.Option(metavar="3,6,9", help="DynamicViT: blocks before which patches are dropped.")
]
SkipLam = Annotated[float | None, typer.Option(help="LV-ViT: what divides the residual branches; default: 2.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
TargetName = Annotated[
    str, typer.Option("--target", help="What the model is for: generic, cpu, sm75, sm80, sm86, sm89, sm120, ...")
]
TunedThreads = Annotated[
    int | None,
    typer.Option("--threads", help="For --target cpu: how many threads will run the model. Default: several."),
]
TuningFile = Annotated[
    Path | None,
    typer.Option(
        "--tuning", metavar="FILE", help="For --target cpu: what slimc tune measured where the model will run."
    ),
]
Threads = Annotated[int | None, typer.Option(help="Threads of one inference on a CPU; default: the back end's choice.")]
BACKEND_HELP = (
    "onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino, openvino-bf16; engines run on their own library."
)
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Also compare on the images in this folder.")]
AdaHead = Annotated[
    str | None,
    typer.Option(metavar="plain|v2|attn", help="What AdaViT's head decisions act on, if the file does not say."),
]
AdaTokenWithMlp = Annotated[
    bool | None,
    typer.Option("--ada-token-with-mlp/--no-ada-token-with-mlp", help="AdaViT: token decisions gate the FFN as well."),
]
AdaptiveWay = Annotated[
    str | None,
    typer.Option(
        "--adaptive",
        help="AdaViT: masked, conditional (batch 1), capacity, or conditional+capacity. Default: the fastest exact one.",
    ),
]
CapacityQuantile = Annotated[
    float | None, typer.Option(help="Capacity of a block: this quantile of the tokens that the images use. Default 1.")
]


@dataclass(frozen=True)
class BudgetOptions:
    """The four budget options as they were typed."""

    both: str | None
    attn: str | None
    mlp: str | None
    patch: str | None


@dataclass(frozen=True)
class SelectionOptions:
    """The options of DynamicViT as they were typed."""

    keep_rate: str | None
    keep_ratios: str | None
    pruning_loc: str | None
    skip_lam: float | None


@dataclass(frozen=True)
class DecisionOptions:
    """The options of AdaViT as they were typed."""

    ada_head: str | None
    ada_token_with_mlp: bool | None


def model_options(
    budgets: BudgetOptions,
    img_size: tuple[int, int] | None,
    num_heads: int | None,
    qk_scale: float | None,
    selection: SelectionOptions,
    decisions: DecisionOptions,
) -> ModelOptions:
    """What the options say about a checkpoint.

    Raises:
        BudgetError: a budget or keep rate is not a number in (0, 1].
        OptionError: a pruning location is not a number, or ``--ada-head`` is none of its values.
    """
    from slimc.models.options import ModelOptions

    whole = _number(budgets.both, "--budget")
    attn, mlp, patch = (
        _number(given, f"--budget-{kind}")
        for given, kind in ((budgets.attn, "attn"), (budgets.mlp, "mlp"), (budgets.patch, "patch"))
    )
    return ModelOptions(
        img_size=img_size,
        num_heads=num_heads,
        qk_scale=qk_scale,
        budget_attn=whole if attn is None else attn,
        budget_mlp=whole if mlp is None else mlp,
        budget_patch=whole if patch is None else patch,
        keep_rate=_number(selection.keep_rate, "--keep-rate"),
        keep_ratios=_numbers(selection.keep_ratios, "--keep-ratios"),
        pruning_loc=_locations(selection.pruning_loc),
        skip_lam=selection.skip_lam,
        ada_head=_head_effect(decisions.ada_head),
        ada_token_with_mlp=decisions.ada_token_with_mlp,
    )


def precision(fp16: bool, bf16: bool) -> Precision:
    """The precision that two flags ask for.

    Raises:
        OptionError: both are given.
    """
    if fp16 and bf16:
        raise OptionError("--fp16 and --bf16: give one of them, or neither for float32")
    return "fp16" if fp16 else "bf16" if bf16 else "fp32"


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    numbers = [_number(part, option) for part in text.split(",")]
    return tuple(number for number in numbers if number is not None)


def _locations(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--pruning-loc: {text!r} are not blocks; expected numbers such as 3,6,9") from None


def _head_effect(text: str | None) -> HeadEffect | None:
    known: dict[str, HeadEffect] = {"plain": "plain", "v2": "v2", "attn": "attn"}
    if text is not None and text not in known:
        raise OptionError(f"--ada-head: {text!r} is unknown; expected {', '.join(known)}")
    return None if text is None else known[text]


def _number(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise BudgetError(f"{option}: {text!r} is not a share; expected a number above 0 and up to 1") from None
    if not 0 < value <= 1:
        raise BudgetError(f"{option}: {text} is not a share; expected a number above 0 and up to 1")
    return value
