"""What there is on a picture: figures are kept while they are written, and their artists measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def drawn(draw: Callable[[], Any]) -> Figure:
    """The figure that `draw` writes, laid out."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        save(figure, *arguments, **options)
        figure.draw_without_rendering()  # back at the figure's own resolution
        figures.append(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        draw()
    (figure,) = figures
    return figure


def texts(figure: Figure) -> list[Text]:
    """Every text that is seen: not those of ticks beyond the ends of their axis."""
    beyond = {
        id(tick.label1)
        for axis in figure.findobj(Axis)
        if isinstance(axis, Axis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) - 1e-9 <= tick.get_loc() <= max(axis.get_view_interval()) + 1e-9
    }
    found = [text for text in figure.findobj(Text) if isinstance(text, Text) and id(text) not in beyond]
    return [text for text in found if text.get_visible() and text.get_text()]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def bars(figure: Figure) -> list[Bbox]:
    """Where bars are, in dots; those without an area are left out."""
    boxes = [bar.get_window_extent() for axes in figure.axes for bar in axes.patches if isinstance(bar, Rectangle)]
    return [box for box in boxes if box.width > 1 and box.height > 1]


def smallest(shown: Iterable[Text]) -> float:
    """Points of the smallest letters."""
    return min(float(text.get_fontsize()) for text in shown)


def overlap(one: Bbox, other: Bbox, apart: float = 0.0) -> bool:
    """Whether they share more than half a dot across and down, or are less than `apart` dots apart across."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0) + apart
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(wide > 0.5 and high > 0.5)


def legends(figure: Figure) -> list[Bbox]:
    found = [axes.get_legend() for axes in figure.axes]
    return [legend.get_window_extent() for legend in found if legend is not None]
