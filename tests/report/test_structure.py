"""The picture of a structure: its panels, what they say, and that nothing lies over anything."""

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.collections import QuadMesh

from slimc.errors import OptionError
from slimc.report.drawing import NOTHING, PlotOptions
from slimc.report.structure import PANELS, plot_structure
from tests.report.figures import bars, drawn, legends, overlap, smallest, texts, words
from tests.report.structures import Found, compiled, deep, kept

_TITLES = {
    "heads": "channels of every head",
    "ffn": "FFN channels",
    "tokens": "tokens",
    "macs": "MACs of every block",
    "patches": "blocks that a patch enters",
}


def picture(found: Found, tmp_path: Path, *names: str, with_image: bool = False, size=None):
    structure, counts = found
    image = kept(structure) if with_image else None
    path = tmp_path / "p.png"
    return drawn(lambda: plot_structure(structure, counts, "net.pth", path, image, PlotOptions(names, size)))


def panels(figure) -> dict[str, str]:
    """Titles with what stands at their right."""
    return {
        axes.get_title(loc="left"): axes.get_title(loc="right") for axes in figure.axes if axes.get_title(loc="left")
    }


def test_the_headline_tells_parameters_and_macs_before_and_after(tmp_path):
    found = words(picture(compiled("digits"), tmp_path))
    assert "net.pth: parameters 316,490 → 197,321 (62 %), MACs 88.5 M → 40.3 M (46 %)" in found
    dense = words(picture(compiled("digits", "dense"), tmp_path))
    assert "net.pth: parameters 316,490, MACs 88.5 M" in dense
    assert any("MACs 167.30 G → 113.29 G (68 %)" in text for text in words(picture(deep(), tmp_path)))


@pytest.mark.parametrize("name", _TITLES)
def test_every_panel_can_stand_alone(name, tmp_path):
    figure = picture(compiled("patches"), tmp_path, name)
    (title,) = panels(figure)
    assert title.startswith(_TITLES[name])
    assert figure.get_size_inches()[0] == pytest.approx(6.69 if name == "heads" else 3.35)


def test_panels_come_in_the_order_they_are_asked_for(tmp_path):
    names = ("macs", "ffn", "heads", "patches", "tokens")
    found = list(panels(picture(compiled("patches"), tmp_path, *names)))
    assert [title.split(" (")[0] for title in found] == [_TITLES[name] for name in names]


def test_heads_stand_in_the_order_of_the_network(tmp_path):
    found = compiled("heads")
    figure = picture(found, tmp_path, "heads")
    (mesh,) = [mesh for axes in figure.axes for mesh in axes.collections if isinstance(mesh, QuadMesh)]
    shown = mesh.get_array()
    assert shown is not None
    widths = [[int(value) for value in column] for column in shown.reshape(6, 4).T]
    assert widths == [list(layer.heads) for layer in found[0].layers]
    assert widths[0] == [0, 0, 8, 0, 8, 0]
    numbers = {
        (round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in figure.axes[0].texts
    }
    assert [numbers[0, row] for row in range(6)] == ["0", "0", "8", "0", "8", "0"]
    low, high = figure.axes[0].get_ylim()
    assert low > high  # head 0 at the top


def test_macs_are_those_of_the_layers(tmp_path):
    found = compiled("patches")
    (axes,) = picture(found, tmp_path, "macs").axes
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert heights["kept"] == pytest.approx([layer.macs / 1e6 for layer in found[0].layers])
    assert heights["dense"] == pytest.approx([layer.macs_dense / 1e6 for layer in found[0].layers])


def test_predictors_stand_on_the_macs_of_their_blocks(tmp_path):
    found = compiled("deit")
    (axes,) = picture(found, tmp_path, "macs").axes
    kept_bars, predictors = axes.containers[1:]
    assert predictors.get_label() == "predictor"
    for bar, predictor, layer in zip(kept_bars, predictors, found[0].layers, strict=True):
        assert predictor.get_height() == pytest.approx(layer.scorer_macs / 1e6)
        assert predictor.get_y() == pytest.approx(bar.get_height())


def test_a_panel_where_nothing_was_cut_says_so(tmp_path):
    states = panels(picture(compiled("gates"), tmp_path))
    assert states["channels of every head (dense: 12)"] == NOTHING
    assert states["FFN channels"] == NOTHING
    assert states["tokens"] == "no patch removed"
    assert states["blocks that a patch enters"] == NOTHING
    assert states["MACs of every block"] == "85 % kept"
    dense = panels(picture(compiled("digits", "dense"), tmp_path))
    assert dense["tokens"] == dense["MACs of every block"] == dense["FFN channels"] == NOTHING
    cut = panels(picture(compiled("digits"), tmp_path))
    assert NOTHING not in cut.values()
    assert cut["tokens"] == "73 % kept"


_CASES = [
    (compiled, "digits"),
    (compiled, "channel"),
    (compiled, "heads"),
    (compiled, "patches"),
    (compiled, "empty"),
    (compiled, "deit"),
    (compiled, "lvvit"),
    (compiled, "tokens"),
    (deep, 32),
    (deep, 12),
    (deep, 1),
]


@pytest.mark.parametrize(("make", "argument"), _CASES)
def test_no_legend_or_title_lies_over_bars_and_no_text_over_another_or_off_the_picture(make, argument, tmp_path):
    figure = picture(make(argument), tmp_path)
    shown = bars(figure)
    assert len(shown) >= 3
    assert len(legends(figure)) == 3
    assert not [box for box in legends(figure) for bar in shown if overlap(box, bar)]
    written = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    for text, box in written:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
        assert not any(overlap(box, bar) for bar in shown), text
    for (one, box), (two, other) in combinations(written, 2):
        assert not overlap(box, other, 3), (one, two)


@pytest.mark.parametrize("blocks", [12, 32])
def test_numbers_of_heads_are_readable_in_deep_networks(blocks, tmp_path):
    figure = picture(deep(blocks), tmp_path)
    numbers = figure.axes[0].texts
    assert len(numbers) == 16 * blocks
    assert smallest(numbers) >= 5
    assert smallest(text for text in texts(figure) if text not in numbers) >= 6


def test_cells_too_small_for_numbers_are_explained_by_a_bar(tmp_path):
    figure = picture(deep(96, 24), tmp_path, "heads")
    assert not figure.axes[0].texts
    assert "channels" in words(figure)


def test_a_network_without_blocks_can_be_drawn(tmp_path):
    assert "no attention" in words(picture(deep(0), tmp_path))


def test_selections_show_the_image_and_every_stage(tmp_path):
    figure = picture(compiled("deit"), tmp_path, with_image=True)
    shown = words(figure)
    assert {"image", "blocks.3: 137 patches", "blocks.6: 96 patches", "blocks.9: 67 patches"} <= set(shown)
    assert panels(figure)["blocks that a patch enters"] == "63 % kept"
    alone = picture(compiled("deit"), tmp_path, "selections", with_image=True)
    assert len(alone.axes) == 4


def test_patches_that_an_image_decides_on_are_not_guessed(tmp_path):
    figure = picture(compiled("deit"), tmp_path)
    assert any("give one with --image" in text for text in words(figure))
    with pytest.raises(OptionError, match=r"--plot-panel: selections need .* --image FILE"):
        picture(compiled("deit"), tmp_path, "selections")


def test_the_panels_are_those_that_the_command_line_names():
    assert PANELS == ("heads", "ffn", "tokens", "macs", "patches", "selections")
