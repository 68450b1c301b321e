"""Measuring costs: what is timed, the fit on times that are known, and one real run of each back end."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc.backends import cores
from slimc.emit.model import emit
from slimc.evaluate.tune import Section, cost, describe, fit, network, nonnegative_least_squares, sections
from slimc.ir.validate import validate
from slimc.passes.pack_heads import partition
from slimc.targets.costs import Kernel, MeasuredCosts
from slimc.targets.target import Target, find_target
from slimc.targets.tuning import read_tuning
from tests.command_line import slimc

KNOWN = MeasuredCosts(threads=2, projection=9.0, alone=Kernel(20.0, 100.0, 40.0), together=Kernel(45.0, 900.0, 38.0))


def test_the_same_attentions_are_timed_every_time_alone_and_in_groups():
    assert sections() == sections()
    sizes = [size for section in sections() for size, _ in section.groups]
    assert {1, 2, 3} <= set(sizes)
    assert sum(all(size == 1 for size, _ in section.groups) for section in sections()) >= len(sections()) / 4
    assert all(12 <= width <= 64 for section in sections() for _, width in section.groups)


def test_a_section_becomes_a_network_of_its_groups():
    model = network(Section(24, 3, ((2, 8), (1, 5))))
    validate(model)
    target = Target("cpu", max_heads=None, residual_in_product=True, attention_operator=True)
    names = [node.name for node in emit(model, target).graph if node.op_type in ("Attention", "Softmax")]
    assert names == [f"blocks.{i}.attn.{name}" for i in range(4) for name in ("group0.mixed", "group1.softmax")]


@pytest.mark.parametrize("threads", [1, 2])
def test_times_without_noise_give_back_the_costs_that_they_are_made_of(threads):
    known = MeasuredCosts(threads, KNOWN.projection, KNOWN.alone, KNOWN.together)
    times = np.array([3.0 + 1e-4 * s.dim * s.work().queries + cost(known, s, threads) for s in sections()])
    found, error = fit(sections(), times, threads, threads)
    assert error < 1e-9
    for got, wanted in zip(numbers(found), numbers(known), strict=True):
        assert got == pytest.approx(wanted, rel=1e-6)


def numbers(costs: MeasuredCosts) -> list[float]:
    kernels = [n for kernel in (costs.alone, costs.together) for n in (kernel.launch, kernel.score, kernel.channel)]
    return [costs.projection, *kernels]


def test_times_with_noise_give_costs_that_choose_nearly_as_well():
    noise = np.random.default_rng(0).normal(1.0, 0.03, len(sections()))
    times = noise * [3.0 + 1e-4 * s.dim * s.work().queries + cost(KNOWN, s, 2) for s in sections()]
    found, error = fit(sections(), times, 2, 2)
    assert 0.01 < error < 0.05
    widths, work = [64, 64, 55, 44, 35, 18], Section(384, 14, ()).work()
    targets = [Target("any", max_heads=None, costs=costs) for costs in (found, KNOWN)]
    spent = [cost_of(partition(widths, target, work), widths, work) for target in targets]
    assert spent[0] <= 1.03 * spent[1]


def cost_of(sizes, widths, work) -> float:
    starts = np.cumsum([0, *sizes[:-1]])
    return sum(KNOWN.group(size, widths[start], work) for size, start in zip(sizes, starts, strict=True))


@settings(max_examples=200)
@given(st.integers(1, 5), st.integers(5, 12), st.integers(0, 2**16))
def test_least_squares_without_negative_numbers_are_least(unknowns, equations, seed):
    """The conditions of Karush, Kuhn and Tucker: no number below 0, no descent along any that may grow."""
    generator = np.random.default_rng(seed)
    design, wanted = generator.standard_normal((equations, unknowns)), generator.standard_normal(equations)
    x = nonnegative_least_squares(design, wanted)
    gradient = design.T @ (design @ x - wanted)
    assert (x >= 0).all()
    assert (gradient >= -1e-8).all()
    np.testing.assert_allclose(gradient * (x > 0), 0.0, rtol=0, atol=1e-8)


def test_a_column_of_zeros_gets_nothing():
    design = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(nonnegative_least_squares(design, design[:, 0] * 4), [4.0, 0.0])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_command_measures_and_writes_what_export_takes(backend, short_tuning, tmp_path):
    if backend == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / "tuning.json"
    outcome = slimc("tune", "--backend", backend, "--threads", "2", "-o", path, "--json")
    assert outcome.code == 0, outcome.stderr
    printed, written = json.loads(outcome.stdout), read_tuning(path)
    assert printed["costs"]["threads"] == written.costs.threads == 2
    assert written.sections == 12
    assert written.library.startswith(backend)
    assert written.operator is (backend == "onnxruntime")
    assert find_target("cpu", tuning=path).costs == written.costs
    assert describe(written.costs)[0][0] == "projections"


def test_more_threads_than_cores_are_measured_with_a_warning(short_tuning, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: (0,))
    outcome = slimc("tune", "--threads", "2", "-o", tmp_path / "tuning.json", "--json")
    assert outcome.code == 0, outcome.stderr
    assert any("2 threads share 1 core(s)" in warning for warning in json.loads(outcome.stdout)["warnings"])
    assert "2 threads share 1 core(s)" in outcome.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--backend", "tensorrt"), "--backend: 'tensorrt' is no CPU back end"),
        (("--threads", "0"), "--threads: 0 threads cannot run anything"),
        (("-o", "/nowhere/tuning.json"), "the directory /nowhere does not exist"),
    ],
)
def test_bad_usage_is_one_line_before_any_work(given, message):
    outcome = slimc("tune", *given)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
