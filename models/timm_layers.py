"""Reading the layers that timm's vision transformers are made of.

Whatever could compute something else is refused by name: a class that is not known, a submodule or parameter that a known
class does not have, a hook, a forward method of an instance's own, a parametrisation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from slimc.errors import CheckpointError
from slimc.ir import Activation, FloatArray, LayerNorm, Linear, Norm, RmsNorm

# In evaluation these give back what they get.
_IDENTITIES = ("Identity", "Dropout", "DropPath", "PatchDropout", "PatchDropoutWithIndices")
_LAYER_NORMS = ("LayerNorm", "LayerNormFp32")
_RMS_NORMS = ("RmsNorm", "RmsNormFp32", "RMSNorm")
_ACTIVATIONS: Mapping[str, Activation] = {
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "silu",
    "Swish": "silu",
    "ReLU": "relu",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HOMES = ("timm.", "torch.nn.modules.")


def kind_of(module: nn.Module, path: str) -> str:
    """The class of `module`, which is timm's or torch's own and nothing has been put around.

    Raises:
        CheckpointError: it is another, or something has.
    """
    kind = type(module)
    if not kind.__module__.startswith(_HOMES):
        raise CheckpointError(
            f"{path}: is a {kind.__module__}.{kind.__qualname__}; expected a module of timm's or torch's own"
        )
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        raise CheckpointError(f"{path}: has a forward hook, which may change what it computes; remove it")
    overridden = sorted(name for name in vars(module) if name in ("forward", "__call__", "_call_impl"))
    if overridden:
        raise CheckpointError(f"{path}: has a {overridden[0]} of its own in place of {kind.__name__}'s; delete it")
    return kind.__name__


def expect(module: nn.Module, path: str, kinds: Collection[str]) -> str:
    """The class of `module`, one of `kinds`.

    Raises:
        CheckpointError: it is another.
    """
    found = kind_of(module, path)
    if found not in kinds:
        raise CheckpointError(f"{path}: is a {found}, which slimc does not know; expected {' or '.join(kinds)}")
    return found


def check_parts(module: nn.Module, path: str, children: Collection[str], own: Collection[str] = ()) -> None:
    """Check that `module` has no submodules but `children` and no parameters or buffers but `own`, and that the children
    that do nothing in evaluation are what they seem.

    Raises:
        CheckpointError: there is another.
    """
    for name, _ in module.named_children():
        if name not in children:
            raise CheckpointError(f"{path}.{name}: is no part of a {type(module).__name__} that slimc knows; remove it")
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, _ in tensors:
        if name not in own:
            raise CheckpointError(
                f"{path}.{name}: is no weight of a {type(module).__name__} that slimc knows; remove it"
            )


def check_idle(module: nn.Module, path: str, names: Collection[str]) -> None:
    """Check that those of the submodules `names` that there are do nothing in evaluation.

    Raises:
        CheckpointError: one does something.
    """
    for name in names:
        child = getattr(module, name, None)
        if child is not None:
            expect(child, f"{path}.{name}", _IDENTITIES)


def is_identity(module: nn.Module | None) -> bool:
    """Whether `module` gives back what it gets, or is none."""
    return module is None or type(module) is nn.Identity


def array(tensor: torch.Tensor, path: str) -> FloatArray:
    """The weights of `tensor`, in memory that they share where they can.

    Raises:
        CheckpointError: they are not finite floating-point numbers in memory.
    """
    if tensor.is_meta or not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise CheckpointError(
            f"{path}: has the type {tensor.dtype} on {tensor.device}; expected floating-point weights"
        )
    values: FloatArray = tensor.detach().cpu().contiguous().numpy()
    if not np.isfinite(values).all():
        raise CheckpointError(f"{path}: has NaN or Inf among its weights")
    return values


def maybe(tensor: torch.Tensor | None, path: str) -> FloatArray | None:
    """Like `array`, but none for none."""
    return None if tensor is None else array(tensor, path)


def linear(module: nn.Module, path: str) -> Linear:
    """A linear layer."""
    expect(module, path, ("Linear",))
    check_parts(module, path, (), ("weight", "bias"))
    assert isinstance(module, nn.Linear)
    return Linear(array(module.weight, f"{path}.weight"), maybe(module.bias, f"{path}.bias"))


def norm(module: nn.Module | None, path: str) -> Norm | None:
    """A normalisation over the last axis; none for an identity."""
    if module is None or is_identity(module):
        return None
    kind: Any = expect(module, path, (*_LAYER_NORMS, *_RMS_NORMS))
    check_parts(module, path, (), ("weight", "bias"))
    shape = tuple(getattr(module, "normalized_shape", ()))
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if len(shape) != 1 or weight is None:
        raise CheckpointError(f"{path}: normalises over {shape} with weight {weight}; expected one axis and a weight")
    scale, eps = array(weight, f"{path}.weight"), getattr(module, "eps", None)
    eps = float(np.finfo(scale.dtype).eps) if eps is None else float(eps)
    if kind in _RMS_NORMS:
        return RmsNorm(scale, eps)
    shift = np.zeros_like(scale) if bias is None else array(bias, f"{path}.bias")
    return LayerNorm(scale, shift, eps)


def activation(module: nn.Module, path: str) -> Activation:
    """What stands between the linear layers of an FFN."""
    kind = expect(module, path, ("GELU", *_ACTIVATIONS))
    if kind == "GELU":
        return "gelu" if getattr(module, "approximate", "none") == "none" else "gelu_tanh"
    return _ACTIVATIONS[kind]
