"""What a user may say about a checkpoint, and what a front end makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from slimc import ir
from slimc.errors import OptionError
from slimc.ir.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

    from slimc.compiler.limits import Usage

    Select = Callable[[torch.nn.Module, torch.Tensor], tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]]

Variant = Literal["slim", "masked", "dense"]
HeadEffect = Literal["plain", "v2", "attn"]


@dataclass(frozen=True)
class ModelOptions:
    """What a checkpoint cannot tell about itself; None leaves it to the checkpoint."""

    img_size: tuple[int, int] | None = None
    num_heads: int | None = None
    qk_scale: float | None = None
    budget_attn: float | None = None
    budget_mlp: float | None = None
    budget_patch: float | None = None
    keep_rate: float | None = None
    keep_ratios: tuple[float, ...] | None = None
    pruning_loc: tuple[int, ...] | None = None
    skip_lam: float | None = None
    ada_head: HeadEffect | None = None
    ada_token_with_mlp: bool | None = None

    def refuse(self, system: str, *names: str) -> None:
        """Raise an OptionError where one of the options `names` is given though `system` has no such thing."""
        given = [f.name for f in fields(self) if f.name in names and getattr(self, f.name) is not None]
        if given:
            raise OptionError(f"--{given[0].replace('_', '-')}: {system} checkpoints have no such setting")


@dataclass(frozen=True)
class SearchedModel:
    """A checkpoint, understood: the network in IR as the research code runs it and with every mask at one.

    `network` builds the PyTorch network of a variant ("masked" or "dense"), in eval mode, float32: the reference that the
    emitted model is verified against. `settings` are the budgets or keep rates in force, for reports. Where the network
    selects tokens, `select` maps it and images to logits, the patches [B, K] that each stage keeps, best first, and how
    surely it does so [B] (`slimc.models.dynamic_vit_network.Selected`). Where it decides for each image what runs,
    `observe` maps it and images to logits and what it decided.
    """

    system: str
    masked: ir.Model
    dense: ir.Model
    network: Callable[[Variant], torch.nn.Module]
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    select: Select | None = None
    observe: Callable[[torch.nn.Module, torch.Tensor], tuple[torch.Tensor, Usage]] | None = None
