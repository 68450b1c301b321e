"""DynamicViT at full size in ONNX Runtime on this CPU: timm's dense export against slimc's dense, masked and slim models.

    python -m benchmarks.dynamic_vit --sizes deit-s lvvit-s --threads 1 --batch-sizes 1 [--json dynamic.json]
    python -m benchmarks.dynamic_vit --sizes deit-s --write deit_s.pth

The weights are random: what a network keeps is another matter, but how many patches it keeps is not, so that its speed is
that of a trained one. All models of a row run in turns in one process, spinning off. Printed are medians of the per-round
ratios to the dense model and the realised share of the MAC cut, (1 - t / t_dense) / (1 - MACs / MACs_dense), where dense
is timm's export, and slimc's own dense model (timm has no LV-ViT).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.latency import export_timm, measure
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
_TIMM = ("deit-s", "deit-b")
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
    """Path and MACs of every model by name."""
    target = find_target("cpu")
    models = {
        "dense": searched.dense,
        "masked": searched.masked,
        "slim": compile_model(searched.masked, passes_for(target)),
    }
    paths = {}
    if size in _TIMM:
        paths["timm dense"] = (folder / "timm.onnx", count(searched.dense, target).macs)
        export_timm(size, batch_size, paths["timm dense"][0])
    for name, model in models.items():
        paths[name] = (folder / f"{name}.onnx", count(model, target).macs)
        write_model(emit(model, target, batch_size=batch_size), paths[name][0])
    return paths


def main() -> None:
    """Measure and print, or write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["deit-s"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--keep-rate", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--write", type=Path, metavar="CKPT", help="only write a checkpoint of the first size")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.write:
        write_checkpoint(options.sizes[0], options.write, options.keep_rate)
        return
    rows: list[dict[str, object]] = []
    print("size      batch threads  model        MACs of dense  to dense: median  quartiles    realised share")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            write_checkpoint(size, folder / "checkpoint.pth", options.keep_rate)
            _, searched = frontend.load(folder / "checkpoint.pth", ModelOptions())
            for batch_size in options.batch_sizes:
                models = write_models(size, searched, batch_size, folder)
                for threads in options.threads:
                    times = measure([path for path, _ in models.values()], threads, options.rounds)
                    rows += _rows(size, batch_size, threads, models, times)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _rows(
    size: str, batch_size: int, threads: int, models: dict[str, tuple[Path, int]], times: np.ndarray
) -> list[dict[str, object]]:
    """Print and return one row a model and baseline."""
    rows: list[dict[str, object]] = []
    names = list(models)
    for baseline in (name for name in ("timm dense", "dense") if name in models):
        dense = times[names.index(baseline)]
        for i, name in enumerate(names):
            if name == baseline:
                continue
            low, middle, high = np.quantile(times[i] / dense, (0.25, 0.5, 0.75))
            macs = models[name][1] / models[baseline][1]
            share = float((1 - middle) / (1 - macs)) if macs < 0.99 else None
            print(
                f"{size:9} {batch_size:5} {threads:7}  {name:12} {macs:13.3f}  {middle:16.3f}  {low:.3f}-{high:.3f}  "
                f"{'-' if share is None else f'{share:.1%}':>14}  (dense: {baseline})"
            )
            rows.append(
                {"size": size, "batch_size": batch_size, "threads": threads, "model": name, "baseline": baseline,
                 "macs_ratio": macs, "time_ratio": float(middle), "quartiles": [float(low), float(high)],
                 "realised_share": share, "milliseconds": float(np.median(times[i]) * 1e3)}
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
