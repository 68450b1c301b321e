"""What every picture shares: its options, its style, and how it is written so that the same inputs give the same bytes.

Pictures are made to be printed 17 cm wide, two columns of a journal, where their smallest letters are 6 points. Blue is what
is kept and grey outlines what there was: the shades differ in lightness, so that they differ without colours too. Fonts are
embedded as TrueType (42), for journals refuse Type 3. Letters of an SVG are outlines: a viewer without the font would
set them in another, of another width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimc.errors import MissingError, OptionError
from slimc.files.output import check_writable, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
PAGE, COLUMN = 6.69, 3.35  # inches: 17 and 8.5 cm
KEPT, PALE, DARK, OTHER = "#1f78b4", "#9ecae1", "#08306b", "#e69f00"
DENSE: Mapping[str, Any] = {"facecolor": "0.93", "edgecolor": "0.5", "linewidth": 0.6}  # the outline of what there was
NOTHING = "nothing removed"

_SMALLEST, _LARGEST = 1.0, 60.0  # inches
_FEWEST, _MOST = 50, 1200  # dots an inch
_STYLE: Mapping[str, Any] = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "axes.titleweight": "bold",
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.06,
    "text.parse_math": False,  # a file name may contain dollar signs
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "slimc",
}
_UNDATED: Mapping[str, Mapping[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


@dataclass(frozen=True)
class PlotOptions:
    """How a picture looks.

    panels   names of the panels to draw, in this order; none for all that there are
    size     width and height in inches; none for what suits the contents
    dpi      dots an inch of a .png

    Raises:
        OptionError: a size or a resolution that no picture has.
    """

    panels: tuple[str, ...] = ()
    size: tuple[float, float] | None = None
    dpi: int = 200

    def __post_init__(self) -> None:
        for side in self.size or ():
            if not (math.isfinite(side) and _SMALLEST <= side <= _LARGEST):
                raise OptionError(
                    f"--plot-size: {side:g} inches is no side of a picture; expected {_SMALLEST:g} to {_LARGEST:g}"
                )
        if not _FEWEST <= self.dpi <= _MOST:
            raise OptionError(f"--plot-dpi: {self.dpi} dots an inch cannot be drawn; expected {_FEWEST} to {_MOST}")


def check_plot(path: Path, options: PlotOptions | None = None, available: Sequence[str] = ()) -> None:
    """Find out before any work whether a picture of panels that are `available` can be written to `path`.

    Raises:
        OptionError: the suffix is no picture's, or a panel of `options` is not available.
        OutputError: the path cannot be written.
        MissingError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"--plot: {path} has the suffix {path.suffix or 'none'!r}; expected {', '.join(SUFFIXES)}")
    if options is not None:
        chosen_panels(options, available)
    check_writable(path)
    require_matplotlib()


def require_matplotlib() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        MissingError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingError("--plot needs matplotlib; pip install 'slimc[plot]'")


def chosen_panels(options: PlotOptions, available: Sequence[str]) -> tuple[str, ...]:
    """The panels to draw: those that `options` name, each once, or all that are available.

    Raises:
        OptionError: a name that is none of `available`.
    """
    for name in options.panels:
        if name not in available:
            raise OptionError(f"--plot-panel: {name!r} is no panel; expected {', '.join(available) or 'none'}")
    return tuple(dict.fromkeys(options.panels or available))


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and slimc's style while the body runs, whatever the user has set."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


@contextmanager
def picture(path: Path, options: PlotOptions, size: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure to draw on, `size` inches large unless `options` say otherwise; written to `path` afterwards.

    Raises:
        MissingError: matplotlib is not installed.
        OptionError: what the body drew does not fit.
        OutputError: the path cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=options.size or size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        save(figure, path, options)


def save(figure: Figure, path: Path, options: PlotOptions) -> None:
    """Write `figure` to `path` without a date.

    Raises:
        OptionError: there is no room for what is on it.
        OutputError: the path cannot be written.
    """
    suffix = path.suffix.lower()
    with warnings.catch_warnings(), replacing(path) as (temporary,):
        warnings.filterwarnings("error", message=".*constrained_layout not applied")
        try:
            figure.savefig(temporary, format=suffix[1:], dpi=options.dpi, metadata=_UNDATED[suffix])
        except UserWarning:
            width, height = figure.get_size_inches()
            raise OptionError(
                f"--plot-size: the panels do not fit {width:g} x {height:g} inches; expected more, or fewer panels"
            ) from None


def headline(figure: Figure, title: str, parts: Sequence[str] = ()) -> int:
    """Write `title: part, part` above everything, in as many lines as its width needs; how many that are.

    Lines break between parts before they break within one.
    """
    import textwrap

    text = figure.suptitle("", x=0.0, ha="left", fontsize=8, fontweight="bold")
    available = figure.get_size_inches()[0] * figure.dpi * 0.97
    kept = "\0"  # stands for a space that no line breaks at
    words = [part.replace(" ", kept) for part in parts]
    whole = f"{title}: {', '.join(words)}" if words else title
    text.set_text(whole.replace(kept, " "))
    letters = max(8, int(len(whole) * available / max(text.get_window_extent().width, 1.0)))
    lines = textwrap.wrap(whole, letters, break_on_hyphens=False) or [""]
    text.set_text("\n".join(lines).replace(kept, " "))
    text.set_position((0.006, 0.98))
    return len(lines)


def heading(axes: Axes, title: str, state: str = "", *, below: float = 16.0) -> None:
    """The panel's title at its left, what became of it at its right, and `below` them points for a legend."""
    axes.set_title(title, loc="left", pad=below)
    axes.set_title(state, loc="right", pad=below, fontweight="normal")


def key(axes: Axes) -> None:
    """A legend of what `axes` shows, in one line between the title and the bars: nothing lies over them."""
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(labels),
        borderaxespad=0.0,
        borderpad=0.2,
        columnspacing=1.2,
        handlelength=1.2,
        handleheight=0.7,
        handletextpad=0.4,
    )


def share(kept: float, dense: float, verb: str = "kept") -> str:
    """How much of `dense` is `kept`, in a word where it is all of it."""
    if kept >= dense:
        return NOTHING
    percent = 100 * kept / dense
    return f"over 99 % {verb}" if percent > 99 else f"{percent:.0f} % {verb}"
