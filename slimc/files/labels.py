"""Folders of images whose classes are known: class folders as torchvision reads them, or a list of files and labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimc.errors import OptionError
from slimc.files.images import image_files
from slimc.ir import IndexArray

LIST = "labels.csv"
_HEADERS = ("file", "filename", "path", "image")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Image files, the class of each [n] by the number of its output, and the classes' names by output."""

    files: tuple[Path, ...]
    labels: IndexArray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)


def labelled_images(
    directory: Path,
    outputs: int | None,
    class_map: Path | None = None,
    limit: int | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    option: str = "--data",
) -> LabelledImages:
    """The images in `directory` with their classes, for a network of `outputs` outputs.

    The classes come from ``labels.csv`` (file, label) where there is one, else from the names of the class folders. Without
    a class map, the sorted names stand for the outputs in order, and labels that are all numbers for themselves.

    Args:
        directory: holds the images.
        outputs: how many classes the network tells apart; none takes as many as there are.
        class_map: a file with the name of a class a line, in the order of the outputs.
        limit: take only so many images, spread evenly over all; none takes all.
        classes: their names in order, where they are known already.
        option: what named the directory, for messages.

    Raises:
        OptionError: there are no classes, another number of them than outputs, or a label that is none of them.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"--limit: {limit} images tell nothing; expected at least 1")
    if not directory.is_dir():
        raise OptionError(f"{option}: {directory} is not a directory; expected a folder with a folder for each class")
    names = classes if class_map is None or outputs is None else _read_map(class_map, outputs)
    listed = directory / LIST
    files, said = _read_list(listed, option) if listed.is_file() else _class_folders(directory, option)
    where = listed if listed.is_file() else directory
    labels, found = _numbers(said, names, outputs, where, option)
    if limit is not None and limit < len(files):
        chosen = [i * len(files) // limit for i in range(limit)]
        files, labels = [files[i] for i in chosen], labels[chosen]
    return LabelledImages(tuple(files), labels, found)


def find_labels(directory: Path, outputs: int) -> LabelledImages | None:
    """`labelled_images` where the folder is laid out so for a network of `outputs` outputs; none where it is not."""
    try:
        return labelled_images(directory, outputs)
    except OptionError:
        return None


def _read_map(path: Path, outputs: int) -> tuple[str, ...]:
    names = tuple(line.strip() for line in _text(path, "--class-map").splitlines() if line.strip())
    if len(names) != outputs:
        raise OptionError(f"--class-map: {path} names {len(names)} classes, but the network has {outputs} outputs")
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise OptionError(f"--class-map: {path} names {twice!r} twice")
    return names


def _read_list(path: Path, option: str) -> tuple[list[Path], list[str]]:
    """Files and labels of a labels.csv, whose first line may be a header."""
    files, labels = [], []
    for number, row in enumerate(csv.reader(_text(path, option).splitlines()), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[0].lower() in _HEADERS):
            continue
        if len(cells) < 2 or not cells[0] or not cells[1]:
            raise OptionError(f"{option}: {path}, line {number}: expected a file and its label, separated by a comma")
        files.append(path.parent / cells[0])
        labels.append(cells[1])
    if not files:
        raise OptionError(f"{option}: {path} lists no image; expected lines of a file and its label")
    return files, labels


def _class_folders(directory: Path, option: str) -> tuple[list[Path], list[str]]:
    """Images and the class folders that they lie in."""
    folders = sorted((entry for entry in directory.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    if not folders:
        raise OptionError(f"{option}: {directory} has no class folders and no {LIST}; expected a folder for each class")
    files, labels = [], []
    for folder in folders:
        found = image_files(folder, option)
        files += found
        labels += [folder.name] * len(found)
    return files, labels


def _numbers(
    said: Sequence[str], names: tuple[str, ...] | None, outputs: int | None, where: Path, option: str
) -> tuple[IndexArray, tuple[str, ...]]:
    """Labels as numbers of outputs, and the names of the outputs."""
    if names is None:
        if where.name == LIST and all(label.isascii() and label.isdigit() for label in said):
            said = [str(int(label)) for label in said]
            names = tuple(str(i) for i in range(1 + max(map(int, said)) if outputs is None else outputs))
        else:
            names = tuple(sorted(set(said)))
    elif where.name == LIST and not set(said) <= set(names):
        said = [str(int(label)) if label.isascii() and label.isdigit() else label for label in said]
    if outputs is not None and len(names) != outputs:
        what = "class folders" if where.name != LIST else "labels"
        raise OptionError(
            f"{option}: {where} has {len(names)} {what}, but the network has {outputs} outputs; name those with --class-map"
        )
    number = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(said) - set(number))
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise OptionError(
            f"{option}: {where} has labels that are none of the {len(names)} classes: {', '.join(unknown[:5])}{more}"
        )
    return np.array([number[label] for label in said], np.int64), names


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise OptionError(f"{option}: {path} cannot be read: {reason}") from None
