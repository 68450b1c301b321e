"""The documentation is true: every block of code runs, or says why it cannot run here; what is listed is what there is.

A block of `bash` is commands of slimc. One of `console` has a ``$`` before each, and what it prints below: line for line,
but for figures that vary from run to run, with ``...`` where lines are left out. `python` runs as it stands, or as a doctest
where it has ``>>>``. `json` is JSON. `text` is no code. Above a block may stand a comment: ``<!-- not run: WHY -->``, or
``<!-- needs: MODULE -->``, without which module it is skipped. The blocks of a page run in order, in one directory.
"""

import ast
import doctest
import importlib.util
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import vectors
from tests.command_line import slimc

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"bash", "console", "python", "json", "text"}
DATA = vectors.DATA
DIGITS = ROOT / "slimc" / "cli" / "data" / "digits.pth"

# What pages call their checkpoints, and which real ones these are.
CHECKPOINTS = {
    "digits.pth": DIGITS,
    "checkpoint.pth": DIGITS,
    "searched.pth": DATA / "vitslim-digits-a" / "searched.pth",
    "dynamicvit.pth": DATA / "dynamicvit-a-deit-0.7" / "checkpoint.pth",
    "lvvit.pth": DATA / "dynamicvit-c-lvvit-0.7" / "checkpoint.pth",
    "adavit.pth.tar": DATA / "adavit-b-head-layer-tokenmlp" / "checkpoint.pth",
    "tuning.json": ROOT / "slimc" / "targets" / "data" / "tuning-2-threads.json",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def said(self, what: str) -> str | None:
        """What the comment above says after ``WHAT:``; none where it does not."""
        found = re.fullmatch(rf"<!--\s*{what}:(.*)-->", self.comment)
        return found[1].strip() if found else None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of `page`, those within lists too."""
    found: list[Block] = []
    opened: tuple[int, str, str, str] | None = None
    body: list[str] = []
    above = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.match(r"( *)```(.*)$", line)
        if opened is None and fence:
            opened, body = (number, fence[1], fence[2].strip(), above), []
        elif opened is not None and fence:
            text = "\n".join(each.removeprefix(opened[1]) for each in body)
            found.append(Block(page, opened[0], opened[2], text, opened[3]))
            opened = None
        elif opened is not None:
            body.append(line)
        above = line.strip() or above
    assert opened is None, f"{page}: the block of line {opened} has no end"
    return found


def pages_with_code() -> list[Path]:
    return [page for page in PAGES if any(block.language != "text" for block in blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_has_a_known_language_and_every_exception_a_reason(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: {block.language!r} is not checked"
        assert block.said("not run") != "", f"{block.place}: not run without a reason"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the checkpoints and images that pages name."""
    for name, source in CHECKPOINTS.items():
        shutil.copyfile(source, tmp_path / name)
    random = np.random.default_rng(0)
    for folder in ("images", "others"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / folder / f"{i}.png")
    # One that a capacity was calibrated on: noise like this may well ask for more.
    shutil.copyfile(tmp_path / "images" / "0.png", tmp_path / "others" / "0.png")
    shutil.copyfile(tmp_path / "images" / "0.png", tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, workplace):
    names: dict[str, Any] = {}
    missing = []
    for block in blocks(page):
        module = block.said("needs")
        if block.said("not run") is not None or block.language == "text":
            continue
        if module is not None and importlib.util.find_spec(module) is None:
            missing.append(f"{block.place} needs {module}")
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            run_python(block, names)
        else:
            run_commands(block)
    if missing:
        pytest.skip("; ".join(missing))


def run_python(block: Block, names: dict[str, Any]) -> None:
    if ">>>" not in block.text:
        exec(compile(block.text, block.place, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.text, names, block.place, str(block.page), block.line)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(
        test, clear_globs=False
    )
    assert result.failed == 0, block.place
    names.update(test.globs)


def run_commands(block: Block) -> None:
    """Run the commands of a block, and compare what they print where the block shows it."""
    for command, expected in transcript(block):
        words = shlex.split(command, comments=True)
        if not words:
            continue
        assert words[0] == "slimc", f"{block.place}: {words[0]} does not run here; say so in a comment above the block"
        if words[1] == "bench" and "--seconds" not in words:
            words += ["--seconds", "0.05"]  # instead of 3: the figures are not looked at
        outcome = slimc(*words[1:])
        assert outcome.code == 0, f"{block.place}: {command}\n{outcome.stderr}"
        if expected:
            compare(expected, (outcome.stdout + outcome.stderr).splitlines(), f"{block.place}: {command}")


def transcript(block: Block) -> list[tuple[str, list[str]]]:
    """Commands, and the lines that they are to print."""
    lines = block.text.replace("\\\n", " ").split("\n")
    if block.language == "bash":
        return [(line, []) for line in lines]
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def compare(expected: list[str], printed: list[str], place: str) -> None:
    """Every line of `expected` was printed, in order; between them only where ``...`` says so."""
    wanted = [plain(line) for line in expected if plain(line)]
    got = [plain(line) for line in printed if plain(line)]
    at, skipping = 0, False
    for line in wanted:
        if line == "...":
            skipping = True
            continue
        if skipping:
            assert line in got[at:], f"{place}: {line!r} is not printed in\n" + "\n".join(got[at:])
            at = got.index(line, at)
        assert at < len(got), f"{place}: {line!r} is not printed"
        assert got[at] == line, place
        at, skipping = at + 1, False
    assert skipping or at == len(got), f"{place}: also prints\n" + "\n".join(got[at:])


def plain(line: str) -> str:
    """`line` with single spaces and without what varies: times, rounding errors and where they are, versions."""
    line = " ".join(line.split())
    line = re.sub(r"\d+\.\d+ ms( \d+%)?", "TIME", line)
    line = re.sub(r"\d+(\.\d+)?e[-+]\d+", "SMALL", line)
    line = re.sub(r"^seconds: .*", "seconds: TIME", line)
    line = re.sub(r"worst on input \d+", "worst on an input", line)
    line = re.sub(r"^[─━ ]+$", "", line)
    return re.sub(r"(onnxruntime|tensorrt-rtx|openvino) \d+(\.\d+)+", r"\1", line)


class TestBlocks:
    def page(self, directory: Path, text: str) -> Path:
        path = directory / "page.md"
        path.write_text(text)
        return path

    def test_a_block_knows_the_comment_above_it_and_no_other(self, tmp_path):
        page = self.page(tmp_path, "<!-- not run: a GPU -->\n\n```bash\na\n```\n\nb\n\n  ```python\n  c = 1\n  ```\n")
        first, second = blocks(page)
        assert (first.said("not run"), first.text) == ("a GPU", "a")
        assert (second.said("not run"), second.language, second.text) == (None, "python", "c = 1")

    @pytest.mark.parametrize(
        ("expected", "printed"),
        [
            (["a", "b"], ["a"]),
            (["a"], ["a", "b"]),
            (["a", "c"], ["a", "b", "c"]),
            (["a", "...", "d"], ["a", "b"]),
            (["348 / 360"], ["349 / 360"]),
        ],
    )
    def test_other_lines_than_expected_are_noticed(self, expected, printed):
        with pytest.raises(AssertionError):
            compare(expected, printed, "here")

    def test_lines_may_be_left_out_and_times_may_vary(self):
        compare(["a 1.2 ms 3%", "...", "d", "..."], ["a   2.3 ms   4%", "b", "d", "e"], "here")

    def test_a_command_that_fails_is_noticed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        block = Block(ROOT / "README.md", 1, "bash", "slimc inspect nothing.pth", "")
        with pytest.raises(AssertionError, match="no such file"):
            run_commands(block)


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table of `page` behind `heading`, without its head."""
    text = (ROOT / page).read_text()
    table = re.search(r"(?:^\|.*\n)+", text[text.index(heading) :], re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[0].splitlines()[2:]]


def test_the_rooms_are_those_of_the_contract_and_say_what_their_packages_say():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer read TOML")
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    expected = []
    for layer in reversed(contract["layers"]):
        path = ROOT / layer.replace(".", "/")
        source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        documented = ast.get_docstring(ast.parse(source.read_text()))
        assert documented is not None
        expected.append([f"`{layer}`", documented.splitlines()[0]])
    assert [row[:2] for row in rows("docs/developing/rooms.md", "# Rooms")] == expected


def test_every_pass_is_on_the_page_of_passes():
    page = (ROOT / "docs" / "reference" / "passes.md").read_text()
    files = {path.stem for path in (ROOT / "passes").glob("[a-z]*.py")} - {"rewrite"}
    assert set(re.findall(r"^::: slimc\.passes\.(\w+)$", page, re.MULTILINE)) == files


def test_every_public_name_is_on_the_page_of_the_library():
    import slimc as library

    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    assert set(library.__all__) <= set(re.findall(r"^::: slimc\.(?:errors\.)?(\w+)$", page, re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_outside_of_the_site_lead_somewhere(name):
    """Those inside are mkdocs' to check."""
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()) if "://" not in link]
    assert links
    for path, _, anchor in (link.partition("#") for link in links):
        assert (ROOT / path).exists(), path
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w-]", "", each.lower().replace(" ", "-")) for each in headings}


def test_figures_of_the_readme_are_those_of_the_results():
    """Every latency, MAC share and kernel count in the README's tables is a cell of the stored tables."""
    results = (ROOT / "benchmarks" / "results" / "results.md").read_text()
    cells = {cell.strip().replace(" ", "") for cell in re.split(r"[|\n]", results)}
    others = r"<!-- table: \S+ -->\n\n(?:\|.*\n)+"  # they are held against their own files
    readme = re.sub(others, "", (ROOT / "README.md").read_text())
    tables = re.findall(r"(?:^\|.*\n)+", readme, re.MULTILINE)
    figures = {
        cell.strip().replace(" ", "")
        for table in tables
        for row in table.splitlines()
        for cell in row.strip("|").split("|")
        if re.fullmatch(r"0\.\d{3}|1\.\d{3}|\d+ %", cell.strip())
    }
    assert len(figures) > 30
    assert figures <= cells


def test_tables_in_the_readme_are_those_that_were_measured():
    text = (ROOT / "README.md").read_text()
    tables = re.findall(r"<!-- table: (\S+) -->\n\n((?:\|.*\n)+)", text)
    assert [path for path, _ in tables] == ["benchmarks/results/families.md", "benchmarks/results/plain_vit.md"]
    for path, table in tables:
        assert table == (ROOT / path).read_text(), f"README.md: put {path} in again"
