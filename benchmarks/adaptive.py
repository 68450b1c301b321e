"""How much of the arithmetic that AdaViT's decisions save arrives as time: ONNX Runtime, one thread, interleaved runs.

Compiles a checkpoint (by default a random Ada-DeiT-S whose decisions are on for 65 % of the images) as `dense`, `masked`
and in the other ways, and runs every image through each in turns, several times; the least time of an image counts. Each
way's most demanding image runs six times as often, as it stands for itself.

    python -m benchmarks.adaptive --images 24 --rounds 5 [--quantile 1.0] [--json adaptive.json]

Prints for every way its mean time and mean MACs as shares of masked, what part of the cut in MACs arrives as time, and the
most demanding image against dense.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.ada_checkpoint import ADA_DEIT_S, write_checkpoint, write_pictures
from slimc.backends import ort
from slimc.backends.base import Timing
from slimc.compiler.adaptive import Adaptive, observe
from slimc.compiler.compile import Compiled, compile_network
from slimc.compiler.export import emit_onnx
from slimc.compiler.limits import executed_macs
from slimc.compiler.load import load_network
from slimc.compiler.options import CompileOptions
from slimc.emit.file import write_model
from slimc.files.images import image_files, load_images
from slimc.ir.gate_usage import Usage
from slimc.targets.target import find_target


@dataclass(frozen=True)
class Row:
    """One way: means over the images, as shares of masked, and its most demanding image as a share of dense."""

    way: str
    milliseconds: float
    time_share: float
    macs_share: float
    cut_arrived: float | None
    speed_up_arrived: float
    worst_to_dense: float


def compile_ways(checkpoint: Path, data: Path, quantile: float, directory: Path) -> dict[str, Compiled]:
    """Every way compiled, and its ONNX model written as ``<way>.onnx``."""
    compiled, network = {}, load_network(checkpoint)
    plans = {
        "dense": CompileOptions(variant="dense"),
        "masked": CompileOptions(adaptive=Adaptive()),
        "conditional": CompileOptions(adaptive=Adaptive(conditional=True)),
        "capacity": CompileOptions(adaptive=Adaptive(capacity=True, quantile=quantile), data=data),
        "conditional+capacity": CompileOptions(adaptive=Adaptive(True, True, quantile), data=data),
    }
    for way, plan in plans.items():
        compiled[way] = compile_network(network, replace(plan, target=find_target("cpu", threads=1)))
        write_model(emit_onnx(compiled[way]), directory / f"{way}.onnx")
    return compiled


def least_times(models: dict[str, Path], images: np.ndarray, rounds: int) -> dict[str, np.ndarray]:
    """Least seconds of every model on every image; the models take turns."""
    sessions = {way: ort.load(path, threads=1) for way, path in models.items()}
    times = {way: np.full(len(images), np.inf) for way in models}
    for i, image in enumerate(images):
        timers: dict[str, Callable[[], Timing]] = {
            way: session.timer({"images": image[None]}) for way, session in sessions.items()
        }
        for _ in range(rounds):
            for way, timer in timers.items():
                times[way][i] = min(times[way][i], timer().latency)
    return times


def all_macs(compiled: dict[str, Compiled], usage: Usage) -> dict[str, np.ndarray]:
    """MACs that every way executes on every image."""
    target = find_target("cpu", threads=1)
    return {
        way: executed_macs(found.model, usage, target, conditional="conditional" in way)
        for way, found in compiled.items()
    }


def rows(
    compiled: dict[str, Compiled],
    macs: dict[str, np.ndarray],
    times: dict[str, np.ndarray],
    worst: dict[str, float],
) -> list[Row]:
    """One row a way."""
    results = []
    for way in compiled:
        time_share = times[way].mean() / times["masked"].mean()
        macs_share = macs[way].mean() / macs["masked"].mean()
        cut = 1 - macs_share
        results.append(
            Row(
                way=way,
                milliseconds=float(times[way].mean() * 1e3),
                time_share=float(time_share),
                macs_share=float(macs_share),
                cut_arrived=float((1 - time_share) / cut) if cut > 0.01 else None,
                speed_up_arrived=float(macs_share / time_share),
                worst_to_dense=worst[way],
            )
        )
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: a random Ada-DeiT-S")
    parser.add_argument("--data", type=Path, help="default: random pictures")
    parser.add_argument("--share", type=float, default=0.65)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quantile", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoint, data = options.checkpoint or directory / "ada_deit_s.pth", options.data or directory / "pictures"
        if options.checkpoint is None:
            write_checkpoint(checkpoint, options.share)
        if options.data is None:
            write_pictures(data, options.images, ADA_DEIT_S.image, 0)
        compiled = compile_ways(checkpoint, data, options.quantile, directory)
        network, files = compiled["masked"].network, image_files(data)[: options.images]
        usage = observe(network, files, lambda *_: None)
        images = load_images(files, network.masked.image, network.preprocessing)
        macs, models = all_macs(compiled, usage), {way: directory / f"{way}.onnx" for way in compiled}
        times = least_times(models, images, options.rounds)
        worst = {}
        for way, model in models.items():
            demanding = images[[int(macs[way].argmax())]]
            least = least_times({"dense": models["dense"], "way": model}, demanding, 6 * options.rounds)
            worst[way] = float(least["way"][0] / least["dense"][0])
    found = rows(compiled, macs, times, worst)
    print(
        "way                       ms   time  MACs (of masked)  of the MAC cut  of the speed-up  worst image to dense"
    )
    for row in found:
        arrived = "" if row.cut_arrived is None else f"{row.cut_arrived:.1%}"
        print(
            f"{row.way:22} {row.milliseconds:6.2f}  {row.time_share:.3f} {row.macs_share:.3f}           "
            f"{arrived:>10}  {row.speed_up_arrived:14.1%}  {row.worst_to_dense:18.3f}"
        )
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
