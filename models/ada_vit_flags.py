"""What the flags of an AdaViT checkpoint say: from the policies it has, its training arguments, and options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimc.errors import CheckpointError, OptionError
from slimc.models.options import AdaVitOptions, HeadEffect
from slimc.models.weights import Weights

# Flags that change the network in ways that evaluation does not define, and the only value that is compiled.
UNSUPPORTED: Mapping[str, object] = {
    "ada_block": False,
    "dyna_data": False,
    "ada_token_nonstep": False,
    "ada_token_pre_softmax": True,
    "ada_token_detach_attn_at_mlp": False,
    "head_slowfast": False,
    "random_policy": False,
    "random_head": False,
    "random_layer": False,
    "random_token": False,
    "eval_random_baseline": False,
    "eval_random_layer": False,
    "eval_random_head": False,
    "eval_random_token": False,
    "use_full_head": False,
}


def refuse_unsupported(path: Path, args: Mapping[str, Any]) -> None:
    """Refuse training arguments under which the network is another one.

    Raises:
        CheckpointError: one is set.
    """
    for name, accepted in UNSUPPORTED.items():
        if name in args and args[name] is not None and args[name] != accepted:
            flag = "--" + name.replace("_", "-")
            raise CheckpointError(
                f"{path}: trained with {flag} = {args[name]}, which slimc does not compile; expected {accepted}"
            )


def first_block(weights: Weights, path: Path, depth: int, policy: str) -> int | None:
    """The first block with `policy` (a name such as ``head_select``), which every later block must have; none if no block.

    Raises:
        CheckpointError: a block between lacks it.
    """
    having = [layer for layer in range(depth) if f"blocks.{layer}.{policy}.mlp_head.weight" in weights]
    if not having:
        return None
    missing = sorted(set(range(having[0], depth)) - set(having))
    if missing:
        raise CheckpointError(f"{path}: blocks.{having[0]} has {policy}, but the later blocks.{missing[0]} has not")
    return having[0]


def check_flags(path: Path, args: Mapping[str, Any], found: Mapping[str, int | None]) -> None:
    """Check the training arguments against the blocks from which each kind of decision (`found`) is made.

    Raises:
        CheckpointError: they contradict each other.
    """
    starts = {"ada_head": "keep_layers", "ada_layer": "keep_layers", "ada_token": "ada_token_start_layer"}
    implied = {"ada_head": ("ada_head_v2", "ada_head_attn"), "ada_layer": (), "ada_token": ("ada_token_with_mlp",)}
    for flag, start in starts.items():
        first = found[flag]
        known = [args[name] for name in (flag, *implied[flag]) if isinstance(args.get(name), bool)]
        if known and any(known) != (first is not None):
            having = "has none of its" if first is None else "has"
            raise CheckpointError(f"{path}: args.{flag} is {any(known)}, but the state dict {having} decision layers")
        if known and first is not None and isinstance(args.get(start), int) and args[start] != first:
            raise CheckpointError(
                f"{path}: args.{start} is {args[start]}, but blocks.{first} is the first that decides"
            )


def head_effect(path: Path, args: Mapping[str, Any], options: AdaVitOptions, *, decides: bool) -> HeadEffect:
    """What head decisions do beside attention.

    Raises:
        OptionError: nothing tells, or the options contradict the training arguments.
        CheckpointError: the training arguments ask for two effects at once.
    """
    if not decides:
        if options.ada_head is not None:
            raise OptionError(f"--ada-head: {path} has no head decisions")
        return "plain"
    stored: HeadEffect | None = None
    if args.get("ada_head_v2") is True and args.get("ada_head_attn") is True:
        raise CheckpointError(f"{path}: args.ada_head_v2 and args.ada_head_attn are both set; expected at most one")
    if args.get("ada_head_v2") is True:
        stored = "v2"
    elif args.get("ada_head_attn") is True:
        stored = "attn"
    elif args.get("ada_head") is True:
        stored = "plain"
    if stored is not None and options.ada_head not in (None, stored):
        raise OptionError(f"--ada-head: {options.ada_head} contradicts the training arguments, which say {stored}")
    effect = options.ada_head or stored
    if effect is None:
        raise OptionError(f"--ada-head: {path} does not say what its head decisions do; give plain, v2 or attn")
    return effect


def tokens_with_mlp(path: Path, args: Mapping[str, Any], options: AdaVitOptions, *, decides: bool) -> bool:
    """Whether token decisions gate the FFN as well.

    Raises:
        OptionError: nothing tells, or the options contradict the training arguments.
    """
    stored, given = args.get("ada_token_with_mlp"), options.ada_token_with_mlp
    if not decides:
        if given is not None:
            raise OptionError(f"--ada-token-with-mlp: {path} has no token decisions")
        return False
    if isinstance(stored, bool) and given not in (None, stored):
        raise OptionError(f"--ada-token-with-mlp: contradicts the training arguments, where it is {stored}")
    value = stored if given is None else given
    if not isinstance(value, bool):
        raise OptionError(f"--ada-token-with-mlp: {path} does not say; give it or --no-ada-token-with-mlp")
    return value


def norm_policy(weights: Weights, path: Path, args: Mapping[str, Any]) -> bool:
    """Whether block and head policies read a normalised row.

    Raises:
        CheckpointError: the training arguments and the state dict contradict each other.
    """
    there = any(re.fullmatch(r"blocks\.\d+\.norm_policy\.weight", key) for key in weights.names())
    stored = args.get("norm_policy")
    if isinstance(stored, bool) and stored != there:
        has = "has" if there else "has no"
        raise CheckpointError(
            f"{path}: args.norm_policy is {stored}, but the state dict {has} blocks.i.norm_policy.weight"
        )
    return there
