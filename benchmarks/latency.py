"""Latency in ONNX Runtime on this CPU: timm's dense export against slimc's dense, masked, slim and regular-twin models.

    python -m benchmarks.latency --sizes deit-t deit-s --threads 1 2 --batch-sizes 1 8 [--json latency.json]

All models of a row run in turns in one process, spinning off. Printed are medians of the per-round ratios to timm's model
and the realised share of the MAC cut, (1 - t / t_timm) / (1 - MACs / MACs_dense), with the fewest MACs the masks allow. The
regular twin has the same number of kept channels, spread evenly: every head of a layer has the same width.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.checkpoints import SIZES, write_checkpoint
from slimc import frontend, ir
from slimc.count import count
from slimc.emit import emit
from slimc.models.options import ModelOptions, SearchedModel
from slimc.onnx_file import write_model
from slimc.pipeline import compile_model, passes_for
from slimc.target import find_target

_TIMM = {"deit-t": "deit_tiny_patch16_224", "deit-s": "deit_small_patch16_224", "deit-b": "deit_base_patch16_224"}
_WARM_UP = 3


def export_timm(size: str, batch_size: int, path: Path) -> None:
    """Timm's dense model as torch.onnx.export writes it."""
    import timm
    import torch

    network = timm.create_model(_TIMM[size]).eval()
    images = torch.zeros(batch_size, 3, 224, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (images,), path, input_names=["images"], dynamo=True, verbose=False, external_data=False
        )


def regular_twin(masked: ir.Model) -> ir.Model:
    """`masked` with the kept channels of every layer spread evenly over its heads."""
    blocks = []
    for block in masked.blocks:
        attention = block.attention
        assert isinstance(attention, ir.Attention)
        kept = sum(int(head.mask.sum()) for head in attention.heads if head.mask is not None)
        width = max(1, round(kept / len(attention.heads)))
        even = (np.arange(len(attention.heads[0].query.weight)) < width).astype(np.float32)
        heads = tuple(dataclasses.replace(head, mask=even) for head in attention.heads)
        blocks.append(dataclasses.replace(block, attention=dataclasses.replace(attention, heads=heads)))
    return dataclasses.replace(masked, blocks=tuple(blocks))


def write_models(size: str, searched: SearchedModel, batch_size: int, folder: Path) -> dict[str, tuple[Path, int]]:
    """Path and MACs of every model by name."""
    target = find_target("cpu")
    models = {
        "dense": searched.dense,
        "masked": searched.masked,
        "slim": compile_model(searched.masked, passes_for(target)),
        "regular twin": compile_model(regular_twin(searched.masked), passes_for(target)),
    }
    paths = {"timm dense": (folder / "timm.onnx", count(searched.dense, target).macs)}
    export_timm(size, batch_size, paths["timm dense"][0])
    for name, model in models.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        macs = count(model, target).macs
        write_model(emit(model, target, batch_size=batch_size), path)
        paths[name] = path, macs
    return paths


def measure(paths: list[Path], threads: int, rounds: int) -> np.ndarray:
    """Seconds [models, rounds], the models in turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = [onnxruntime.InferenceSession(path, options) for path in paths]
    feeds = []
    for session in sessions:
        image = session.get_inputs()[0]
        feeds.append({image.name: np.random.default_rng(0).standard_normal(image.shape, np.float32)})

    times = np.zeros((len(sessions), rounds + _WARM_UP))
    for turn in range(rounds + _WARM_UP):
        for i, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            start = perf_counter()
            session.run(None, feed)
            times[i, turn] = perf_counter() - start
    return times[:, _WARM_UP:]


def least_macs(searched: SearchedModel) -> int:
    """The fewest MACs that the masks allow: nothing padded, no query that nobody reads."""
    target = find_target("generic")
    return count(compile_model(searched.masked, passes_for(target)), target).macs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=_TIMM, default=["deit-t", "deit-s"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--budget", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("size    batch threads  model          MACs of dense  median of ratios  quartiles      realised share")
    for size in options.sizes:
        assert size in SIZES
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            write_checkpoint(size, folder / "checkpoint.pth", options.budget)
            _, searched = frontend.load(folder / "checkpoint.pth", ModelOptions())
            least = least_macs(searched)
            for batch_size in options.batch_sizes:
                models = write_models(size, searched, batch_size, folder)
                for threads in options.threads:
                    times = measure([path for path, _ in models.values()], threads, options.rounds)
                    rows += _rows(size, batch_size, threads, models, times, least)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _rows(
    size: str, batch_size: int, threads: int, models: dict[str, tuple[Path, int]], times: np.ndarray, least: int
) -> list[dict[str, object]]:
    dense = models["timm dense"][1]
    rows: list[dict[str, object]] = []
    for (name, (_, macs)), ratios in zip(models.items(), times / times[0], strict=True):
        low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        cut = 1 - (least if name == "slim" else macs) / dense
        share = (1 - ratio) / cut if cut > 0.01 else None
        text = "" if share is None else f"{share:.1%}"
        print(
            f"{size:7} {batch_size:5} {threads:7}  {name:13}  {macs / dense:13.3f}  {ratio:16.3f}  "
            f"{low:.3f}..{high:.3f}  {text:>14}",
            flush=True,
        )
        row = {"size": size, "batch_size": batch_size, "threads": threads, "model": name, "macs": macs}
        rows.append({**row, "ratio": ratio, "realised_share": share})
    return rows


if __name__ == "__main__":
    main()
