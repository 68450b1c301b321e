"""Command-line options that several commands share, each written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from slimc.errors import OptionError
from slimc.models.options import WHAT_STAYS, ModelOptions, flag, said
from slimc.models.systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slimc.cli.console import Output
    from slimc.compiler.adaptive import Adaptive
    from slimc.emit.precision import Precision
    from slimc.report.drawing import PlotOptions

# Panels of --help, besides one for each system.
CHECKPOINT, TARGET, OUTPUT = "Checkpoint", "Target", "Output"

BACKEND_HELP = (
    "onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino, openvino-bf16; engines run on their own library."
)
Threads = Annotated[int | None, typer.Option(help="Threads of one inference on a CPU; default: the back end's choice.")]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Also compare on the images in this folder.")]
CheckpointTarget = Annotated[
    str | None,
    typer.Option("--target", help="For checkpoints. Default: what suits the back end.", rich_help_panel=TARGET),
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
Outputs = Annotated[
    str | None,
    typer.Option(
        "--outputs",
        metavar="NAME,...",
        help="What the network gives: logits, features, tokens, blocks.5; as maps tokens:nchw, blocks.5:nchw. Default: "
        "logits; without a head features, else tokens.",
        rich_help_panel=CHECKPOINT,
    ),
]
Backends = Annotated[
    list[str] | None,
    typer.Option(help=f"May be given several times: {BACKEND_HELP} For checkpoints also tensorrt, tensorrt-rtx."),
]


@dataclass(frozen=True)
class Printing:
    """What a command prints: for machines, for people, or nothing."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=OUTPUT)
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=OUTPUT)] = False

    def output(self) -> Output:
        """Where the command's words go."""
        from slimc.cli.console import Output

        return Output(self.json, self.quiet)


@dataclass(frozen=True)
class ModelTarget:
    """What a model is compiled for."""

    target: Annotated[
        str | None,
        typer.Option(
            help="What the model is for: generic (the default), cpu, sm75, sm80, sm86, sm89, sm120, ...",
            rich_help_panel=TARGET,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            help="For --target cpu: how many threads will run the model. Default: several.", rich_help_panel=TARGET
        ),
    ] = None
    tuning: TuningFile = None

    def said(self) -> dict[str, object]:
        """The options by name, None where they were not given."""
        return {"--target": self.target, "--threads": self.threads, "--tuning": self.tuning}

    def arguments(self) -> dict[str, Any]:
        """As `slimc.compile` and `slimc.export` take them."""
        return {"target": self.target or "generic", "threads": self.threads, "tuning": self.tuning}


@dataclass(frozen=True)
class PrecisionOptions:
    """The precision of the matrix products, by its name or a flag."""

    precision: Annotated[
        str | None,
        typer.Option(help="Of the matrix products: fp32 (the default), fp16 or bf16.", rich_help_panel=TARGET),
    ] = None
    fp16: Annotated[bool, typer.Option("--fp16", help="Short for --precision fp16.", rich_help_panel=TARGET)] = False
    bf16: Annotated[bool, typer.Option("--bf16", help="Short for --precision bf16.", rich_help_panel=TARGET)] = False

    def read(self) -> Precision | None:
        """The precision that is asked for; none where nothing was said.

        Raises:
            OptionError: there is no such precision, or two of them are given.
        """
        flags = (("--precision", self.precision is not None), ("--fp16", self.fp16), ("--bf16", self.bf16))
        given = [name for name, is_given in flags if is_given]
        if len(given) > 1:
            raise OptionError(f"{given[1]}: contradicts {given[0]}; give one of them, or neither for float32")
        if self.fp16 or self.bf16:
            return "fp16" if self.fp16 else "bf16"
        if self.precision is None:
            return None
        from slimc.emit.precision import find_precision

        return find_precision(self.precision)


@dataclass(frozen=True)
class AdaptiveOptions:
    """How decisions that an image makes are compiled."""

    adaptive: Annotated[
        str | None,
        typer.Option(
            help="masked, conditional (batch 1), capacity, or conditional+capacity. Default: the fastest exact one.",
            rich_help_panel="AdaViT",
        ),
    ] = None
    capacity_quantile: Annotated[
        float | None,
        typer.Option(
            help="Capacity of a block: this quantile of the tokens that the images in --data use. Default: 1.",
            rich_help_panel="AdaViT",
        ),
    ] = None

    def read(self) -> Adaptive | None:
        """The way that is asked for; none where nothing was said.

        Raises:
            OptionError: they say nothing that can be done.
        """
        if self.adaptive is None:
            if self.capacity_quantile is not None:
                raise OptionError("--capacity-quantile: needs --adaptive capacity")
            return None
        from slimc.compiler.adaptive import find_adaptive

        return find_adaptive(self.adaptive, self.capacity_quantile)


@dataclass(frozen=True)
class Plotting:
    """Whether to draw, and how the picture looks."""

    plot: Annotated[
        Path | None,
        typer.Option(metavar="OUT.png", help="Draw what was found (.png, .pdf, .svg).", rich_help_panel=OUTPUT),
    ] = None
    plot_size: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="W H", help="Of the picture, in inches. Default: what suits it.", rich_help_panel=OUTPUT),
    ] = None
    plot_dpi: Annotated[
        int | None, typer.Option(help="Dots an inch of a .png. Default: 200.", rich_help_panel=OUTPUT)
    ] = None

    def read(self, panels: Sequence[str] = (), available: Sequence[str] = ()) -> PlotOptions | None:
        """How the picture is to look; none where none is wanted.

        Raises:
            OptionError: something was said about a picture that is not wanted, or that cannot be.
            OutputError: it cannot be written.
            MissingError: matplotlib is not installed.
        """
        plot, size, dpi = self.plot, self.plot_size, self.plot_dpi
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

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the options name."""
        masks = self.options.get("masks")
        return () if masks is None else (Path(masks),)

    def refuse_budgets(self, reason: str) -> None:
        """Refuse what says how much of a network is kept, where nothing is cut.

        Raises:
            OptionError: it was said.
        """
        for name in self.options:
            if name in WHAT_STAYS:
                raise OptionError(f"{flag(name)}: {reason}")


def refuse(options: Mapping[str, object], source: Path, reason: str) -> None:
    """Refuse those of `options`, by name, that were given: they are not None.

    Raises:
        OptionError: one was given.
    """
    for option, value in options.items():
        if value is not None:
            raise OptionError(f"{option}: {source} {reason}")


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of the groups that it takes, which are dataclasses of this module.

    The signature that typer reads is that of `command`, where a parameter that is a group is replaced by the group's fields.
    `Given` stands for ``--ema`` and the fields of every system's options (`slimc.models.options`), in a panel of ``--help``
    for each; a field that is a list may be given several times.
    """
    own = inspect.signature(command, eval_str=True).parameters
    groups = {name: parameter.annotation for name, parameter in own.items() if is_dataclass(parameter.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        group = groups.get(name)
        added = [parameter] if group is None else _checkpoint_parameters() if group is Given else _fields_of(group)
        parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in added]

    @functools.wraps(command)
    def expanded(**arguments: Any) -> None:  # noqa: ANN401 - as typer gives them
        values = {name: _collected(group, arguments) for name, group in groups.items()}
        command(**arguments, **values)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _collected(group: Any, arguments: dict[str, Any]) -> object:  # noqa: ANN401 - a dataclass
    """The group, of the `arguments` that belong to it, which are taken out."""
    if group is not Given:
        return group(**{field.name: arguments.pop(field.name) for field in fields(group)})
    ema = arguments.pop("ema")
    options = {name: _parsed(name, parse, arguments.pop(name)) for name, parse in _parsers().items()}
    return Given(ema, {name: value for name, value in options.items() if value is not None and value != []})


def _fields_of(group: Any) -> list[inspect.Parameter]:  # noqa: ANN401 - a dataclass
    """The fields of a group as parameters."""
    types = get_type_hints(group, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=types[field.name])
        for field in fields(group)
    ]


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


def inputs(*paths: Path | None) -> dict[Path, None]:
    """Those of `paths` that were given, as inputs of `slimc.cli.console.Output.result`.

    An engine stands there with what describes it, and a folder with the files that it holds a network in.
    """
    from slimc.files.digest import files_of

    given = [file for path in paths if path is not None for file in files_of(path)]
    return dict.fromkeys([*given, *(path.with_name(f"{path.name}.json") for path in given if path.suffix == ".engine")])


def checkpoint_inputs(path: Path, sha256: str | None) -> dict[Path, str | None]:
    """A checkpoint, whose digest may be known, as an input; see `inputs`."""
    from slimc.files.slim import is_slim  # what it states is the digest of what it was made of

    return dict(inputs(path)) if path.is_dir() or is_slim(path) else {path: sha256}


def overwritten(paths: Iterable[Path]) -> str:
    """What to say about files that were replaced; empty where there were none."""
    names = ", ".join(path.name for path in paths)
    return f" (replaced {names})" if names else ""
