"""How large values get: measured in the graph, over all inputs, inside branches too."""

import numpy as np
import onnx_ir as oir
import pytest

from slimc.emit.activations import activate
from slimc.emit.graph import GraphBuilder
from slimc.errors import ModelFileError
from slimc.evaluate.ranges import largest_values

IMAGES = np.random.default_rng(0).standard_normal((5, 3, 2, 2)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)


def model(*, positive: bool = True) -> oir.Model:
    """A product of two images a batch, moved, with a constant added; then, by the sign of a number, twice that or itself."""
    graph = GraphBuilder(17)
    images = graph.input("images", (2, 3, 2, 2))
    flat = graph.reshape(images, (2, 12), "flat")
    offset = graph.constant(np.array([[0, 0, 0, 1000]], np.float32))
    product = graph.gemm(flat, graph.parameter("weight", WEIGHT), offset, "product")
    moved = graph.transpose(product, (1, 0), "moved")
    sign = graph.exceeds(graph.constant(np.float32(1.0 if positive else -1.0)), 0.0, "positive")
    out = graph.branch(sign, lambda: graph.scale(moved, 2.0, "doubled"), lambda: moved, "chosen")
    return oir.Model(graph.build([graph.scale(out, 3.0, "logits")], "m"), ir_version=8)


@pytest.mark.parametrize("positive", [True, False])
def test_the_largest_value_is_over_all_images_and_both_branches(positive):
    network = model(positive=positive)
    before = oir.to_proto(network).SerializeToString()
    found = largest_values(network, ["flat", "product", "moved", "doubled", "logits", "nothing"], IMAGES)
    assert oir.to_proto(network).SerializeToString() == before
    product = IMAGES.reshape(5, 12) @ WEIGHT.T
    assert set(found) == {"flat", "product", "moved", "doubled", "logits"}
    assert found["flat"].measured == pytest.approx(np.abs(IMAGES).max())
    assert found["flat"].fixed == 0.0
    for name in ("product", "moved"):
        assert found[name].measured == pytest.approx(np.abs(product).max(), rel=1e-4)
        assert found[name].fixed == 1000.0
    whole = np.abs(product + np.array([0, 0, 0, 1000])).max()
    assert found["doubled"].measured == pytest.approx(2 * whole)
    assert found["logits"].measured == pytest.approx((6 if positive else 3) * whole)


def test_what_is_not_a_number_counts_as_infinite():
    images = IMAGES.copy()
    images[3, 0, 0, 0] = np.inf
    assert largest_values(model(), ["flat"], images)["flat"].measured == np.inf


def test_images_of_another_model_are_refused():
    with pytest.raises(ModelFileError, match=r"takes images \[3, 2, 2\], but was given \[3, 4, 4\]"):
        largest_values(model(), ["product"], np.zeros((1, 3, 4, 4), np.float32))
    assert largest_values(model(), [], IMAGES) == {}


def test_a_gelu_that_onnx_runtime_fuses_is_measured_as_it_stands():
    graph = GraphBuilder(17)
    images = graph.input("images", (2, 3, 2, 2))
    flat = graph.reshape(images, (2, 12), "flat")
    hidden = graph.gemm(flat, graph.parameter("weight", WEIGHT), None, "hidden")
    output = activate(graph, "gelu_tanh", hidden, "act")
    network = oir.Model(graph.build([output], "m"), ir_version=8)
    found = largest_values(network, ["act.half"], IMAGES)
    product = IMAGES.reshape(5, 12) @ WEIGHT.T
    assert found["act.half"].measured == pytest.approx(np.abs(product).max() / 2, rel=1e-4)
