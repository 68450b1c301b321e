"""Small networks as modules in float64, between them with every part that there is."""

from __future__ import annotations

import numpy as np
import torch

from slimc import ir
from slimc.compiler.adaptive import limiting_passes
from slimc.compiler.limits import Limits
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import compile_model, passes_for
from slimc.passes.remove_settled_gates import Settled
from slimc.pytorch import VisionTransformer, to_torch
from slimc.targets.target import find_target
from tests import gated, selecting
from tests.artefacts import VECTORS
from tests.plain_networks import plain_network


def everything() -> VisionTransformer:
    """Rotations, norms everywhere, gated FFNs, a latent pool, two outputs, biases on some of q, k, v; rows left out."""
    features = {"rotation": "shared", "qk_norm": "layer", "output_norm": "layer", "inner_norm": "rms", "gated": True}
    more = {"layer_scale": True, "biases": "qvo", "pool": "latent", "norm_pre": "layer", "pooled_norm": "rms"}
    some = {"rows": True, "zero_rows": 3, "live": True, "ragged": True, "depth": 2, "ghosts": 2}
    return to_torch(plain_network(1, outputs=("logits", "features"), **features, **more, **some, activation="silu"))


def searched(target: str) -> VisionTransformer:
    """Ghosts, rows that end, heads of many widths; for "cpu", attention without keys and values."""
    features = {"masks": "binary", "token_masks": True, "heads": 4, "depth": 3, "grid": (3, 3), "head_dim": 6}
    found = find_target(target)
    model = compile_model(plain_network(7, **features), passes_for(found))
    return to_torch(ir.to_float64(model), found)


def selecting_network() -> VisionTransformer:
    """Convolutions with batch norms, tokens that are hidden, an auxiliary head."""
    config = selecting.small_config(lvvit=True)
    return to_torch(ir.to_float64(selecting.random_searched(config).masked))


def dropping_network() -> VisionTransformer:
    """Tokens that leave."""
    model = selecting.random_searched(selecting.small_config()).masked
    return to_torch(ir.to_float64(compile_model(model, passes_for(find_target("sm90")))))


def deciding_network() -> VisionTransformer:
    """Gates of branches, heads and tokens."""
    return to_torch(ir.to_float64(gated.random_adaptive(2).masked))


def limited_network() -> VisionTransformer:
    """Gates, and branches that work on a few rows."""
    model = gated.random_adaptive(2, head_effect="v2").masked
    limits = Limits((Settled(), *[Settled(heads=(None,) * 4)] * 2), (None, 5, 4))
    return to_torch(ir.to_float64(compile_model(model, limiting_passes(limits))))


def split_network() -> VisionTransformer:
    """T2T-ViT's stem."""
    return to_torch(ir.to_float64(load_network(VECTORS["t2t"]).masked))


NETWORKS = {
    "everything": everything,
    "searched": lambda: searched("generic"),
    "absorbed": lambda: searched("cpu"),
    "selecting": selecting_network,
    "dropping": dropping_network,
    "deciding": deciding_network,
    "limited": limited_network,
    "split": split_network,
}


def images_for(module: VisionTransformer, count: int = 2) -> torch.Tensor:
    """Standard normal images that `module` takes, of its type."""
    shape = (count, module.channels, *module.model.image)
    images = torch.from_numpy(np.random.default_rng(5).standard_normal(shape))
    return images.to(module.patch_embed.proj.weight.dtype)


def tensors(outputs: torch.Tensor | dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All outputs."""
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs.values())


def loss_of(outputs: torch.Tensor | dict[str, torch.Tensor]) -> torch.Tensor:
    """A number that depends on every output."""
    parts = tensors(outputs)
    weights = (torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view(part.shape) for part in parts)
    return torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum()
