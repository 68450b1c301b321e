"""Which class an image is of: class folders, lists and class maps, and what is said where they do not fit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slimc.errors import OptionError
from slimc.files.labels import find_labels, labelled_images


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for name, count in (("b", 2), ("a", 3), ("10", 1), ("2", 1)):
        for i in range(count):
            picture(data / name / "deep" / f"{i}.png")
    (data / "notes.txt").write_text("no image")
    return data


def test_sorted_folders_are_the_outputs_as_in_torchvision(folders):
    datasets = pytest.importorskip("torchvision.datasets")
    found = labelled_images(folders, 4)
    assert found.classes == ("10", "2", "a", "b")
    expected = datasets.ImageFolder(str(folders)).samples
    assert [(str(path), int(label)) for path, label in zip(found.files, found.labels, strict=True)] == expected


def test_a_limit_takes_images_from_everywhere(folders):
    assert labelled_images(folders, 4, limit=4).labels.tolist() == [0, 1, 2, 3]
    assert len(labelled_images(folders, 4, limit=100)) == 7
    with pytest.raises(OptionError, match="--limit: 0 images"):
        labelled_images(folders, 4, limit=0)


def test_a_class_map_orders_the_outputs_and_may_name_more(folders, tmp_path):
    names = tmp_path / "map.txt"
    names.write_text("b\nunused\n2\na\n10\n\n", encoding="utf-8")
    found = labelled_images(folders, 5, names)
    assert found.classes == ("b", "unused", "2", "a", "10")
    assert found.labels.tolist() == [4, 2, 3, 3, 3, 0, 0]


@pytest.mark.parametrize("header", ["", "file,label\n", "\ufeffFilename,label\n"])
def test_a_list_of_numbers(header, tmp_path):
    picture(tmp_path / "x" / "a.png")
    (tmp_path / "labels.csv").write_text(f'{header}x/a.png,3\n"b,c.png", 03 \n\n', encoding="utf-8")
    found = labelled_images(tmp_path, 4)
    assert found.files == (tmp_path / "x" / "a.png", tmp_path / "b,c.png")
    assert found.labels.tolist() == [3, 3]


def test_a_list_of_names(tmp_path):
    (tmp_path / "labels.csv").write_text("a.png,dog\nb.png,cat\nc.png,dog\n")
    found = labelled_images(tmp_path, 2)
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    (tmp_path / "map.txt").write_text("bird\ndog\ncat\n")
    assert labelled_images(tmp_path, 3, tmp_path / "map.txt").labels.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("content", "outputs", "match"),
    [
        ("", 2, "lists no image"),
        ("a.png\n", 2, "line 1: expected a file and its label"),
        ("a.png,0\nb.png,\n", 2, "line 2: expected a file and its label"),
        ("a.png,2\n", 2, "labels that are none of the 2 classes: 2"),
        ("a.png,cat\n", 2, "has 1 labels, but the network has 2 outputs; name those with --class-map"),
    ],
)
def test_lists_that_do_not_fit_are_refused(content, outputs, match, tmp_path):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(OptionError, match=match):
        labelled_images(tmp_path, outputs)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a\nb\n", "names 2 classes, but the network has 4 outputs"),
        ("a\nb\na\nc\n", "names 'a' twice"),
        ("a\nb\nc\nd\n", r"labels that are none of the 4 classes: 10, 2"),
    ],
)
def test_class_maps_that_do_not_fit_are_refused(content, match, folders, tmp_path):
    (tmp_path / "map.txt").write_text(content)
    with pytest.raises(OptionError, match=match):
        labelled_images(folders, 4, tmp_path / "map.txt")


def test_a_class_map_that_cannot_be_read(folders, tmp_path):
    with pytest.raises(OptionError, match=r"--class-map: .*no.txt cannot be read: No such file"):
        labelled_images(folders, 4, tmp_path / "no.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="it is not UTF-8 text"):
        labelled_images(folders, 4, tmp_path / "bytes.txt")


def test_folders_that_do_not_fit_are_refused(folders, tmp_path):
    with pytest.raises(OptionError, match="has 4 class folders, but the network has 3 outputs; name those"):
        labelled_images(folders, 3)
    assert find_labels(folders, 3) is None
    assert find_labels(folders, 4) is not None
    with pytest.raises(OptionError, match=r"has no class folders and no labels\.csv"):
        labelled_images(folders / "a" / "deep", 4)
    with pytest.raises(OptionError, match="no is not a directory"):
        labelled_images(tmp_path / "no", 4)
    (folders / "empty").mkdir()
    with pytest.raises(OptionError, match="empty holds no image"):
        labelled_images(folders, 5)
