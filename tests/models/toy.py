"""A system that nobody knows, added with one class and one line: ViT-Slim whose zetas are called ``toy_zeta``.

    python -m tests.models.toy ARGUMENTS...

runs the command line that knows it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from slimc.files.checkpoint import Checkpoint
from slimc.models import systems
from slimc.models.options import ModelOptions, VitSlimOptions, option, share
from slimc.models.system import Network, System


@dataclass(frozen=True)
class ToyOptions(ModelOptions):
    """Options of toys."""

    toy_share: float | None = option("Share of a toy to keep.", parse=share, metavar="SHARE")


class Toy(System):
    """A toy."""

    name = "toy"
    title = "Toy"
    looks = "blocks.i.attn.toy_zeta"
    options = ToyOptions

    def recognises(self, keys: Collection[str]) -> bool:
        return any(key.startswith("blocks.") and key.endswith(".toy_zeta") for key in keys)

    def load(self, checkpoint: Checkpoint, options: Any) -> Network:
        from slimc.models import vit_slim

        renamed = {key.replace("toy_zeta", "zeta"): weight for key, weight in checkpoint.state.items()}
        translated = VitSlimOptions(img_size=options.img_size, num_heads=options.num_heads, budget=options.toy_share)
        return vit_slim.load(replace(checkpoint, state=renamed), translated, self)


SYSTEMS: tuple[System, ...] = (*systems.SYSTEMS, Toy())


if __name__ == "__main__":
    systems.SYSTEMS = SYSTEMS  # before the command line is imported, which gives every system its options
    from slimc.cli.main import main

    main()
