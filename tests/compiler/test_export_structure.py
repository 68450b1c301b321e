"""What a model says is left of it is what is in it."""

import slimc
from tests import vectors


def test_a_dense_model_says_that_its_heads_are_whole(tmp_path):
    network = slimc.load(vectors.DATA / "vitslim-a-channel-0.7" / "checkpoint.pth")
    dense, masked = (slimc.export(network, tmp_path / f"{name}.onnx", variant=name) for name in ("dense", "masked"))
    widths = {width for layer in slimc.read_metadata(dense.onnx).structure.layers for width in layer.heads}
    assert widths == {slimc.read_metadata(dense.onnx).structure.head_dim}
    cut = {width for layer in slimc.read_metadata(masked.onnx).structure.layers for width in layer.heads}
    assert min(cut) < min(widths)
