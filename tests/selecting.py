"""DynamicViT networks to test on: the reference vectors, and small random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from slimc.files.checkpoint import Checkpoint
from slimc.ir import FloatArray, IndexArray
from slimc.models.dynamic_vit_network import DynamicVisionTransformer, DynamicVitConfig
from slimc.models.options import DynamicVitOptions
from slimc.models.system import Network
from slimc.models.systems import DynamicVit

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Vector:
    """A checkpoint that the released code wrote, with the options that it needs."""

    name: str
    options: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        return DATA / self.name / "checkpoint.pth"

    @property
    def images(self) -> FloatArray:
        return self._read("images")

    @property
    def logits(self) -> FloatArray:
        return self._read("logits")

    @property
    def kept(self) -> tuple[IndexArray, ...]:
        """The patches that the released code kept, ascending."""
        return tuple(self._read(f"keep_sorted_{stage}").astype(np.int64) for stage in range(3))

    @property
    def scores(self) -> tuple[FloatArray, ...]:
        """The released code's log-probabilities of keep [4, 196], NaN for patches that were gone."""
        return tuple(self._read(f"score_{stage}") for stage in range(3))

    @property
    def flags(self) -> list[str]:
        blocks = ",".join(map(str, self.options["pruning_loc"]))
        return ["--num-heads", str(self.options["num_heads"]), "--pruning-loc", blocks]

    def _read(self, key: str) -> FloatArray:
        with np.load(DATA / self.name / "io.npz") as content:
            return np.asarray(content[key])


VECTORS = (
    Vector("dynamicvit-a-deit-0.7", {"num_heads": 4, "pruning_loc": (3, 6, 9)}),
    Vector("dynamicvit-c-lvvit-0.7", {"num_heads": 4, "pruning_loc": (2, 4, 6)}),
)


def random_checkpoint(config: DynamicVitConfig, seed: int = 0) -> Checkpoint:
    """A checkpoint of that geometry in which no weight, bias, norm or statistic is trivial."""
    generator = torch.Generator().manual_seed(seed)
    state = DynamicVisionTransformer(config).state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point():
            noise = torch.empty_like(tensor).normal_(0.0, 1.0, generator=generator)
            fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 4
            centred = 1.0 if key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "in_conv.0.weight")) else 0.0
            state[key] = centred + noise * fan_in**-0.5
            if ".bn" in key and not key.endswith("bias"):
                state[key] = noise.abs() + 0.3
    return Checkpoint(Path("random.pth"), "0" * 64, state, {"input_size": config.image})


def random_searched(config: DynamicVitConfig, seed: int = 0) -> Network:
    """The same, understood."""
    options: dict[str, Any] = {
        "num_heads": config.heads,
        "pruning_loc": config.pruning_loc,
        "keep_ratios": tuple(min(1.0, (keep + 0.5) / config.patches) for keep in config.keep),
        "img_size": config.image,
        "skip_lam": config.skip_lam if config.stem else None,
    }
    return DynamicVit().load(random_checkpoint(config, seed), DynamicVitOptions(**options))


def small_config(
    *, lvvit: bool = False, keep: tuple[int, ...] = (6, 3), pruning_loc: tuple[int, ...] = (1, 2), depth: int = 3
) -> DynamicVitConfig:
    """Nine or so patches, two heads."""
    return DynamicVitConfig(
        image=(12, 16) if lvvit else (6, 8),
        patch=(4, 4) if lvvit else (2, 2),
        dim=16,
        depth=depth,
        heads=2,
        hidden=(24,) * depth,
        classes=5,
        pruning_loc=pruning_loc,
        keep=keep,
        qkv_bias=not lvvit,
        stem=((6, 7), (5, 3), (4, 3)) if lvvit else (),
        auxiliary=lvvit,
        skip_lam=2.5 if lvvit else 1.0,
        eps=1e-5 if lvvit else 1e-6,
    )


@st.composite
def configs(draw: st.DrawFn) -> DynamicVitConfig:
    """Small geometries of both families; a stage may ask for more patches than are left."""
    depth = draw(st.integers(1, 4))
    places = draw(st.lists(st.integers(0, depth - 1), min_size=1, max_size=depth, unique=True))
    keep = draw(st.lists(st.integers(1, 12), min_size=len(places), max_size=len(places)))
    return small_config(lvvit=draw(st.booleans()), keep=tuple(keep), pruning_loc=tuple(sorted(places)), depth=depth)


@st.composite
def searched_models(draw: st.DrawFn) -> Network:
    """Random networks of such geometries."""
    return random_searched(draw(configs()), draw(st.integers(0, 1000)))


def images_for(searched: Network, count: int = 2, seed: int = 0) -> FloatArray:
    """Inputs for a network, float32."""
    return np.random.default_rng(seed).standard_normal((count, 3, *searched.masked.image), np.float32)
