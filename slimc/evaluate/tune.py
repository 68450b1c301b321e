"""Measuring what heads and groups of heads cost on this machine.

Attentions of several widths, row counts and groupings are emitted as they are for ``--target cpu``, four in a row behind a
small embedding, and timed in turns. The time of one is taken to be

    a + b * rows * dim + the sum over its groups of MeasuredCosts.group

which is linear in the numbers of `MeasuredCosts`; they are what fits best, by least squares of the relative error and none
below zero.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from slimc import ir
from slimc.backends import cores
from slimc.backends.base import Timer
from slimc.backends.host import processor
from slimc.emit.model import emit
from slimc.errors import OptionError
from slimc.evaluate import cpu_timing
from slimc.evaluate.cpu_timing import Backend
from slimc.evaluate.progress import Advance, Progress, silent
from slimc.files.output import check_output, replacing, scratch
from slimc.targets.costs import Kernel, MeasuredCosts, Work
from slimc.targets.target import Target
from slimc.targets.tuning import FORMAT, Tuning

Float64 = npt.NDArray[np.float64]

_BLOCKS = 4
_LOADINGS = 3  # of every model: where its weights come to lie in memory changes its time
_ROUNDS = 3
_RUNS = 3  # of a model in a row; the fastest counts
_DIMS = (192, 384, 768)
_SIDES = (12, 13, 14)  # 145 rows, 170, whose number is even, and 197 as DeiT has
_SECTIONS = 8  # for every width and number of rows


@dataclass(frozen=True)
class Section:
    """An attention to be timed: `side` * `side` patches and cls, `groups` of (heads, width)."""

    dim: int
    side: int
    groups: tuple[tuple[int, int], ...]

    def work(self, parts: int = 1) -> Work:
        """What its heads are to do; `parts` is how many a head alone is cut into where that can be done."""
        rows = self.side**2 + 1
        return Work(self.dim, rows, rows, divisible=rows if parts > 1 and rows % parts == 0 else None)


def sections() -> tuple[Section, ...]:
    """The attentions that are timed: of every width and number of rows some with all heads alone, most in groups."""
    generator = np.random.default_rng(0)
    found = []
    for dim in _DIMS:
        for side in _SIDES:
            for i in range(_SECTIONS):
                heads = int(generator.choice([3, 6]))
                widths = sorted((int(width) for width in generator.integers(12, 65, heads)), reverse=True)
                sizes = [1] * heads if i % 4 == 0 else _cut(generator, heads)
                starts = np.cumsum([0, *sizes[:-1]])
                found.append(Section(dim, side, tuple((n, widths[at]) for n, at in zip(sizes, starts, strict=True))))
    return tuple(found)


def _cut(generator: np.random.Generator, heads: int) -> list[int]:
    """A random cut of `heads` into runs."""
    sizes: list[int] = []
    while sum(sizes) < heads:
        sizes.append(int(generator.integers(1, heads - sum(sizes) + 1)))
    return sizes


def network(section: Section) -> ir.Model:
    """A network of attentions like `section` only."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> ir.FloatArray:
        return np.asarray(generator.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5))

    def head(width: int) -> ir.Head:
        query, key, value = (ir.Linear(normal(width, section.dim)) for _ in range(3))
        return ir.Head(query, key, value, normal(section.dim, width))

    norm = ir.LayerNorm(np.ones(section.dim, np.float32), np.zeros(section.dim, np.float32), 1e-6)
    heads = tuple(head(width) for size, width in section.groups for _ in range(size))
    attention = ir.Attention(norm, heads, None, 1.0, groups=tuple(size for size, _ in section.groups))
    patches = ir.PatchEmbed(normal(section.dim, 3, 2, 2), None)
    return ir.Model(
        image=(2 * section.side, 2 * section.side),
        embedding=ir.Embedding(patches, normal(1, section.dim), None, normal(section.side**2, section.dim)),
        blocks=tuple(ir.Block(f"blocks.{i}", attention, None) for i in range(_BLOCKS)),
        classifier=ir.Classifier(norm, (0,), (ir.Linear(normal(10, section.dim)),)),
    )


def tune(
    output: str | Path | None = None,
    *,
    threads: int = 1,
    backend: str = "onnxruntime",
    progress: Progress = silent,
) -> Tuning:
    """Measure on this machine what heads cost alone and in groups; takes a quarter of a minute.

    Args:
        output: a .json file for `compile`'s `tuning`; None writes none.
        threads: that will run the model.
        backend: "onnxruntime" or "openvino".
        progress: shows what is going on.

    Raises:
        OptionError: the back end is no CPU's, or there are no threads.
        OutputError: `output` cannot be written.
        MissingError: the back end is not on this machine.

    Example:
        >>> slimc.tune("tuning.json", threads=1).costs.threads
        1
    """
    if backend not in get_args(Backend):
        raise OptionError(f"--backend: {backend!r} is no CPU back end; expected {' or '.join(get_args(Backend))}")
    if threads < 1:
        raise OptionError(f"--threads: {threads} threads cannot run anything; expected at least 1")
    path = None if output is None else Path(output)
    if path is not None:
        check_output(path, (".json",))
    with progress(f"timing attentions, threads: {threads}") as advance:
        tuning = measure_costs(backend, threads, advance)  # type: ignore[arg-type]
    if path is not None:
        write_tuning(tuning, path)
    return tuning


def measure_costs(backend: Backend, threads: int, advance: Advance) -> Tuning:
    """Measure the costs on this machine for `threads` threads; `advance` is told how many of the rounds are done.

    Raises:
        MissingError: the back end is not installed.
    """
    chosen, operator = sections(), backend == "onnxruntime"
    parts = threads if operator else 1
    target = Target("cpu", max_heads=None, residual_in_product=True, attention_operator=operator, query_parts=parts)
    times: list[Float64] = []
    with scratch() as directory:
        paths = [directory / f"{i}.onnx" for i in range(len(chosen))]
        for section, path in zip(chosen, paths, strict=True):
            oir.save(emit(network(section), target), path)
        for loading in range(_LOADINGS):
            sessions = [cpu_timing.load(path, backend, threads) for path in paths]
            timers = [cpu_timing.timer(session) for session in sessions]
            with cpu_timing.running(backend, cores.usable()):
                for i in range(_ROUNDS):
                    times.append(_round(timers))
                    advance(loading * _ROUNDS + i + 1, _LOADINGS * _ROUNDS)
    microseconds = 1e6 * np.median(times, axis=0) / _BLOCKS
    costs, error = fit(chosen, microseconds, threads, parts)
    return Tuning(costs, operator, sessions[0].backend, processor(), len(chosen), error)


def write_tuning(tuning: Tuning, path: Path) -> None:
    """Write `tuning` to `path`, as `slimc.targets.tuning.read_tuning` reads it."""
    with replacing(path) as (temporary,):
        temporary.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(tuning)}, indent=1) + "\n")


def _round(timers: Sequence[Timer]) -> Float64:
    """Seconds of one run of each model, in turns."""
    return np.array([min(timer().latency for _ in range(_RUNS)) for timer in timers])


def fit(chosen: Sequence[Section], microseconds: Float64, threads: int, parts: int) -> tuple[MeasuredCosts, float]:
    """The costs that explain the times of sections best, to four digits, and the relative error left (root mean square)."""
    units = _units(threads)
    rows = [[1.0, s.dim * s.work().queries, *(cost(unit, s, parts) for unit in units)] for s in chosen]
    design = np.array(rows) / microseconds[:, None]
    numbers = nonnegative_least_squares(design, np.ones(len(chosen)))
    error = float(np.sqrt(np.mean((design @ numbers - 1.0) ** 2)))
    return _with_numbers(threads, np.array([float(f"{number:.4g}") for number in numbers[2:]])), error


def cost(costs: MeasuredCosts, section: Section, parts: int) -> float:
    """What the groups of `section` cost."""
    return sum(costs.group(heads, width, section.work(parts)) for heads, width in section.groups)


def _units(threads: int) -> list[MeasuredCosts]:
    """Costs of which one number is 1 and all others are 0, for every number there is."""
    return [_with_numbers(threads, row) for row in np.eye(7)]


def _with_numbers(threads: int, numbers: Float64) -> MeasuredCosts:
    projection, *kernels = (float(number) for number in numbers)
    return MeasuredCosts(threads, projection, Kernel(*kernels[:3]), Kernel(*kernels[3:]))


def nonnegative_least_squares(design: Float64, wanted: Float64) -> Float64:
    """The x >= 0 that makes |design x - wanted| least: Lawson and Hanson's active-set method (1974, chapter 23)."""
    scale = np.abs(design).max(axis=0)
    scale[scale == 0] = 1.0
    a, x = design / scale, np.zeros(design.shape[1])
    active = np.zeros(len(x), bool)
    tolerance = 1e-10 * len(wanted)
    for _ in range(3 * len(x)):
        gradient = np.where(active, -np.inf, a.T @ (wanted - a @ x))
        if gradient.max() <= tolerance:
            break
        active[gradient.argmax()] = True
        while True:
            best = np.zeros_like(x)
            best[active] = np.linalg.lstsq(a[:, active], wanted, rcond=None)[0]
            low = active & (best <= 0)
            if not low.any():
                x = best
                break
            step = np.min(x[low] / (x[low] - best[low]))
            x = x + step * (best - x)
            active &= x > 1e-15
    return np.asarray(x / scale)


def describe(costs: MeasuredCosts) -> list[tuple[str, str]]:
    """What the costs say, in words and figures for people."""
    work = Work(384, 197, 197)
    alone = 6 * costs.group(1, 48, work)
    together = costs.group(6, 48, work)
    return [
        ("projections", f"{costs.projection:.2f} ps a multiply-accumulate"),
        ("a head alone, 197 rows, 48 wide", f"{costs.alone.microseconds(1, 197**2, 48):.0f} us"),
        ("six heads together", f"{costs.together.microseconds(-(-6 // costs.threads), 197**2, 48):.0f} us"),
        ("padding a head of DeiT-S by 8 channels", f"{_padding(costs, work):.0f} us"),
        ("DeiT-S, six heads of 48, one by one", f"{alone:.0f} us"),
        ("DeiT-S, six heads of 48, in one group", f"{together:.0f} us"),
    ]


def _padding(costs: MeasuredCosts, work: Work) -> float:
    kernels = dataclasses.replace(costs, alone=Kernel(0, 0, 0))
    return kernels.group(1, 56, work) - kernels.group(1, 48, work)
