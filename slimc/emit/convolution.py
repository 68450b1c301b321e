"""Emission of the convolutions that stand before the patches."""

from __future__ import annotations

from slimc import ir
from slimc.emit.graph import GraphBuilder, Value, dims


def emit_convolution(graph: GraphBuilder, convolution: ir.Convolution, x: Value, i: int) -> Value:
    """The `i`-th stage of a stem, counted from 1: [B, in, height, width] to [B, out, height / stride, width / stride]."""
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
