"""Small AdaViT networks with random weights, and the released vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimc import ir
from slimc.compiler.load import load_network
from slimc.files.checkpoint import Checkpoint
from slimc.ir.gate_usage import Usage
from slimc.models.ada_vit_network import AdaptiveVisionTransformer, AdaVitConfig
from slimc.models.options import AdaVitOptions, HeadEffect
from slimc.models.system import Network
from slimc.models.systems import AdaVit

DATA = Path(__file__).parent / "data"
VECTORS = ("adavit-a-head-layer", "adavit-b-head-layer-tokenmlp", "adavit-c-t2t-performer")

SMALL = AdaVitConfig(
    image=(32, 32),
    patch=(8, 8),
    dim=16,
    depth=3,
    heads=4,
    hidden=(32, 32, 32),
    classes=5,
    eps=1e-6,
    qkv_bias=True,
    heads_from=1,
    branches_from=1,
    tokens_from=0,
    tokens_with_mlp=True,
)


@dataclass(frozen=True, eq=False)
class Vector:
    """A released checkpoint, understood, with its images and what the released code computed."""

    checkpoint: Path
    searched: Network
    io: dict[str, Any]

    @property
    def images(self) -> ir.FloatArray:
        images: ir.FloatArray = self.io["images"]
        return images


def vector(name: str) -> Vector:
    path = DATA / name / "checkpoint.pth"
    with np.load(DATA / name / "io.npz") as content:
        io = dict(content)
    return Vector(path, load_network(path), io)


def arguments(config: AdaVitConfig) -> dict[str, Any]:
    return {
        "ada_head": config.heads_from is not None,
        "ada_head_v2": config.head_effect == "v2",
        "ada_head_attn": config.head_effect == "attn",
        "ada_layer": config.branches_from is not None,
        "ada_token": config.tokens_from is not None,
        "ada_token_with_mlp": config.tokens_with_mlp,
        "norm_policy": config.norm_policy,
    }


def random_checkpoint(config: AdaVitConfig = SMALL, seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    network = AdaptiveVisionTransformer(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 1.0 if "select" in name else 0.4
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, scale)
    return Checkpoint(Path("random.pth"), "0" * 64, network.state_dict(), arguments(config))


def random_adaptive(seed: int = 0, *, head_effect: HeadEffect = "plain", **flags: Any) -> Network:
    config = replace(SMALL, head_effect=head_effect, **flags)
    options = AdaVitOptions(num_heads=None if config.heads_from is not None else config.heads)
    return AdaVit().load(random_checkpoint(config, seed), options)


def images_for(searched: Network, count: int = 3, seed: int = 0) -> ir.FloatArray:
    return np.random.default_rng(seed).standard_normal((count, 3, *searched.masked.image), np.float32)


def observe(searched: Network, images: ir.FloatArray) -> tuple[ir.FloatArray, Usage]:
    """What the PyTorch network makes of `images`."""
    with torch.inference_mode():
        found = searched.trace(searched.pytorch("masked"), torch.from_numpy(images))
    assert found.usage is not None
    return found.logits.numpy(), found.usage
