"""Finding the weights of a network in what a training script saved.

They are where a system recognises them: in any mapping at any depth, behind any dotted prefix that wrappers such as
DistributedDataParallel, torch.compile or Lightning put before their names.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slimc.files.checkpoint import numpy_values
from slimc.files.checkpoint.recorded import Recorded, UnreadableError, is_module, mapping, sequence
from slimc.files.checkpoint.stored import Stored

if TYPE_CHECKING:
    import torch

Recognise = Callable[[Collection[str]], bool]
"""Whether a state dict with these keys is of a known system."""

# Modules that wrappers put in anywhere: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_COUNTERS = ("total_ops", "total_params")
_AVERAGED = re.compile(
    r"(?<![a-z])(ema|swa|shadow|averaged?|avg)(?![a-z])|(Ema|EMA)(?![a-z])|(?<![a-z])(ema|swa)(?=[A-Z])"
)
# What belongs to weights, and is named as they are.
_COMPANIONS = re.compile(r"(?<![a-z])(optim(izers?)?|grads?|gradients?|momentum|exp_avg(_sq)?|masks?)(?![a-z])")
_MOST_VALUES, _MOST_WEIGHTS, _MOST_ELEMENTS = 200_000, 50_000, 256
_DEEPEST_MAPPING, _DEEPEST_PREFIX = 32, 12


@dataclass(frozen=True, eq=False)
class Pruned:
    """A weight that torch.nn.utils.prune split: the number it had, and a mask."""

    original: Stored
    mask: Stored


@dataclass(frozen=True, eq=False)
class Unusable:
    """Something else than a plain dense tensor, and what made it."""

    kind: str


Weight = Stored | Pruned | Unusable


@dataclass(frozen=True, eq=False)
class Candidate:
    """The weights of what may be a network.

    Attributes:
        mapping: where they are in the file, such as ``checkpoint.model``; empty for the whole file.
        prefix: what stood before all of their names, such as ``module.``.
        weights: by their names without it.
        left_out: the names of the other tensors in that mapping.
    """

    mapping: str
    prefix: str
    weights: Mapping[str, Weight]
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How a user picks them."""
        return ".".join(part for part in (self.mapping, self.prefix.rstrip(".")) if part) or "."

    @property
    def averaged(self) -> bool:
        """Whether they are called an average of weights."""
        return _AVERAGED.search(self.name) is not None

    @property
    def place(self) -> frozenset[object]:
        """Where all of their numbers lie: the same for two names of the same weights."""
        return frozenset(
            (name, weight.place if isinstance(weight, Stored) else id(weight)) for name, weight in self.weights.items()
        )


@dataclass(frozen=True, eq=False)
class Found:
    """All mappings with tensors, and the networks in them that a system recognises, those nearest the top first."""

    mappings: tuple[Candidate, ...]
    networks: tuple[Candidate, ...]


def find_networks(content: object, recognises: Recognise) -> Found:
    """Look for networks in the content of a file."""
    mappings, networks = [], []
    for name, entries in _mappings(content):
        weights = _weights(entries)
        if weights:
            whole = Candidate(name, "", weights)
            mappings.append(whole)
            networks += _recognised(whole, recognises)
    return Found(tuple(mappings), _distinct(networks))


def under(found: Found, key: str) -> tuple[Candidate, ...]:
    """What a user means by `key`: networks of that name or in that mapping, else all weights under it; empty for nothing."""
    key = key.strip().strip(".") or "."
    exact = tuple(network for network in found.networks if network.name == key)
    inside = tuple(network for network in found.networks if (network.mapping or ".") == key)
    if exact or inside:
        return exact or inside
    whole = tuple(each for each in found.mappings if each.name == key)
    if whole:
        return whole
    for each in found.mappings:
        start = "" if not each.mapping else f"{each.mapping}."
        if key.startswith(start):
            prefix = key.removeprefix(start) + "."
            weights = {
                name.removeprefix(prefix): weight for name, weight in each.weights.items() if name.startswith(prefix)
            }
            if weights:
                return (Candidate(each.mapping, prefix, weights),)
    return ()


def tensors(candidate: Candidate, most: int) -> dict[str, torch.Tensor]:
    """The weights as tensors, which share memory with the file where they can.

    Args:
        candidate: whose weights.
        most: bytes that they may take.

    Raises:
        UnreadableError: a weight is no dense tensor, damaged, or they take more.
    """
    whole = [part for weight in candidate.weights.values() for part in _parts(weight)]
    if sum(part.nbytes for part in whole) > most:
        raise UnreadableError("damaged: its weights share memory and claim many times the file's size")
    return {name: _tensor(name, weight) for name, weight in candidate.weights.items()}


def find_module(content: object) -> Recorded | None:
    """A pickled torch.nn.Module, at the top or one level below."""
    values = [content, *(mapping(content) or {}).values()]
    return next((value for value in values if isinstance(value, Recorded) and is_module(value)), None)


def shown(name: object) -> str:
    """A name from a file as one short line of text."""
    text = name if isinstance(name, str) else str(name) if isinstance(name, (int, bool)) else type(name).__name__
    text = text if len(text) <= 200 else f"{text[:180]}...{len(text)}"
    return text if text.isprintable() else ascii(text)[1:-1]


def _mappings(content: object) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping in `content`, once, those nearest the top first, with the names that lead to it."""
    seen = {id(content)}
    waiting: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
    left = _MOST_VALUES
    while waiting:
        path, value = waiting.popleft()
        if is_module(value) or len(path) > _DEEPEST_MAPPING:
            continue
        entries = mapping(value)
        if entries is not None:
            yield ".".join(path), entries
        children = enumerate((sequence(value) or ())[:_MOST_ELEMENTS]) if entries is None else entries.items()
        for key, child in children:
            left -= 1
            if left < 0:
                return
            if (
                isinstance(child, (dict, Recorded, list, tuple))
                and isinstance(key, (str, int))
                and id(child) not in seen
            ):
                seen.add(id(child))
                waiting.append(((*path, shown(key)), child))


def _weights(entries: Mapping[Any, Any]) -> dict[str, Weight]:
    """The weights among `entries`: without what wrappers and profilers put in, those that are pruned with their masks."""
    found: dict[str, Weight] = {}
    for key, value in entries.items():
        if isinstance(key, str) and key.rpartition(".")[2] not in _COUNTERS:
            weight = _weight(value)
            if weight is not None:
                found[shown(key)] = weight
    if len(found) > _MOST_WEIGHTS:
        return {}
    unwrapped = {
        ".".join(part for part in key.split(".") if part not in _WRAPPERS): each for key, each in found.items()
    }
    return _joined(unwrapped if len(unwrapped) == len(found) else found)


def _weight(value: object) -> Weight | None:
    if isinstance(value, Stored):
        return value
    if not isinstance(value, Recorded):
        return None
    if numpy_values.is_array(value):
        return _from_numpy(value)
    tensor_like = value.name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild", "torch.distributed."))
    return Unusable(shown(value.name)) if tensor_like else None


def _from_numpy(value: Recorded) -> Weight:
    shape = numpy_values.shape_of(value)

    def read() -> torch.Tensor:
        import torch

        array = numpy_values.array_of(value)
        if array is None or array.dtype.kind not in "fiub":
            raise UnreadableError("has a NumPy array that is damaged or not of numbers")
        return torch.from_numpy(array)

    return Unusable("numpy.ndarray") if shape is None else Stored(shape, id(value), 0, read)


def _joined(weights: dict[str, Weight]) -> dict[str, Weight]:
    """Weights with ``x_orig`` and ``x_mask`` as one ``x``."""
    for name in [name for name in weights if name.endswith("_orig")]:
        base = name.removesuffix("_orig")
        original, mask = weights[name], weights.get(f"{base}_mask")
        if base not in weights and isinstance(original, Stored) and isinstance(mask, Stored):
            del weights[name], weights[f"{base}_mask"]
            weights[base] = Pruned(original, mask)
    return weights


def _recognised(whole: Candidate, recognises: Recognise) -> list[Candidate]:
    """The networks in a mapping: one for each prefix behind which a system recognises its keys."""
    behind: dict[str, list[str]] = {}
    for name in whole.weights:
        parts = name.split(".", _DEEPEST_PREFIX)
        for count in range(min(len(parts), _DEEPEST_PREFIX)):
            prefix = "".join(f"{part}." for part in parts[:count])
            behind.setdefault(prefix, []).append(name)
    known = [prefix for prefix, names in behind.items() if recognises([name.removeprefix(prefix) for name in names])]
    networks = []
    for prefix in known:
        inner = tuple(other for other in known if other != prefix and other.startswith(prefix))
        own = [name for name in behind[prefix] if not inner or not name.startswith(inner)]
        if not inner or recognises([name.removeprefix(prefix) for name in own]):
            weights = {name.removeprefix(prefix): whole.weights[name] for name in own}
            others = (
                tuple(name for name in whole.weights if not name.startswith(tuple(known))) if "" not in known else ()
            )
            networks.append(Candidate(whole.mapping, prefix, weights, others))
    return networks


def _distinct(networks: list[Candidate]) -> tuple[Candidate, ...]:
    """Networks without those that are others under a second name, or that only go with their weights."""
    distinct: dict[frozenset[object], Candidate] = {}
    for network in networks:
        distinct.setdefault(network.place, network)
    kept = [network for network in distinct.values() if not _COMPANIONS.search(network.name)] or [*distinct.values()]
    largest = max((len(network.weights) for network in kept), default=0)
    return tuple(network for network in kept if 2 * len(network.weights) > largest)


def _parts(weight: Weight) -> tuple[Stored, ...]:
    if isinstance(weight, Unusable):
        return ()
    return (weight,) if isinstance(weight, Stored) else (weight.original, weight.mask)


def _tensor(name: str, weight: Weight) -> torch.Tensor:
    if isinstance(weight, Unusable):
        raise UnreadableError(f"{name} is made by {weight.kind}; expected plain dense tensors: save the float weights")
    try:
        if isinstance(weight, Stored):
            return weight.read()
        original, mask = weight.original.read(), weight.mask.read()
        if original.shape != mask.shape:
            raise UnreadableError(f"{name}_orig has the shape {list(original.shape)}, its mask {list(mask.shape)}")
        return original * mask.to(original.dtype)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UnreadableError(f"damaged: {name} cannot be read: {reason}") from None
    except UnreadableError as error:
        raise UnreadableError(f"{name}: {error}") from None
