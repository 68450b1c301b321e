"""Modules against what the IR means, and against the IR that they were made of."""

from __future__ import annotations

import numpy as np
import torch

from slimc import ir
from slimc.ir.interpret.model import trace
from slimc.pytorch import VisionTransformer, from_torch, to_torch
from slimc.targets.target import Target, find_target

EXACT = 1e-9


def outputs_of(module: torch.nn.Module, images: ir.FloatArray) -> dict[str, ir.FloatArray]:
    """What `module`, made of a model, gives for `images`, by name."""
    assert isinstance(module, VisionTransformer)
    with torch.no_grad():
        found = module(torch.from_numpy(images))
    if isinstance(found, torch.Tensor):
        found = {module.outputs[0].name: found}
    return {name: values.numpy() for name, values in found.items()}


def assert_computes(model: ir.Model, images: ir.FloatArray, target: Target | str = "generic") -> VisionTransformer:
    """The module of `model`, in float64, gives what the interpreter says, and the same IR back."""
    model = ir.to_float64(model)
    module = to_torch(model, find_target(target) if isinstance(target, str) else target)
    images = images.astype(np.float64)
    expected, found = trace(model, images).outputs, outputs_of(module, images)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        spread = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(found[name], values, rtol=0, atol=EXACT * spread, err_msg=name)
    assert_same(from_torch(module), model)
    return module


def assert_same(found: object, expected: object, where: str = "model") -> None:
    """Two nodes are equal bit by bit."""
    import dataclasses

    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray), where
        assert found.dtype == expected.dtype, where
        assert found.shape == expected.shape, where
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), where
    elif isinstance(expected, tuple):
        assert isinstance(found, tuple), where
        assert len(found) == len(expected), where
        for i, (first, second) in enumerate(zip(found, expected, strict=True)):
            assert_same(first, second, f"{where}[{i}]")
    elif dataclasses.is_dataclass(expected):
        assert type(found) is type(expected), where
        for field in dataclasses.fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name), f"{where}.{field.name}")
    else:
        assert found == expected, where
        assert type(found) is type(expected), where
