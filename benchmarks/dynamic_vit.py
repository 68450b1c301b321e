"""DynamicViT at full size on this CPU: timm's dense export against slimc's dense, masked and slim models.

    python -m benchmarks.dynamic_vit --sizes deit-s lvvit-s --threads 1 --batch-sizes 1 [--json dynamic.json]
    python -m benchmarks.dynamic_vit --sizes deit-s --write deit_s.pth

The weights are random. Which patches a network keeps depends on them, but not how many, so its speed is that of a trained
one. Models run in turns in a pinned process (`benchmarks.timing`). Printed are medians of the ratios within a round, by the
wall clock and of the processor's time, and the realised share of the MAC cut, (1 - t / t_dense) / (1 - MACs / MACs_dense),
by either. Dense is timm's export, or slimc's dense model for LV-ViT, which timm does not have.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latency import TIMM, export_torch, timm_network
from benchmarks.timing import ENGINES, Effort, Times, measure
from slimc import frontend
from slimc.count import count
from slimc.emit import emit
from slimc.models.dynamic_vit_network import DynamicVisionTransformer, DynamicVitConfig
from slimc.models.options import ModelOptions, SearchedModel
from slimc.onnx_file import write_model
from slimc.pipeline import compile_model, passes_for
from slimc.target import find_target

# name: (LV-ViT, dim, depth, heads, hidden, blocks before which patches are dropped)
SIZES = {
    "deit-256": (False, 256, 12, 4, 1024, (3, 6, 9)),
    "deit-s": (False, 384, 12, 6, 1536, (3, 6, 9)),
    "deit-b": (False, 768, 12, 12, 3072, (3, 6, 9)),
    "lvvit-s": (True, 384, 16, 6, 1152, (4, 8, 12)),
    "lvvit-m": (True, 512, 20, 8, 1536, (5, 10, 15)),
}
_STEM = ((64, 7), (64, 3), (64, 3))


def write_checkpoint(size: str, path: Path, keep_rate: float = 0.7, seed: int = 0) -> None:
    """Write a random DynamicViT checkpoint of the given size to `path`, as the released training script saves one."""
    lvvit, dim, depth, heads, hidden, places = SIZES[size]
    config = DynamicVitConfig(
        image=(224, 224), patch=(16, 16), dim=dim, depth=depth, heads=heads, hidden=(hidden,) * depth, classes=1000,
        pruning_loc=places, keep=(196,) * len(places), qkv_bias=not lvvit, stem=_STEM if lvvit else (), auxiliary=lvvit,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    state = DynamicVisionTransformer(config).state_dict()
    for key, tensor in state.items():
        if tensor.ndim > 1:
            tensor.normal_(0.0, tensor[0].numel() ** -0.5 if tensor.shape[0] > 1 else 0.02, generator=generator)
        elif key.endswith("bias"):
            tensor.normal_(0.0, 0.02, generator=generator)
    args = argparse.Namespace(model=size, input_size=224, nb_classes=1000, base_rate=keep_rate)
    torch.save({"model": state, "epoch": 29, "args": args}, path)


def write_models(size: str, searched: SearchedModel, batch_size: int, folder: Path) -> dict[str, tuple[Path, int]]:
    """Path and MACs of every model by name, the baseline first."""
    target = find_target("cpu")
    models = {
        "dense": searched.dense,
        "masked": searched.masked,
        "slim": compile_model(searched.masked, passes_for(target)),
    }
    paths = {}
    if size in TIMM:
        paths["timm dense"] = (folder / "timm.onnx", count(searched.dense, target).macs)
        export_torch(timm_network(size), batch_size, paths["timm dense"][0])
    for name, model in models.items():
        paths[name] = (folder / f"{name}.onnx", count(model, target).macs)
        write_model(emit(model, target, batch_size=batch_size), paths[name][0])
    return paths


def summarise(models: dict[str, tuple[Path, int]], times: Times) -> list[dict[str, Any]]:
    """One row a model: ratios to the first one."""
    dense = next(iter(models.values()))[1]
    rows = []
    for (name, (_, macs)), wall, processor in zip(models.items(), *times, strict=True):
        low, ratio, high = np.quantile(wall / times[0, 0], (0.25, 0.5, 0.75))
        again = float(np.median(processor / times[1, 0]))
        cut = 1 - macs / dense
        rows.append(
            {
                "model": name,
                "milliseconds": float(np.median(wall)) * 1e3,
                "macs_ratio": macs / dense,
                "ratio": float(ratio),
                "low": float(low),
                "high": float(high),
                "share": float((1 - ratio) / cut) if cut > 0.01 else None,
                "processor_ratio": again,
                "processor_share": (1 - again) / cut if cut > 0.01 else None,
            }
        )
    return rows


def main() -> None:
    """Measure and print, or write one checkpoint."""
    options = _options()
    if options.write:
        write_checkpoint(options.sizes[0], options.write, options.keep_rate)
        return
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="slimc-benchmarks-") as directory:
            folder = Path(directory)
            write_checkpoint(size, folder / "checkpoint.pth", options.keep_rate)
            _, searched = frontend.load(folder / "checkpoint.pth", ModelOptions())
            for batch_size in options.batch_sizes:
                models = write_models(size, searched, batch_size, folder)
                paths = [path for path, _ in models.values()]
                for threads in options.threads:
                    times = measure(paths, options.engine, threads, Effort(options.seconds, options.rounds))
                    print(f"{size}, keep rate {options.keep_rate}, batch {batch_size}, {threads} thread(s)")
                    found = summarise(models, times)
                    _print(found)
                    case = {"size": size, "batch_size": batch_size, "threads": threads, "engine": options.engine}
                    rows += [case | row for row in found]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        shares = [f"{row[key]:.1%}" if row[key] is not None else "-" for key in ("share", "processor_share")]
        print(
            f"  {row['model']:11} {row['milliseconds']:8.1f} ms  MACs {row['macs_ratio']:.3f}  wall {row['ratio']:.3f} "
            f"({row['low']:.3f}..{row['high']:.3f}) realised {shares[0]:>6}  processor {row['processor_ratio']:.3f} "
            f"realised {shares[1]:>6}",
            flush=True,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["deit-s"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--keep-rate", type=float, default=0.7)
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", type=Path, metavar="CKPT", help="only write a checkpoint of the first size")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
