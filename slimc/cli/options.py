"""Command-line options that several commands share, each written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from slimc.errors import OptionError
from slimc.models.options import ModelOptions, flag, said
from slimc.models.systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimc.emit.precision import Precision
    from slimc.report.drawing import PlotOptions

# Panels of --help, besides one for each system.
CHECKPOINT, TARGET, OUTPUT = "Checkpoint", "Target", "Output"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=OUTPUT)]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="What the model is for: generic (the default), cpu, sm75, sm80, sm86, sm89, sm120, ...",
        rich_help_panel=TARGET,
    ),
]
TunedThreads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="For --target cpu: how many threads will run the model. Default: several.",
        rich_help_panel=TARGET,
    ),
]
TuningFile = Annotated[
    Path | None,
    typer.Option(
        "--tuning",
        metavar="FILE",
        help="For --target cpu: what slimc tune measured where the model will run.",
        rich_help_panel=TARGET,
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision", help="Of the matrix products: fp32 (the default), fp16 or bf16.", rich_help_panel=TARGET
    ),
]
Fp16 = Annotated[bool, typer.Option("--fp16", help="Short for --precision fp16.", rich_help_panel=TARGET)]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Short for --precision bf16.", rich_help_panel=TARGET)]
Threads = Annotated[int | None, typer.Option(help="Threads of one inference on a CPU; default: the back end's choice.")]
BACKEND_HELP = (
    "onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino, openvino-bf16; engines run on their own library."
)
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Also compare on the images in this folder.")]
AdaptiveName = Annotated[
    str | None,
    typer.Option(
        "--adaptive",
        help="masked, conditional (batch 1), capacity, or conditional+capacity. Default: the fastest exact one.",
        rich_help_panel="AdaViT",
    ),
]
CapacityQuantile = Annotated[
    float | None,
    typer.Option(
        help="Capacity of a block: this quantile of the tokens that the images in --data use. Default: 1.",
        rich_help_panel="AdaViT",
    ),
]


PlotSize = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="W H", help="Of the picture, in inches. Default: what suits it.", rich_help_panel=OUTPUT),
]
PlotDpi = Annotated[int | None, typer.Option(help="Dots an inch of a .png. Default: 200.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True)
class Given:
    """What was said about a checkpoint: whether to take averaged weights, and options by name, None where not given."""

    ema: bool | None
    options: Mapping[str, Any]

    def refuse(self, source: Path, reason: str) -> None:
        """Refuse whatever was said, where `source` is no checkpoint.

        Raises:
            OptionError: anything was said; `reason` says why it does not apply.
        """
        for option in said(self.options, self.ema):
            raise OptionError(f"{option}: {source} {reason}")


def refuse(options: Mapping[str, object], source: Path, reason: str) -> None:
    """Refuse those of `options`, by name, that were given: they are not None.

    Raises:
        OptionError: one was given.
    """
    for option, value in options.items():
        if value is not None:
            raise OptionError(f"{option}: {source} {reason}")


def takes_checkpoint(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of every system, in a panel of ``--help`` for each; it gets them as `given`.

    The signature that typer reads is that of `command` with `given` replaced by ``--ema`` and the fields of the systems'
    options (`slimc.models.options`).
    """
    added = _checkpoint_parameters()

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:  # noqa: ANN401 - as typer gives them
        ema = arguments.pop("ema")
        options = {name: _parsed(name, parse, arguments.pop(name)) for name, parse in _parsers().items()}
        command(**arguments, given=Given(ema, {name: value for name, value in options.items() if value is not None}))

    own = inspect.signature(command, eval_str=True)
    kept = [parameter for name, parameter in own.parameters.items() if name != "given"]
    first = [parameter for parameter in kept if parameter.name not in ("json", "quiet")]
    last = [parameter for parameter in kept if parameter.name in ("json", "quiet")]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*first, *added, *last)]
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _checkpoint_parameters() -> list[inspect.Parameter]:
    ema = typer.Option("--ema/--no-ema", help="Take the averaged weights.", rich_help_panel=CHECKPOINT)
    parameters = [_parameter("ema", bool | None, ema)]
    common = {field.name for field in fields(ModelOptions)}
    for panel, options in ((CHECKPOINT, ModelOptions), *((system.title, system.options) for system in SYSTEMS)):
        types = get_type_hints(options)
        for field in fields(options):
            if (field.name in common) == (options is ModelOptions):
                kind = str | None if field.metadata["parse"] else types[field.name]
                option = typer.Option(
                    help=field.metadata["help"], metavar=field.metadata["metavar"], rich_help_panel=panel
                )
                parameters.append(_parameter(field.name, kind, option))
    return parameters


def _parameter(name: str, kind: object, option: Any) -> inspect.Parameter:  # noqa: ANN401 - what typer.Option returns
    annotation = Annotated[kind, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@functools.cache
def _parsers() -> dict[str, Callable[[str, str], Any] | None]:
    """How the text of every option is read, by the option's name."""
    return {field.name: field.metadata["parse"] for system in SYSTEMS for field in fields(system.options)}


def _parsed(name: str, parse: Callable[[str, str], Any] | None, value: Any) -> Any:  # noqa: ANN401
    return value if parse is None or value is None else parse(value, flag(name))


def read_precision(name: str | None, *, fp16: bool = False, bf16: bool = False) -> Precision | None:
    """The precision that ``--precision`` or a flag asks for; none where nothing was said.

    Raises:
        OptionError: there is no such precision, or two of them are given.
    """
    given = [text for text, said in (("--precision", name is not None), ("--fp16", fp16), ("--bf16", bf16)) if said]
    if len(given) > 1:
        raise OptionError(f"{given[1]}: contradicts {given[0]}; give one of them, or neither for float32")
    if fp16 or bf16:
        return "fp16" if fp16 else "bf16"
    if name is None:
        return None
    from slimc.emit.precision import find_precision

    return find_precision(name)


def read_adaptive(text: str | None, quantile: float | None) -> Any:  # noqa: ANN401 - an Adaptive or None
    """What ``--adaptive`` and ``--capacity-quantile`` say.

    Raises:
        OptionError: they say nothing that can be done.
    """
    if text is None:
        if quantile is not None:
            raise OptionError("--capacity-quantile: needs --adaptive capacity")
        return None
    from slimc.compiler.adaptive import find_adaptive

    return find_adaptive(text, quantile)


def read_plot(
    plot: Path | None,
    size: tuple[float, float] | None,
    dpi: int | None,
    *,
    panels: Sequence[str] = (),
    available: Sequence[str] = (),
) -> PlotOptions | None:
    """How a picture is to look; none where none is wanted.

    Raises:
        OptionError: something was said about a picture that is not wanted, or that cannot be.
        OutputError: it cannot be written.
        MissingError: matplotlib is not installed.
    """
    if plot is None:
        for option, value in (("--plot-panel", panels or None), ("--plot-size", size), ("--plot-dpi", dpi)):
            if value is not None:
                raise OptionError(f"{option}: says how a picture looks; give --plot OUT.png too")
        return None
    if dpi is not None and plot.suffix.lower() in (".pdf", ".svg"):
        raise OptionError(f"--plot-dpi: {plot} is drawn in lines, not in dots; expected a .png, or leave it out")
    from slimc.report.drawing import PlotOptions, check_plot

    options = PlotOptions(tuple(panels), size, **({} if dpi is None else {"dpi": dpi}))
    check_plot(plot, options, available)
    return options


def inputs(*paths: Path | None) -> dict[Path, None]:
    """Those of `paths` that were given, and what describes engines, as inputs of `slimc.cli.console.Output.result`."""
    given = [path for path in paths if path is not None]
    return dict.fromkeys([*given, *(path.with_name(f"{path.name}.json") for path in given if path.suffix == ".engine")])


def overwritten(paths: Iterable[Path]) -> str:
    """What to say about files that were replaced; empty where there were none."""
    names = ", ".join(path.name for path in paths)
    return f" (replaced {names})" if names else ""
