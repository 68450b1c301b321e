"""The picture of how often AdaViT uses its parts."""

from itertools import combinations

import pytest

from slimc.errors import OptionError
from slimc.report.drawing import PlotOptions
from slimc.report.gate_usage import BlockReport, UsageReport, report
from slimc.report.usage_plot import PANELS, plot_usage
from slimc.targets.count import count_macs
from slimc.targets.target import find_target
from tests.gated import VECTORS, observe, vector
from tests.report.figures import bars, drawn, legends, overlap, texts, words


def usage(name: str) -> UsageReport:
    found = vector(name)
    observed = observe(found.searched, found.images)[1]
    return report(observed, found.searched.masked, count_macs(found.searched.dense, find_target("generic")))


@pytest.mark.parametrize("name", VECTORS)
def test_nothing_lies_over_bars_or_off_the_picture(name, tmp_path):
    found = usage(name)
    figure = drawn(lambda: plot_usage(found, (14, 14), "ada.pth", tmp_path / "p.png"))
    assert any(text.startswith(f"ada.pth: {found.images} images, mean MACs") for text in words(figure))
    shown, written = bars(figure), [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    assert len(legends(figure)) == 2
    for text, box in [*written, *(("legend", box) for box in legends(figure))]:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert not any(overlap(box, bar) for bar in shown), text
    assert not [pair for pair in combinations(written, 2) if overlap(pair[0][1], pair[1][1], 3)]


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_can_stand_alone(panel, tmp_path):
    found = usage(VECTORS[1])
    figure = drawn(lambda: plot_usage(found, (14, 14), "ada.pth", tmp_path / "p.png", PlotOptions((panel,))))
    assert len([axes for axes in figure.axes if axes.get_title(loc="left")]) == 1


def test_panels_of_a_structure_are_refused(tmp_path):
    with pytest.raises(OptionError, match="'ffn' is no panel; expected branches, heads, patches, macs"):
        plot_usage(usage(VECTORS[1]), (14, 14), "ada.pth", tmp_path / "p.png", PlotOptions(("ffn",)))


def test_where_everything_is_used_the_panels_say_so(tmp_path):
    block = BlockReport("blocks.0", 1.0, 1.0, (1.0, 1.0), 1.0, 4, 4, (1.0,) * 4)
    found = UsageReport(2, (block,), (1_000_000, 1_000_000), 1_000_000)
    assert words(drawn(lambda: plot_usage(found, (2, 2), "a", tmp_path / "p.png"))).count("nothing skipped") == 3
    idle = BlockReport("blocks.1", 0.0, 0.0, (0.0, 0.0), 0.0, 0, 0, (0.0,) * 4)
    less = UsageReport(2, (block, idle), (500_000, 700_000), 1_000_000)
    assert "nothing skipped" not in words(drawn(lambda: plot_usage(less, (2, 2), "a", tmp_path / "p.png")))


def test_the_same_report_gives_the_same_bytes(tmp_path):
    found = usage(VECTORS[0])
    for name in ("a.pdf", "b.pdf"):
        plot_usage(found, (14, 14), "ada.pth", tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
