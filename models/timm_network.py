"""A plain vision transformer as a `Network`: from a module of timm's, a folder, or weights and timm's name of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slimc import ir
from slimc.errors import CheckpointError, OptionError
from slimc.files.checkpoint import Checkpoint
from slimc.models.network_masks import NetworkMasks, apply_masks, read_mask_file, read_masks
from slimc.models.options import ModelOptions, TimmOptions
from slimc.models.preprocessing import read_preprocessing
from slimc.models.system import Network, System, Variant
from slimc.models.timm_blocks import channel_order
from slimc.models.timm_reference import TimmReference, masked_copy, read_outputs
from slimc.models.timm_vit import default_outputs, read_network


@dataclass(frozen=True, eq=False)
class Source:
    """A module of timm's and where it comes from.

    Attributes:
        module: in eval mode, float32.
        path: the file or folder, or a name where there is neither.
        sha256: of the weights.
        name: of the architecture.
        args: how its images become inputs, by timm's names.
        concatenated_head: weight [classes, 2 C] and bias of a classifier of the class token beside the mean of the patches.
        warnings: what a user should know about how it was understood.
    """

    module: nn.Module
    path: Path
    sha256: str
    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    concatenated_head: tuple[torch.Tensor, torch.Tensor | None] | None = None
    warnings: tuple[str, ...] = ()


def from_module(module: nn.Module) -> Source:
    """A module in memory; what it is compiled from is a copy where it is not in eval mode, in float32 on the CPU."""
    weights = [*module.parameters(), *module.buffers()]
    plain = all(w.device.type == "cpu" and w.dtype in (torch.float32, torch.float64, torch.int64) for w in weights)
    if module.training or not plain:
        import copy

        module = copy.deepcopy(module).cpu().float().eval()
    config = getattr(module, "pretrained_cfg", None)
    name = str(getattr(module, "default_cfg", {}).get("architecture") or type(module).__name__)
    return Source(module, Path(name), digest(module), name, image_facts(config))


def digest(module: nn.Module) -> str:
    """A digest of the weights of `module` and of what it is made of."""
    found = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def image_facts(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a configuration of timm's, a mapping or a PretrainedCfg, says of how images become inputs."""
    if config is not None and not isinstance(config, Mapping):
        config = config.to_dict()
    names = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "input_size")
    return {name: config[name] for name in names if config is not None and config.get(name) not in (None, "")}


def build(source: Source, options: ModelOptions, system: System) -> Network:
    """The network of `source`, under the masks of the file that the options name, if any.

    Raises:
        CheckpointError: part of it computes what slimc does not know, or the masks cannot be read.
        OptionError: a mask or an option cannot be used.
    """
    try:
        dense = read_network(source.module, source.name)
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from None
    head: nn.Linear | None = None
    if source.concatenated_head is not None:
        dense, head = _concatenated(dense, *source.concatenated_head)
    preprocessing, warnings = _preprocessing(source, dense, options)
    network = Network(
        system=system,
        path=source.path,
        sha256=source.sha256,
        masked=dense,
        dense=dense,
        pytorch=lambda _: TimmReference(source.module, None, head).eval(),
        settings={"architecture": source.name},
        preprocessing=preprocessing,
        read=read_outputs,
        warnings=(*source.warnings, *warnings),
    )
    if not isinstance(options, TimmOptions) or options.masks is None:
        return network
    return under_masks(network, source.module, read_masks(dense, read_mask_file(Path(options.masks))), head)


def under_masks(network: Network, module: nn.Module, masks: NetworkMasks, head: nn.Linear | None = None) -> Network:
    """The unmasked `network`, whose `module` of timm's this is, under `masks`; `head` is its classifier, where it is no part
    of the module.
    """

    def pytorch(variant: Variant) -> nn.Module:
        if variant == "dense":
            return network.pytorch("dense")
        return TimmReference(masked_copy(module, masks), masks.read, head).eval()

    masked = apply_masks(network.dense, masks, _channel_order(module, network.dense))
    return replace(network, masked=masked, pytorch=pytorch)


def _channel_order(module: Any, model: ir.Model) -> ir.IndexArray | None:  # noqa: ANN401
    """The order in which `model` has the channels of q and k of a head of `module`; none for the module's own."""
    attentions = [block.attention for block in model.blocks if isinstance(block.attention, ir.Attention)]
    turned = next((head for attention in attentions for head in attention.heads if head.rotation is not None), None)
    return None if turned is None else channel_order(module.blocks[0].attn, len(turned.query.weight))


def mask_network(network: Network, masks: Mapping[str, Any]) -> Network:
    """The unmasked `network` under `masks` by name (`slimc.models.network_masks`).

    Raises:
        OptionError: the network has masks of its own already, or a mask cannot be used.
    """
    reference = network.pytorch("dense")
    if not isinstance(reference, TimmReference) or network.masked is not network.dense:
        raise OptionError(f"masks: {network.path} has masks of its own; expected a plain vision transformer")
    return under_masks(network, reference.network, read_masks(network.dense, masks), reference.concatenated)


def _concatenated(model: ir.Model, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[ir.Model, nn.Linear]:
    """`model` with a classifier of the class token beside the mean of the patches."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    rows = np.r_[0, np.arange(model.prefix, ir.embedded_rows(model))]
    head = ir.Linear(weight.detach().numpy(), None if bias is None else bias.detach().numpy())
    classifier = replace(model.classifier, rows=(), heads=(head,), pool=ir.Pool("token+avg", rows))
    model = replace(model, classifier=classifier)
    return ir.choose_outputs(model, default_outputs(classifier)), linear


def _preprocessing(source: Source, model: ir.Model, options: ModelOptions) -> Any:  # noqa: ANN401
    args, warnings = dict(source.args), tuple[str, ...]()
    if args.pop("crop_mode", "center") != "center":
        height, width = model.image
        warnings = (
            f"{source.path}: its own evaluation squashes or pads images to {height}x{width} pixels; slimc keeps their "
            "aspect and crops",
        )
    stated = Checkpoint(source.path, source.sha256, {}, {"pretrained_cfg": args})
    found, more = read_preprocessing(stated, model.image, options, channels=model.embedding.channels)
    return found, (*warnings, *more)
