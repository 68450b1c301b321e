"""Command-line options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimc.errors import BudgetError, OptionError
from slimc.models.options import ModelOptions

if TYPE_CHECKING:
    from slimc.precision import Precision

Budget = Annotated[str | None, typer.Option(help="One budget for attention, FFN and patches, in (0, 1].")]
BudgetAttn = Annotated[str | None, typer.Option(help="Share of the attention channels to keep, in (0, 1].")]
BudgetMlp = Annotated[str | None, typer.Option(help="Share of the FFN channels to keep, in (0, 1].")]
BudgetPatch = Annotated[str | None, typer.Option(help="Share of the patch positions to keep, in (0, 1].")]
Ema = Annotated[bool | None, typer.Option("--ema/--no-ema", help="Take the averaged weights.")]
ImgSize = Annotated[tuple[int, int] | None, typer.Option(metavar="H W", help="Image height and width in pixels.")]
NumHeads = Annotated[int | None, typer.Option(help="Heads of an attention, where the checkpoint cannot tell.")]
QkScale = Annotated[float | None, typer.Option(help="Softmax scale; default: the original head_dim to the power -0.5.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
TargetName = Annotated[
    str, typer.Option("--target", help="What the model is for: generic, cpu, sm75, sm80, sm86, sm89, sm120, ...")
]
Threads = Annotated[int | None, typer.Option(help="Threads of one inference on a CPU; default: the back end's choice.")]
BACKEND_HELP = (
    "onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino, openvino-bf16; engines run on their own library."
)
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Also compare on the images in this folder.")]


@dataclass(frozen=True)
class BudgetOptions:
    """The four budget options as they were typed."""

    both: str | None
    attn: str | None
    mlp: str | None
    patch: str | None


def model_options(
    budgets: BudgetOptions, img_size: tuple[int, int] | None, num_heads: int | None, qk_scale: float | None
) -> ModelOptions:
    """What the options say about a checkpoint.

    Raises:
        BudgetError: a budget is not a number.
    """
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
    )


def precision(fp16: bool, bf16: bool) -> Precision:
    """The precision that two flags ask for.

    Raises:
        OptionError: both are given.
    """
    if fp16 and bf16:
        raise OptionError("--fp16 and --bf16: give one of them, or neither for float32")
    return "fp16" if fp16 else "bf16" if bf16 else "fp32"


def _number(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise BudgetError(f"{option}: {text!r} is not a budget; expected a number above 0 and up to 1") from None
    if not 0 < value <= 1:
        raise BudgetError(f"{option}: {text} is not a budget; expected a number above 0 and up to 1")
    return value
