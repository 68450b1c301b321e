"""Emitted models in memory: running them in ONNX Runtime, and reading shapes and products out of the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime
from onnx.shape_inference import infer_shapes

from slimc import ir
from slimc.emit.model import emit
from slimc.targets.target import find_target


def emitted(
    network: ir.Model, *, target: str = "generic", batch_size: int = 1, opset: int | None = None
) -> onnx.ModelProto:
    """`network` as ONNX."""
    return oir.to_proto(emit(network, find_target(target), batch_size=batch_size, opset=opset))


def run_onnx(model: onnx.ModelProto, images: ir.FloatArray) -> ir.FloatArray:
    """Logits of one batch of `images` in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: ir.FloatArray = session.run(["logits"], {"images": images.astype(np.float32)})[0]
    return logits


def inferred_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every value, by ONNX's own shape inference; the shapes that the emitter wrote are thrown away."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        assert all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim), value.name
        shapes[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    return shapes


def written_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every value as the emitter wrote it."""
    return {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    }


@dataclass(frozen=True)
class Product:
    """A Conv, Gemm or MatMul: `batch` products of [rows, inner] by [inner, columns]."""

    kind: str
    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def macs(self) -> int:
        return self.batch * self.rows * self.inner * self.columns


def products(model: onnx.ModelProto) -> dict[str, Product]:
    """Every product of the graph, by the name of its output, in the graph's order."""
    shapes = inferred_shapes(model)
    return {
        node.output[0]: _product(node, shapes)
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
    }


def _product(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> Product:
    first, second, result = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return Product("Conv", result[0], math.prod(result[2:]), math.prod(second[1:]), result[1])
    if node.op_type == "Gemm":
        return Product("Gemm", 1, result[0], first[1], result[1])
    return Product("MatMul", math.prod(result[:-2]), result[-2], first[-1], result[-1])


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of one batch."""
    shapes = inferred_shapes(model)
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    return sum(product.macs for product in products(model).values()) + sum(
        _attention_macs(shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]) for node in attentions
    )


def _attention_macs(query: tuple[int, ...], key: tuple[int, ...], mixed: tuple[int, ...]) -> int:
    """Of scores and mixing, whatever the heads: [B, Nq, heads d], [B, Nk, ...], [B, Nq, heads dv]."""
    return query[0] * query[1] * key[1] * (query[2] + mixed[2])


def parameters(model: onnx.ModelProto) -> int:
    """Entries of the float initializers."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in floats)


def with_features(path: Path, value: str = "head.norm") -> Path:
    """The model at `path` with what its head reads as another output, beside it."""
    model = infer_shapes(onnx.load(path))
    info = next(info for info in model.graph.value_info if info.name == value)
    sizes = [size.dim_value for size in info.type.tensor_type.shape.dim]
    model.graph.node.append(onnx.helper.make_node("Identity", [value], ["features"], name="features"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, sizes))
    made = path.with_name("features.onnx")
    onnx.save(model, made)
    return made
