"""How pictures are written: options, fonts, and the same bytes for the same inputs."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from slimc.errors import OptionError, OutputError
from slimc.report import drawing
from slimc.report.drawing import PlotOptions, check_plot, chosen_panels, share
from slimc.report.structure import PANELS, plot_structure
from tests.report.figures import drawn, texts, words
from tests.report.structures import compiled, deep

_DRAW = """
import sys
from pathlib import Path
from slimc.report.structure import plot_structure
from tests.report.structures import deep
for path in sys.argv[1:]:
    plot_structure(*deep(4, 3), "net.pth (slim)", Path(path))
"""


def test_another_process_at_another_time_writes_the_same_bytes(tmp_path):
    first, second = ([tmp_path / f"{name}{suffix}" for suffix in drawing.SUFFIXES] for name in "ab")
    for path in first:
        plot_structure(*deep(4, 3), "net.pth (slim)", path)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1000000000"}
    subprocess.run([sys.executable, "-c", _DRAW, *second], check=True, env=environment)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        plot_structure(*deep(4, 3), "net.pth (masked)", other)
        assert one.read_bytes() != other.read_bytes()


def test_a_pdf_embeds_truetype_and_no_type_3(tmp_path):
    structure, counts = compiled("patches")
    plot_structure(structure, counts, "net.pth", tmp_path / "p.pdf")
    content = (tmp_path / "p.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    inflated = [zlib.decompressobj().decompress(stream) for stream in streams if stream[:1] == b"x"]
    everything = b"\n".join([content, *inflated])
    assert b"/Type3" not in everything
    assert b"/CIDFontType2" in everything
    assert b"/FontFile2" in everything
    assert b"CreationDate" not in everything


def test_an_svg_has_no_date_and_needs_no_font(tmp_path):
    structure, counts = compiled("patches")
    plot_structure(structure, counts, "net.pth", tmp_path / "p.svg")
    content = (tmp_path / "p.svg").read_text()
    assert "dc:date" not in content
    assert "<text" not in content


def test_what_the_user_set_for_matplotlib_neither_counts_nor_is_changed(tmp_path):
    structure, counts = compiled("channel")
    plot_structure(structure, counts, "net.pth", tmp_path / "a.png")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.bbox": "tight"}):
        before = dict(mpl.rcParams)
        plot_structure(structure, counts, "net.pth", tmp_path / "b.png")
        assert dict(mpl.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("size", "dpi"), [((8.0, 7.0), 100), ((12.0, 9.0), 50)])
def test_size_and_resolution_are_those_asked_for(size, dpi, tmp_path):
    structure, counts = compiled("channel")
    plot_structure(structure, counts, "net.pth", tmp_path / "p.png", options=PlotOptions(size=size, dpi=dpi))
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == tuple(round(side * dpi) for side in size)
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": (0.1, 5.0)}, r"--plot-size: 0.1 inches .* expected 1 to 60"),
        ({"size": (5.0, float("nan"))}, "--plot-size: nan inches"),
        ({"size": (5.0, 600.0)}, "--plot-size: 600 inches"),
        ({"dpi": 0}, r"--plot-dpi: 0 dots .* expected 50 to 1200"),
        ({"dpi": 10_000}, "--plot-dpi: 10000 dots"),
    ],
)
def test_sizes_that_no_picture_has_are_refused(arguments, words):
    with pytest.raises(OptionError, match=words):
        PlotOptions(**arguments)


def test_a_size_that_the_panels_do_not_fit_is_refused_and_nothing_written(tmp_path):
    structure, counts = compiled("channel")
    with pytest.raises(OptionError, match=r"--plot-size: the panels do not fit 1\.2 x 1 inches"):
        plot_structure(structure, counts, "net.pth", tmp_path / "p.png", options=PlotOptions(size=(1.2, 1.0)))
    assert list(tmp_path.iterdir()) == []


def test_panels_are_known_by_name():
    assert chosen_panels(PlotOptions(), ("a", "b")) == ("a", "b")
    assert chosen_panels(PlotOptions(("b", "a", "b")), ("a", "b", "c")) == ("b", "a")
    with pytest.raises(OptionError) as caught:
        chosen_panels(PlotOptions(("macs", "x")), PANELS)
    expected = "--plot-panel: 'x' is no panel; expected heads, ffn, tokens, macs, patches, selections"
    assert str(caught.value) == expected


def test_a_plot_is_checked_before_any_work(tmp_path):
    check_plot(tmp_path / "p.PNG")
    with pytest.raises(OptionError, match=r"suffix '\.jpg'; expected \.png, \.pdf, \.svg"):
        check_plot(tmp_path / "p.jpg")
    with pytest.raises(OutputError, match="does not exist"):
        check_plot(tmp_path / "no" / "p.png")
    with pytest.raises(OptionError, match="'branches' is no panel"):
        check_plot(tmp_path / "p.png", PlotOptions(("branches",)), PANELS)


def test_shares_are_words_at_their_ends():
    assert share(5, 5) == "nothing removed"
    assert share(999, 1000) == "over 99 % kept"
    assert share(1, 4) == "25 % kept"
    assert share(0, 4) == "0 % kept"


@pytest.mark.parametrize("title", ["a" * 200 + ".pth", "$x_$y.pth", "net of my thesis.pth " * 8])
def test_any_file_name_fits_the_headline(title, tmp_path):
    structure, counts = compiled("channel")
    figure = drawn(lambda: plot_structure(structure, counts, title, tmp_path / "p.png"))
    (headline,) = [text for text in texts(figure) if "parameters" in text.get_text()]
    box = headline.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert title.replace(" ", "") in headline.get_text().replace("\n", "").replace(" ", "")


def test_a_narrow_headline_breaks_between_its_parts(tmp_path: Path):
    structure, counts = compiled("digits")
    options = PlotOptions(panels=("macs",))
    figure = drawn(lambda: plot_structure(structure, counts, "digits.pth (slim)", tmp_path / "p.png", options=options))
    assert any("MACs 88.5 M → 40.3 M (46 %)" in text.split("\n") for text in words(figure))
