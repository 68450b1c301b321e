"""What ``slimc inspect`` finds out, and draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slimc
from slimc.cli.results import compiled_json, counts_json, structure_json
from slimc.errors import OptionError
from slimc.models.systems import find_system

if TYPE_CHECKING:
    from slimc.evaluate.progress import Progress
    from slimc.files.metadata import Metadata
    from slimc.files.outputs import OutputFacts
    from slimc.files.structure import Structure
    from slimc.ir.preprocessing import Preprocessing
    from slimc.models.system import Network
    from slimc.report.drawing import PlotOptions
    from slimc.report.gate_usage import UsageReport
    from slimc.report.structure import KeptPatches
    from slimc.targets.count import Counts


@dataclass(frozen=True, eq=False)
class Inspection:
    """What is left of a network.

    Attributes:
        values: for ``--json``.
        title: the system, as people call it.
        variant: "slim", "masked" or "dense".
        facts: further facts for people, by name.
        structure: layer by layer.
        dense: parameters and MACs with every mask at one.
        slim: those that are left.
        preprocessing: how images become inputs.
        sha256: of the checkpoint, where it is known.
        usage: how often the parts of a network that decides by image are used, where that was asked for.
        warnings: what a user should know.
        replaced: pictures that were there before.
        outputs: what it gives, as far as that was asked for.
    """

    values: Mapping[str, Any]
    title: str
    variant: str
    facts: tuple[tuple[str, str], ...]
    structure: Structure
    dense: Counts
    slim: Counts
    preprocessing: Preprocessing
    sha256: str | None = None
    usage: UsageReport | None = None
    warnings: tuple[str, ...] = ()
    replaced: tuple[Path, ...] = ()
    outputs: tuple[OutputFacts, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture to draw at `path`; of a network that selects patches, also of what it keeps of `image`."""

    path: Path
    look: PlotOptions
    image: Path | None = None


def panels(*, usage: bool, image: bool) -> tuple[str, ...]:
    """Names of the panels that a picture may have: of how parts are used, or of a structure, with an image or without."""
    if usage:
        from slimc.report.usage_plot import PANELS as USAGE_PANELS

        return USAGE_PANELS
    from slimc.report.structure import PANELS

    return tuple(name for name in PANELS if image or name != "selections")


def inspect_checkpoint(
    source: Path,
    options: Mapping[str, Any],
    ema: bool | None,
    how: Mapping[str, Any],
    picture: Picture | None,
    progress: Progress,
) -> Inspection:
    """A checkpoint, compiled as `how` says and `slimc.compile` takes it."""
    from slimc.compiler.outputs import describe

    with progress(f"reading {source.name}"):
        network = slimc.load(source, ema=ema, **options)
    compiled = slimc.compile(network, **how, progress=progress)
    kept = None if picture is None or picture.image is None else _kept_by_network(network, picture.image)
    facts = network.system.facts(network.settings, network.details)
    values = {**compiled_json(compiled), **_kept_json(kept), **structure_json(compiled.structure)}
    del values["batch_size"]  # says nothing about a structure
    found = Inspection(
        values=values,
        title=network.system.title,
        variant="slim",
        facts=facts,
        structure=compiled.structure,
        dense=compiled.dense,
        slim=compiled.slim,
        preprocessing=network.preprocessing,
        sha256=network.sha256,
        warnings=network.warnings,
        replaced=_existing(picture),
        outputs=describe(compiled.network.masked, 1),
    )
    _draw(found, source, picture, kept, progress)
    return found


def inspect_model(source: Path, picture: Picture | None, progress: Progress) -> Inspection:
    """An ONNX model, by what it says about itself."""
    from slimc.files.metadata import preprocessing_json

    metadata = slimc.read_metadata(source)
    kept = None if picture is None or picture.image is None else _kept_by_model(source, metadata, picture.image)
    system = find_system(metadata.system)
    compiling = ("tuned", "adaptive", "limits")  # how it was compiled, which has keys of its own
    values = {
        "system": metadata.system,
        "variant": metadata.variant,
        "target": metadata.target,
        "precision": metadata.precision,
        "output_tensors": [asdict(output) for output in metadata.outputs],
        "settings": dict(metadata.settings),
        "details": {name: value for name, value in metadata.details.items() if name not in compiling},
        **{name: metadata.details.get(name) for name in compiling},
        "preprocessing": preprocessing_json(metadata.preprocessing, metadata.structure.image),
        "warnings": [],
        **counts_json(metadata.dense, metadata.slim),
        **_kept_json(kept),
        **structure_json(metadata.structure),
    }
    facts = () if system is None else system.facts(metadata.settings, metadata.details)
    found = Inspection(
        values=values,
        title=metadata.system if system is None else system.title,
        variant=metadata.variant,
        facts=(*facts, ("compiled for", f"{metadata.target}, {metadata.precision}, slimc {metadata.version}")),
        structure=metadata.structure,
        dense=metadata.dense,
        slim=metadata.slim,
        preprocessing=metadata.preprocessing,
        replaced=_existing(picture),
        outputs=metadata.outputs,
    )
    _draw(found, source, picture, kept, progress)
    return found


def inspect_usage(
    source: Path,
    options: Mapping[str, Any],
    ema: bool | None,
    data: Path,
    picture: Picture | None,
    progress: Progress,
) -> Inspection:
    """What a checkpoint of a system that decides by image decides on the images in `data`.

    Raises:
        OptionError: it decides nothing, is a model, or there are no images.
    """
    from slimc.compiler.adaptive import observe
    from slimc.files.images import readable_images
    from slimc.files.metadata import preprocessing_json
    from slimc.report.gate_usage import report

    if source.suffix == ".onnx":
        raise OptionError(f"--data: {source} is a model; expected an AdaViT checkpoint")
    files = readable_images(data)
    with progress(f"reading {source.name}"):
        network = slimc.load(source, ema=ema, **options)
    if not network.system.decides:
        raise OptionError(f"--data: {network.system.title} networks decide nothing for each image")
    with progress(f"running the network on {len(files)} images") as advance:
        usage = observe(network, files, advance)
    compiled = slimc.compile(network, variant=network.variants[0])
    found = report(usage, network.masked, compiled.dense.macs)
    replaced = _existing(picture)
    _draw_usage(found, network, picture, progress)
    values = {
        "system": network.system.name,
        "variant": "masked",
        "settings": dict(network.settings),
        "details": dict(network.details),
        "data": str(data),
        "images": found.images,
        "macs": {"dense": found.macs_dense, "mean": found.mean_macs, "quantiles": found.quantiles},
        "blocks": [asdict(block) for block in found.blocks],
        "warnings": list(network.warnings),
        "preprocessing": preprocessing_json(network.preprocessing, network.masked.image),
    }
    return Inspection(
        values=values,
        title=network.system.title,
        variant="masked",
        facts=network.system.facts(network.settings, network.details),
        structure=compiled.structure,
        dense=compiled.dense,
        slim=compiled.slim,
        preprocessing=network.preprocessing,
        sha256=network.sha256,
        usage=found,
        warnings=network.warnings,
        replaced=replaced,
    )


def _draw_usage(found: UsageReport, network: Network, picture: Picture | None, progress: Progress) -> None:
    if picture is None:
        return
    from slimc.report.usage_plot import plot_usage

    with progress("drawing"):
        plot_usage(found, network.masked.grid, network.path.name, picture.path, picture.look)


def _existing(picture: Picture | None) -> tuple[Path, ...]:
    return (picture.path,) if picture is not None and picture.path.exists() else ()


def _kept_json(kept: KeptPatches | None) -> dict[str, Any]:
    return {} if kept is None else {"kept_patches": [patches.tolist() for patches in kept.kept]}


def _draw(
    found: Inspection, source: Path, picture: Picture | None, kept: KeptPatches | None, progress: Progress
) -> None:
    if picture is None:
        return
    from slimc.report.structure import plot_structure

    with progress("drawing"):
        counts = (found.dense, found.slim)
        plot_structure(found.structure, counts, f"{source.name} ({found.variant})", picture.path, kept, picture.look)


def _kept_by_model(source: Path, metadata: Metadata, image: Path) -> KeptPatches:
    """What the selections of the ONNX model `source` keep of `image`."""
    from slimc.evaluate.kept_patches import run_selected
    from slimc.files.images import load_images, pixels
    from slimc.report.structure import KeptPatches

    if not metadata.structure.selecting:
        raise OptionError(f"--image: {source} selects no patches by the image")
    images = load_images([image], metadata.structure.image, metadata.preprocessing, "--image")
    kept = run_selected(source, images).kept
    return KeptPatches(pixels(images, metadata.preprocessing)[0], tuple(patches[0] for patches in kept))


def _kept_by_network(network: Network, image: Path) -> KeptPatches:
    """What the selections of a checkpoint's PyTorch network keep of `image`."""
    from slimc.files.images import load_images, pixels
    from slimc.report.structure import KeptPatches

    if not network.selects:
        raise OptionError(f"--image: {network.system.title} networks select no patches by the image")
    images = load_images([image], network.masked.image, network.preprocessing, "--image")
    pytorch = network.pytorch("masked")
    import torch

    with torch.inference_mode():
        kept = network.trace(pytorch, torch.from_numpy(images)).kept
    return KeptPatches(pixels(images, network.preprocessing)[0], tuple(patches[0].numpy() for patches in kept))
