"""Emission of a convolutional stem."""

from __future__ import annotations

from slimc import ir
from slimc.graph import GraphBuilder, Value, dims


def emit_stem(graph: GraphBuilder, stem: tuple[ir.Convolution, ...], images: Value) -> Value:
    """What the patches are cut from: [B, channels, height, width]."""
    x = images
    for i, convolution in enumerate(stem, 1):
        x = _convolution(graph, convolution, x, i)
    return x


def _convolution(graph: GraphBuilder, convolution: ir.Convolution, x: Value, i: int) -> Value:
    name = f"patch_embed.conv{i}"
    out, _, kernel, _ = convolution.weight.shape
    inputs = [x, graph.parameter(f"{name}.weight", convolution.weight)]
    if convolution.bias is not None:
        inputs.append(graph.parameter(f"{name}.bias", convolution.bias))
    batch, _, height, width = dims(x)
    stride = convolution.stride
    shape = (batch, out, *((side - 1) // stride + 1 for side in (height, width)))
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
    y = graph.op("Conv", inputs, name, shape, attributes)
    if convolution.norm is not None:
        norm, label = convolution.norm, f"patch_embed.bn{i}"
        parts = {"weight": norm.weight, "bias": norm.bias, "running_mean": norm.mean, "running_var": norm.variance}
        parameters = [graph.parameter(f"{label}.{part}", array) for part, array in parts.items()]
        y = graph.op("BatchNormalization", [y, *parameters], label, shape, {"epsilon": norm.eps})
    return graph.op("Relu", [y], f"patch_embed.relu{i}", shape)
