"""Building ONNX graphs: one method an operator, each of which knows the static shape it yields.

Every float initializer is a parameter of the network, under the name it has in the checkpoint; everything else that is
constant (masks, shapes, ghost rows) is a Constant node. So parameters can be counted in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from slimc.errors import InternalError
from slimc.ir import Linear

Value = oir.Value


class GraphBuilder:
    """An ONNX graph under construction, float32, opset `opset`."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.inputs: list[Value] = []
        self._nodes: list[oir.Node] = []
        self._initializers: list[Value] = []
        self._names: set[str] = set()
        self._constants: dict[tuple[object, ...], Value] = {}

    def input(self, name: str, shape: Sequence[int]) -> Value:
        """A float32 graph input."""
        value = self._value(name, shape, oir.DataType.FLOAT)
        self.inputs.append(value)
        return value

    def parameter(self, name: str, array: npt.NDArray[Any]) -> Value:
        """An initializer holding `array` as float32."""
        array = np.ascontiguousarray(array, np.float32)
        value = self._value(name, array.shape, oir.DataType.FLOAT)
        value.const_value = oir.tensor(array, name=name)
        self._initializers.append(value)
        return value

    def constant(self, array: npt.NDArray[Any], name: str = "const") -> Value:
        """A Constant node holding `array`; equal constants are one node."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            unique = f"{name}.{len(self._names)}"
            attributes = {"value": oir.tensor(array, name=unique)}
            dtype = oir.DataType.from_numpy(array.dtype)
            self._constants[key] = self.op("Constant", [], unique, array.shape, attributes, dtype=dtype)
        return self._constants[key]

    def op(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        name: str,
        shape: Sequence[int],
        attributes: dict[str, Any] | None = None,
        dtype: oir.DataType | None = None,
    ) -> Value:
        """One node with one output called `name` of the given shape, of its first input's type unless `dtype` says."""
        if dtype is None:
            first = inputs[0]
            assert first is not None
            assert first.dtype is not None
            dtype = first.dtype
        output = self._value(name, shape, dtype)
        self._nodes.append(oir.node(kind, inputs, attributes, outputs=[output], name=name))
        return output

    def _value(self, name: str, shape: Sequence[int], dtype: oir.DataType) -> Value:
        if name in self._names:
            raise InternalError(f"two values of the graph are called {name}")
        self._names.add(name)
        return oir.Value(name=name, shape=oir.Shape(shape), type=oir.TensorType(dtype))

    def build(self, outputs: Sequence[Value], name: str) -> oir.Graph:
        """The finished graph."""
        return oir.Graph(
            self.inputs,
            outputs,
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports={"": self.opset},
            name=name,
        )

    def branch(self, condition: Value, then: Callable[[], Value], otherwise: Callable[[], Value], name: str) -> Value:
        """`then()` where the boolean scalar `condition` holds, else `otherwise()`: only one of them is computed.

        Both build a value of the same shape, from new nodes and from any value of this graph.
        """
        bodies = {
            "then_branch": self._body(then, f"{name}.then"),
            "else_branch": self._body(otherwise, f"{name}.else"),
        }
        result = bodies["then_branch"].outputs[0]
        return self.op("If", [condition], name, dims(result), bodies, dtype=result.dtype)

    def _body(self, make: Callable[[], Value], name: str) -> oir.Graph:
        """A subgraph; constants that it needs are its own, parameters belong to the whole graph."""
        outer = self._nodes, self._constants
        self._nodes, self._constants = [], {}
        result = make()
        if result.producer() not in self._nodes:
            result = self.op("Identity", [result], f"{name}.output", dims(result))
        body = oir.Graph([], [result], nodes=self._nodes, name=name)
        self._nodes, self._constants = outer
        return body

    def gemm(self, x: Value, weight: Value, bias: Value | None, name: str) -> Value:
        """X weight^T + bias: x [rows, in], weight [out, in], bias [out] or [rows, out]."""
        shape = (dims(x)[0], dims(weight)[0])
        inputs = [x, weight] if bias is None else [x, weight, bias]
        return self.op("Gemm", inputs, name, shape, {"transB": 1})

    def linear(self, x: Value, linear: Linear, name: str) -> Value:
        """`linear` of x [rows, in], whose parameters are those of the module `name`."""
        weight = self.parameter(f"{name}.weight", linear.weight)
        bias = None if linear.bias is None else self.parameter(f"{name}.bias", linear.bias)
        return self.gemm(x, weight, bias, name)

    def matmul(self, a: Value, b: Value, name: str) -> Value:
        """The product a b over the last two axes; the leading axes are equal."""
        return self.op("MatMul", [a, b], name, (*dims(a)[:-1], dims(b)[-1]))

    def add(self, a: Value, b: Value, name: str) -> Value:
        """A + b."""
        return self.op("Add", [a, b], name, np.broadcast_shapes(dims(a), dims(b)))

    def mul(self, a: Value, b: Value, name: str) -> Value:
        """A * b."""
        return self.op("Mul", [a, b], name, np.broadcast_shapes(dims(a), dims(b)))

    def scale(self, a: Value, factor: float, name: str) -> Value:
        """A times a number."""
        return self.mul(a, self.constant(np.float32(factor)), name)

    def reshape(self, x: Value, shape: Sequence[int], name: str) -> Value:
        """`x` with another shape; `x` itself where it has that shape."""
        if dims(x) == tuple(shape):
            return x
        inputs = [x, self.constant(np.array(shape, np.int64), "shape")]
        return self.op("Reshape", inputs, name, shape, dtype=x.dtype or oir.DataType.FLOAT)

    def transpose(self, x: Value, axes: Sequence[int], name: str) -> Value:
        """`x` with its axes permuted."""
        return self.op("Transpose", [x], name, [dims(x)[axis] for axis in axes], {"perm": list(axes)})

    def concat(self, parts: Sequence[Value], axis: int, name: str) -> Value:
        """`parts` joined along `axis`; the only part itself where there is one."""
        if len(parts) == 1:
            return parts[0]
        shape = list(dims(parts[0]))
        shape[axis] = sum(dims(part)[axis] for part in parts)
        return self.op("Concat", parts, name, shape, {"axis": axis})

    def split(self, x: Value, sizes: Sequence[int], axis: int, names: Sequence[str]) -> list[Value]:
        """`x` cut along `axis` into pieces of the given sizes."""
        if len(sizes) == 1:
            return [x]
        shape = dims(x)
        outputs = [
            self._value(name, (*shape[:axis], size, *shape[axis + 1 :]), oir.DataType.FLOAT)
            for name, size in zip(names, sizes, strict=True)
        ]
        inputs = [x, self.constant(np.array(sizes, np.int64), "split")]
        node = oir.node("Split", inputs, {"axis": axis}, outputs=outputs, name=f"{names[0]}.split")
        self._nodes.append(node)
        return outputs

    def take(self, x: Value, indices: npt.NDArray[np.int64], axis: int, name: str) -> Value:
        """Rows of `x` along `axis`: a Slice where the indices are consecutive, else a Gather; `x` itself for all."""
        count = len(indices)
        shape = (*dims(x)[:axis], count, *dims(x)[axis + 1 :])
        first = int(indices[0])
        if not np.array_equal(indices, np.arange(first, first + count)):
            return self.op("Gather", [x, self.constant(indices, "indices")], name, shape, {"axis": axis})
        if count == dims(x)[axis]:
            return x
        bounds = [self.constant(np.array([n], np.int64), "slice") for n in (first, first + count, axis)]
        return self.op("Slice", [x, *bounds], name, shape)

    def top_k(self, x: Value, count: int, name: str) -> tuple[Value, Value]:
        """The `count` largest entries of every row of `x` [B, N], largest first, and their positions, both [B, count].

        Of equal entries the first comes first.
        """
        shape = (dims(x)[0], count)
        values = self._value(f"{name}.values", shape, oir.DataType.FLOAT)
        positions = self._value(name, shape, oir.DataType.INT64)
        inputs = [x, self.constant(np.array([count], np.int64), "count")]
        self._nodes.append(oir.node("TopK", inputs, {"axis": 1}, outputs=[values, positions], name=name))
        return values, positions

    def reduce(self, kind: str, x: Value, axis: int, name: str, *, keep: bool = False) -> Value:
        """ReduceMean or ReduceMax along `axis`, which goes unless it is to `keep` at size 1."""
        gone = axis % len(dims(x))
        shape = [1 if i == gone else size for i, size in enumerate(dims(x)) if keep or i != gone]
        if self.opset >= 18:
            axes = self.constant(np.array([axis], np.int64), "axes")
            return self.op(kind, [x, axes], name, shape, {"keepdims": int(keep)})
        return self.op(kind, [x], name, shape, {"axes": [axis], "keepdims": int(keep)})

    def gather(self, x: Value, indices: Value, name: str) -> Value:
        """Rows `indices` (int64 [n]) of the matrix `x`."""
        return self.op("Gather", [x, indices], name, (dims(indices)[0], dims(x)[1]), {"axis": 0})

    def pick(self, x: Value, indices: npt.NDArray[np.int64], name: str) -> Value:
        """Entries `indices` [...] of every row of the matrix `x` [B, n]: [B, ...]."""
        shape = (dims(x)[0], *indices.shape)
        return self.op("Gather", [x, self.constant(indices, "indices")], name, shape, {"axis": 1})

    def scatter(self, x: Value, indices: Value, rows: Value, name: str) -> Value:
        """The matrix `x` with `rows` in place of its rows `indices` (int64 [n], each at most once)."""
        column = self.reshape(indices, (dims(indices)[0], 1), f"{name}.column")
        return self.op("ScatterND", [x, column, rows], name, dims(x))

    def exceeds(self, x: Value, threshold: float, name: str) -> Value:
        """Whether `x` exceeds a number, strictly: booleans."""
        limit = self.constant(np.float32(threshold))
        return self.op("Greater", [x, limit], name, dims(x), dtype=oir.DataType.BOOL)

    def as_float(self, x: Value, name: str) -> Value:
        """0 and 1 for booleans."""
        return self.op("Cast", [x], name, dims(x), {"to": oir.DataType.FLOAT}, oir.DataType.FLOAT)

    def softmax(self, x: Value, name: str) -> Value:
        """Softmax over the last axis."""
        return self.op("Softmax", [x], name, dims(x), {"axis": -1})

    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        bias: Value | None,
        heads: tuple[int, int],
        scale: float,
        name: str,
    ) -> Value:
        """softmax(scale q k^T + bias) v by heads (opset 23), all [B, N, heads * width].

        `heads` are those of the queries and those of keys and values, each of which serves as many of the former.
        """
        query_heads, key_heads = heads
        attributes = {"q_num_heads": query_heads, "kv_num_heads": key_heads, "scale": scale}
        inputs = [query, key, value] if bias is None else [query, key, value, bias]
        return self.op(
            "Attention", inputs, name, (*dims(query)[:2], dims(value)[2] // key_heads * query_heads), attributes
        )


def dims(value: Value) -> tuple[int, ...]:
    """The static shape of `value`."""
    assert value.shape is not None
    return tuple(int(axis) for axis in value.shape)  # type: ignore[arg-type]
