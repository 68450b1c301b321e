"""From weights in a file to a module of timm's: the file says which network they are of, or an option does."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slimc.errors import OptionError
from slimc.files.checkpoint import Checkpoint
from slimc.models import folders
from slimc.models.folder_files import FolderModule, FolderWeights, require_timm
from slimc.models.options import ModelOptions
from slimc.models.timm_network import Source, image_facts

_PLACES = ("architecture", "arch", "model", "model_name")


def from_folder(folder: Path, options: ModelOptions) -> Source:
    """The network in `folder`, in timm's or Hugging Face's form.

    Raises:
        CheckpointError: it is not understood.
        OptionError: an option does not go with a folder.
    """
    if options.arch is not None:
        raise OptionError(f"--arch: {folder} says itself what network it holds; leave it out")
    found = folders.read_folder(
        folder,
        image=options.img_size,
        num_classes=options.num_classes,
        model_kwargs=read_arguments(options.model_kwargs or ()),
    )
    return _source(folder, found)


def from_checkpoint(checkpoint: Checkpoint, options: ModelOptions) -> Source:
    """The network whose weights `checkpoint` holds.

    Raises:
        CheckpointError: they are not those of the network that the file or ``--arch`` names.
        OptionError: neither names one, or timm does not have it.
    """
    name = options.arch or stated_architecture(checkpoint.args)
    if name is None:
        raise OptionError(
            f"{checkpoint.path}: holds a plain vision transformer and does not say which; give --arch NAME, one of "
            "timm.list_models()"
        )
    require_timm()
    arguments = read_arguments(options.model_kwargs or ())
    state = checkpoint.state
    head = state.get("head.weight")
    classes = {"num_classes": 0 if head is None else int(head.shape[0])}
    module = folders.create_module(checkpoint.path, name, {**classes, **arguments}, tuple(arguments))
    warnings = folders.load_state(module, FolderWeights(checkpoint.path, state, checkpoint.sha256))
    if options.img_size is not None:
        folders.resize_module(module, options.img_size)
    folders.choose_classes(module, options.num_classes)
    return Source(
        module=module.eval(),
        path=checkpoint.path,
        sha256=checkpoint.sha256,
        name=name,
        args={**image_facts(getattr(module, "pretrained_cfg", None)), **_stated(checkpoint)},
        warnings=tuple(warnings),
    )


def _stated(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file says of its images."""
    args = checkpoint.args
    configs = [args[name] for name in ("pretrained_cfg", "default_cfg") if isinstance(args.get(name), Mapping)]
    facts: dict[str, Any] = {}
    for source in (*configs[::-1], args):
        facts |= image_facts(source)
    return facts


def stated_architecture(args: Mapping[str, Any]) -> str | None:
    """The name that timm has for the network, where the file says it."""
    for place in _PLACES:
        if isinstance(args.get(place), str) and args[place]:
            return str(args[place])
    return None


def _source(path: Path, found: FolderModule) -> Source:
    return Source(
        module=found.module,
        path=path,
        sha256=found.sha256,
        name=found.name,
        args=found.args,
        concatenated_head=found.concatenated_head,
        warnings=found.warnings,
    )


def read_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of timm's, as KEY=VALUE; a value is a Python literal, or a text.

    Raises:
        OptionError: one is something else.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise OptionError(f"--model-kwargs: {text!r} is no argument; expected KEY=VALUE such as depth=6")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found
