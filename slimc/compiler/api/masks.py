"""The library's function for masks of any pruning method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimc.models.system import Network


def mask(network: Network, masks: Mapping[str, Any] | str | Path) -> Network:
    """A plain vision transformer under masks, of whatever method: what they switch off, `compile` removes.

    Args:
        network: what `load` made of a module, a folder or plain weights; it has no masks yet.
        masks: arrays of 0 and 1 by name, or a .npz or .safetensors file of them: ``blocks.3.heads`` [H], ``blocks.3.qk``,
            ``.v`` and ``.channels`` [H, d] (q and k, v, or all three), ``blocks.3.hidden`` [F], ``patches`` [patches] or
            [depth, patches], ``attn_pool.heads`` and so on. Channels and patches count as in the module. What is not named
            stays.

    Returns:
        The network whose masked form the compiled one is verified against; masks multiply there.

    Raises:
        OptionError: a mask is of nothing in the network, has another shape, or cannot leave exactly; or the network has
            masks of its own.
        CheckpointError: the file cannot be read.

    Example:
        >>> import numpy as np, timm
        >>> net = slimc.load(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10))
        >>> pruned = slimc.mask(net, {"blocks.0.heads": [1, 0, 1], "blocks.1.hidden": np.arange(768) % 3 == 0})
        >>> slim = slimc.compile(pruned)
        >>> [layer.hidden for layer in slim.structure.layers], slim.structure.layers[0].heads
        ([768, 256], (64, 0, 64))
    """
    from slimc.models.network_masks import read_mask_file
    from slimc.models.timm_network import mask_network

    return mask_network(network, read_mask_file(Path(masks)) if isinstance(masks, (str, Path)) else masks)
