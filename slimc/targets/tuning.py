"""Files of measured costs: those that ``slimc tune`` writes, and those that slimc ships."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from slimc.errors import OptionError
from slimc.targets.costs import Kernel, MeasuredCosts

FORMAT = 1


@dataclass(frozen=True)
class Tuning:
    """Measured costs, and what they were measured on.

    `operator` says whether groups were computed by ONNX's Attention, `library` is the back end with its version. `error` is
    the root mean square of the relative differences between the times of `sections` attentions and what the costs say.
    """

    costs: MeasuredCosts
    operator: bool
    library: str
    processor: str
    sections: int
    error: float


def packaged_tuning(threads: int | None) -> Tuning:
    """The tuning that slimc ships for a number of threads: one, or several."""
    name = f"tuning-{1 if threads == 1 else 2}-threads.json"
    return _parse(json.loads((resources.files("slimc.targets") / "data" / name).read_text()))


def read_tuning(path: Path) -> Tuning:
    """The tuning in the file at `path`.

    Raises:
        OptionError: it is no file that ``slimc tune`` wrote.
    """
    try:
        return _parse(json.loads(path.read_text()))
    except OSError as error:
        raise OptionError(
            f"--tuning: {path} cannot be read: {error.strerror}; slimc tune -o {path} makes one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"--tuning: {path} is no file that slimc tune wrote ({error!r})") from None


def _parse(values: Any) -> Tuning:  # noqa: ANN401 - whatever the file held
    if values["format"] != FORMAT:
        raise ValueError(f"format {values['format']}, expected {FORMAT}")
    costs = values["costs"]
    numbers = MeasuredCosts(
        threads=int(costs["threads"]),
        projection=_number(costs["projection"]),
        alone=Kernel(**{key: _number(value) for key, value in costs["alone"].items()}),
        together=Kernel(**{key: _number(value) for key, value in costs["together"].items()}),
    )
    if numbers.threads < 1:
        raise ValueError(f"{numbers.threads} threads")
    return Tuning(
        costs=numbers,
        operator=bool(values["operator"]),
        library=str(values["library"]),
        processor=str(values["processor"]),
        sections=int(values["sections"]),
        error=_number(values["error"]),
    )


def _number(value: Any) -> float:  # noqa: ANN401 - whatever the file held
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{value} is no cost")
    return number
