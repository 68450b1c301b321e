"""The systems that slimc knows, in one list: the only place where a system is registered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from slimc.errors import CheckpointError
from slimc.models.options import AdaVitOptions, DynamicVitOptions, TimmOptions, VitSlimOptions
from slimc.models.system import Network, System

if TYPE_CHECKING:
    from slimc.files.checkpoint import Checkpoint


class VitSlim(System):
    """ViT-Slim (Chavan et al., CVPR 2022): zetas on head channels, FFN channels and patches."""

    name = "vit_slim"
    title = "ViT-Slim"
    looks = "blocks.i.attn.zeta and blocks.i.attn.patch_zeta"
    options = VitSlimOptions
    everything = MappingProxyType({"budget": 1.0})
    backbones = True

    def recognises(self, keys: Collection[str]) -> bool:
        """Whether there are zetas."""
        return _any_block(keys, (".attn.patch_zeta", ".attn.zeta", ".mlp.zeta"))

    def load(self, checkpoint: Checkpoint, options: Any) -> Network:  # noqa: ANN401
        """See `slimc.models.vit_slim` and, for backbones of timm's, `slimc.models.vit_slim_backbones`."""
        from slimc.models import vit_slim, vit_slim_backbones

        if vit_slim_backbones.has_backbone(checkpoint, options):
            return vit_slim_backbones.load(checkpoint, options, self)
        return vit_slim.load(checkpoint, options, self)

    def facts(self, settings: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Budgets and thresholds."""
        kinds = {"attn": "attention", "mlp": "FFN", "patch": "patches"}
        budgets = ", ".join(f"{kinds[kind]} {100 * share:.4g} %" for kind, share in settings["budgets"].items())
        limits = ", ".join(f"{kinds[kind]} {limit:.6g}" for kind, limit in details["thresholds"].items())
        return ("kept of each kind, by budget", budgets), ("least importance kept", limits), *_compiled(details)


class DynamicVit(System):
    """DynamicViT (Rao et al., NeurIPS 2021): predictors that score tokens, of which stages keep the best."""

    name = "dynamic_vit"
    title = "DynamicViT"
    looks = "score_predictor.i"
    options = DynamicVitOptions
    everything = MappingProxyType({"keep_rate": 1.0})

    def recognises(self, keys: Collection[str]) -> bool:
        """Whether there are predictors."""
        return any(key.startswith("score_predictor.") for key in keys)

    def load(self, checkpoint: Checkpoint, options: Any) -> Network:  # noqa: ANN401
        """See `slimc.models.dynamic_vit`."""
        from slimc.models import dynamic_vit

        return dynamic_vit.load(checkpoint, options, self)

    def facts(self, settings: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """The backbone, and what every stage keeps."""
        stages = ", ".join(
            f"{count} ({ratio:.1%}) before block {block}"
            for count, ratio, block in zip(
                settings["keep"], settings["keep_ratios"], settings["pruning_loc"], strict=True
            )
        )
        return ("backbone", str(details["family"])), ("patches kept", stages), *_compiled(details)


class AdaVit(System):
    """AdaViT (Meng et al., CVPR 2022): policies that decide for each image about heads, blocks and tokens."""

    name = "ada_vit"
    title = "AdaViT"
    looks = "blocks.i.attn.query with head_select, layer_select or token_select"
    options = AdaVitOptions
    averaged = True
    decides = True

    def recognises(self, keys: Collection[str]) -> bool:
        """Whether queries, keys and values have layers of their own."""
        return any(key.startswith("blocks.") and ".attn.query." in key for key in keys)

    def load(self, checkpoint: Checkpoint, options: Any) -> Network:  # noqa: ANN401
        """See `slimc.models.ada_vit`."""
        from slimc.models import ada_vit

        return ada_vit.load(checkpoint, options, self)

    def facts(self, settings: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """From which block on what is decided, and which weights were taken."""
        starts = {"heads": "heads_from", "blocks": "branches_from", "tokens": "tokens_from"}
        decided = ", ".join(
            f"{kind} from block {settings[start]} on" for kind, start in starts.items() if settings[start] is not None
        )
        weights = "averaged (EMA)" if settings["ema"] else "as trained"
        return ("decided for each image", decided or "nothing"), ("weights", weights), *_compiled(details)


class PlainVit(System):
    """Plain vision transformers, timm's and Hugging Face's, with masks from anywhere or none."""

    name = "plain_vit"
    title = "Plain ViT"
    looks = "blocks.i.attn and blocks.i.mlp, with --arch"
    options = TimmOptions
    backbones = True

    def recognises(self, keys: Collection[str]) -> bool:
        """Whether there are blocks with an attention."""
        return any("blocks.0.attn." in key for key in keys)

    def load(self, checkpoint: Checkpoint, options: Any) -> Network:  # noqa: ANN401
        """See `slimc.models.timm_network`."""
        from slimc.models import timm_files, timm_network

        return timm_network.build(timm_files.from_checkpoint(checkpoint, options), options, self)

    def facts(self, settings: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """The network's name."""
        return ("architecture", str(settings["architecture"])), *_compiled(details)


PLAIN = PlainVit()
SYSTEMS: tuple[System, ...] = (PLAIN, VitSlim(), DynamicVit(), AdaVit())


def recognises(keys: Collection[str]) -> bool:
    """Whether a state dict with these `keys` is of a system that was searched: it is preferred to a plain one beside it."""
    return any(system.recognises(keys) for system in _searched())


def _searched() -> tuple[System, ...]:
    """The systems whose networks were searched; by their keys, all of them are plain ones as well."""
    return tuple(system for system in SYSTEMS if system is not PLAIN)


def recognise(checkpoint: Checkpoint) -> System:
    """The system that `checkpoint` is of.

    Raises:
        CheckpointError: it is of none.
    """
    for system in (*_searched(), PLAIN):
        if system.recognises(checkpoint.state.keys()):
            return system
    from slimc.files.checkpoint import ACCEPTED

    found = ", ".join(list(checkpoint.state)[:4])
    known = "; ".join(f"{system.title} ({system.looks})" for system in SYSTEMS)
    raise CheckpointError(
        f"{checkpoint.path}: no network slimc knows (keys {found}, ...); expected {ACCEPTED} of {known}"
    )


def find_system(name: str) -> System | None:
    """The system that files call `name`; none where nobody knows it."""
    return next((system for system in SYSTEMS if system.name == name), None)


def decides(name: str) -> bool:
    """Whether networks of the system called `name` decide for each image what runs."""
    system = find_system(name)
    return system is not None and system.decides


def _compiled(details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """How decisions were compiled, and what the costs of heads were measured on, where there are such things."""
    names = {"adaptive": "decisions compiled as", "tuned": "heads packed by costs of"}
    return tuple((title, str(details[key])) for key, title in names.items() if key in details)


def _any_block(keys: Collection[str], endings: tuple[str, ...]) -> bool:
    return any(key.startswith("blocks.") and key.endswith(endings) for key in keys)
