"""FFNs get the number of hidden units that a target's kernels need, and mean what they did."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from slimc import ir
from slimc.ir.interpret.model import trace
from slimc.ir.validate import validate
from slimc.passes.align_hidden import AlignHidden
from slimc.targets.target import find_target
from tests.plain_networks import images_of, plain_network, plain_networks

align = AlignHidden(find_target("sm90"))


@given(plain_networks(masks=None))
def test_aligned_networks_mean_the_same(network):
    aligned = align(network)
    validate(aligned)
    images = images_of(network)
    expected = trace(network, images).outputs
    for name, values in trace(aligned, images).outputs.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-9 * max(1.0, np.abs(values).max()))
    assert all(isinstance(b.mlp, ir.Mlp) and len(b.mlp.up.weight) % 8 == 0 for b in aligned.blocks)
    assert align(aligned) is aligned


def test_any_width_will_do_where_the_target_does_not_mind():
    network = plain_network(0, hidden=7)
    assert AlignHidden(find_target("generic"))(network) is network


@pytest.mark.parametrize("change", [{"mask": np.ones(7)}, {"unit_gates": np.full(7, -1)}])
def test_units_that_somebody_counts_stay_as_they_are(change):
    network = plain_network(0, hidden=7)
    blocks = tuple(replace(block, mlp=replace(block.mlp, **change)) for block in network.blocks)  # type: ignore[type-var]
    network = replace(network, blocks=blocks)
    assert align(network) is network
