"""Files of measured costs, and the targets that are made of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slimc.errors import OptionError
from slimc.evaluate.tune import write_tuning
from slimc.targets.target import find_target, for_half_precision, without_operator
from slimc.targets.tuning import packaged_tuning, read_tuning

SHIPPED = packaged_tuning(2)


@pytest.mark.parametrize(("threads", "measured"), [(1, 1), (2, 2), (8, 2), (None, 2)])
def test_one_thread_and_several_have_a_table_of_their_own(threads, measured):
    tuning = packaged_tuning(threads)
    assert tuning.costs.threads == measured
    assert tuning.operator
    assert 0 < tuning.error < 0.05
    assert find_target("cpu", threads=threads).costs == tuning.costs


def test_a_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "tuning.json"
    write_tuning(SHIPPED, path)
    assert read_tuning(path) == SHIPPED
    target = find_target("cpu", tuning=path)
    assert target.costs == SHIPPED.costs
    assert target.tuned == f"{SHIPPED.library}, threads: 2"


def test_costs_without_the_operator_make_a_target_without(tmp_path):
    write_tuning(replace(SHIPPED, operator=False), tmp_path / "tuning.json")
    assert not find_target("cpu", tuning=tmp_path / "tuning.json").attention_operator


BROKEN = {
    "text": "hello",
    "an array": "[]",
    "another format": json.dumps({"format": 2}),
    "no costs": json.dumps({"format": 1}),
    "a negative cost": None,
    "no number": None,
    "infinite": None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_tuning_is_one_line_that_says_so(kind, tmp_path):
    path = tmp_path / "tuning.json"
    write_tuning(SHIPPED, path)
    values = json.loads(path.read_text())
    values["costs"]["projection"] = {"a negative cost": -1, "no number": "many", "infinite": 1e400}.get(kind, 1)
    path.write_text(BROKEN[kind] or json.dumps(values))
    with pytest.raises(OptionError, match="is no file that slimc tune wrote") as caught:
        read_tuning(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_said_to_be():
    with pytest.raises(OptionError, match=r"none\.json cannot be read: No such file or directory; slimc tune -o"):
        find_target("cpu", tuning=Path("none.json"))


@pytest.mark.parametrize("name", ["generic", "sm89"])
def test_other_targets_take_no_tuning(name, tmp_path):
    with pytest.raises(OptionError, match=f"{name} has none, expected --target cpu"):
        find_target(name, tuning=tmp_path / "tuning.json")


def test_no_threads_are_too_few():
    with pytest.raises(OptionError, match="--threads: 0 threads cannot run anything"):
        find_target("cpu", threads=0)


def test_without_the_operator_heads_are_computed_one_by_one():
    plain = without_operator(find_target("cpu"))
    assert (plain.attention_operator, plain.max_heads, plain.tuned) == (False, 1, "")
    generic = find_target("generic")
    assert without_operator(generic) is generic


def test_the_residual_stream_passes_through_no_product_in_half_precision():
    half = for_half_precision(find_target("cpu"))
    assert (half.attention_operator, half.residual_in_product) == (False, False)
