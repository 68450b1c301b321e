"""Every pass on plain vision transformers: whatever a network has, all its outputs stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from slimc import ir
from slimc.compiler.pipeline import passes_for
from slimc.errors import PassError
from slimc.ir.interpret.model import trace
from slimc.ir.validate import validate
from slimc.targets.target import find_target
from tests.plain_networks import images_of, plain_networks, plain_rewritten_networks

TARGETS = {"generic": {}, "cpu": {"threads": 1}, "sm89": {}}


def assert_passes_keep(network: ir.Model, target: str) -> None:
    images = images_of(network)
    expected = trace(network, images).outputs
    for step in passes_for(find_target(target, **TARGETS[target])):  # type: ignore[arg-type]
        try:
            network = step(network)
        except PassError as error:
            assert any(word in str(error) for word in ("turned", "before", "not binary")), error
            return
        validate(network)
        found = trace(network, images).outputs
        assert list(found) == list(expected)
        for name, values in expected.items():
            scale = max(1.0, float(np.abs(values).max()))
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-9 * scale, err_msg=f"{step}: {name}")


@pytest.mark.parametrize("target", TARGETS)
@given(network=plain_networks())
def test_no_pass_changes_an_output(target, network):
    assert_passes_keep(network, target)


@pytest.mark.parametrize("target", TARGETS)
@given(network=plain_rewritten_networks())
def test_no_pass_changes_an_output_of_a_network_that_passes_have_changed(target, network):
    assert_passes_keep(network, target)
