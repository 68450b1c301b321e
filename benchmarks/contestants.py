"""The networks that `benchmarks.gpu` compares, each in a process of its own: made, checked, compiled, run when told to."""

from __future__ import annotations

import copy
import fcntl
import math
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import slimc
from benchmarks.checkpoints import SIZES
from benchmarks.store import Row
from benchmarks.twin import uniform_twin
from slimc import ir
from slimc.emit.precision import TOLERANCE
from slimc.evaluate.logits import compare
from slimc.files.images import seeded_images
from slimc.ir.interpret.model import interpret
from slimc.pytorch import to_torch
from slimc.targets.costs import CountedCosts
from slimc.targets.count import count_macs

BASELINE = "slimc dense"
ONCE = ("timm", "dense", "masked", BASELINE)  # their time is the same at any budget
AT_EVERY_BUDGET = ("slim", "slim by rows", "one group", "own queries", "twin")
EXACT = 1e-9  # of the logits' size, in float64
_BY_ROWS = ("slim by rows", "one group", "own queries")
_TARGET = "sm90"
_SECONDS_A_TURN = 0.02
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_KINDS = {  # the first whose words are in a kernel's name
    "other": ("triton",),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "product": ("gemm", "nvjet", "xmma", "cutlass", "conv"),
}


@dataclass(frozen=True)
class Case:
    """What the networks of one comparison have in common."""

    precision: str
    batch_size: int


@dataclass(frozen=True)
class Subject:
    """A network: its name, and the checkpoint that it is made from."""

    name: str
    size: str
    budget: float
    checkpoint: Path
    device: str


class Contestant:
    """A network on its device, which is made ready for a case, and then runs whenever it is told to."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._device = subject, torch.device(subject.device)
        self._searched = slimc.load(subject.checkpoint)
        torch.backends.cudnn.allow_tf32 = False  # references are computed in float32

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else computes anything on the device meanwhile; not to be entered twice."""
        with (self._subject.checkpoint.parent / "device.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def tune_alone(self) -> None:
        """Let Inductor choose among its kernels when nothing disturbs their times."""
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        bench: Any = CachingAutotuner.bench

        def bench_alone(*arguments: Any, **options: Any) -> Any:
            with self._alone():
                return bench(*arguments, **options)

        CachingAutotuner.bench = bench_alone  # type: ignore[method-assign]

    def answer(self, request: tuple[str, Any]) -> Row:
        """Do what `request` asks, with torch.no_grad; an error is an answer."""
        what, case = request
        try:
            with torch.no_grad():
                return self._prepare(case) if what == "prepare" else self._turn() if what == "turn" else self._kernels()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:400]}

    def _prepare(self, case: Case) -> Row:
        start = time.perf_counter()
        network, reference, facts = self._networks(case.batch_size)
        dtype, image = _TYPES[case.precision], self._searched.masked.image
        count = case.batch_size if self._device.type == "cpu" else max(16, case.batch_size)
        images = torch.from_numpy(seeded_images(count, image, 1)).to(self._device, dtype)
        with self._alone():
            expected = reference.to(self._device, torch.float32)(images.float()).cpu()
        self._run, self._graph, self._replays = self._captured(network.to(self._device, dtype), images, case.batch_size)
        with self._alone():
            logits = torch.cat([self._run(part).float().cpu() for part in torch.split(images, case.batch_size)])
        found = compare(logits.numpy(), expected.numpy(), TOLERANCE[case.precision])
        facts |= {"difference": found.max_rel, "top1_agreement": found.top1_agreement, "inputs": found.inputs}
        return facts | {"ready_after": time.perf_counter() - start}

    def _networks(self, batch_size: int) -> tuple[nn.Module, nn.Module, Row]:
        """The network, what to hold it against in float32, and what is known about it."""
        name, searched = self._subject.name, self._searched
        if name == "timm":
            network = timm_network(self._subject.size)
            return network, copy.deepcopy(network), {"macs": count_macs(searched.dense, slimc.find_target("generic"))}
        if name in ("dense", "masked"):
            network = searched.pytorch("dense" if name == "dense" else "masked")
            model = searched.dense if name == "dense" else searched.masked
            return copy.deepcopy(network), network, {"macs": count_macs(model, slimc.find_target("generic"))}
        model = self._model(batch_size)
        target = slimc.find_target(_TARGET)
        target = replace(target, exact_ghosts=ir.embedded_rows(model)) if name in _BY_ROWS else target
        target = replace(target, spare_query_macs=0.0) if name == "own queries" else target
        network = to_torch(model, target)
        error = float64_error(network, model)
        if not error <= EXACT:
            raise ArithmeticError(f"differs from the interpreter by {error:.3g}")
        reference: nn.Module = copy.deepcopy(network)
        if name != "twin":
            reference = searched.pytorch("dense" if name == BASELINE else "masked")
        facts = {"macs": count_macs(model, target), "float64_error": error}
        if name not in (BASELINE, "twin"):
            facts["least_macs"] = slimc.compile(searched, target="generic", batch_size=batch_size).slim.macs
        return network, reference, facts

    def _model(self, batch_size: int) -> ir.Model:
        if self._subject.name == BASELINE:
            return self._searched.dense
        if self._subject.name == "twin":
            generic = slimc.compile(self._searched, target="generic", batch_size=batch_size)
            return uniform_twin(self._searched.dense, generic.slim.macs)
        target = slimc.find_target(_TARGET)
        target = replace(target, costs=CountedCosts(math.inf)) if self._subject.name == "one group" else target
        return slimc.compile(self._searched, target=target, batch_size=batch_size).model

    def _captured(self, network: nn.Module, images: Tensor, batch_size: int) -> tuple[Any, Any, int]:
        """What runs a batch, what replays it, and how often a turn is to."""
        torch._dynamo.reset()
        if self._device.type == "cpu":
            run = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
            return run, lambda: run(images[:batch_size]), 1
        compiled, batch = torch.compile(network, fullgraph=True, dynamic=False), images[:batch_size].clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                compiled(batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = compiled(batch)

        def run_graph(part: Tensor) -> Tensor:
            batch.copy_(part)
            graph.replay()
            return torch.clone(logits)

        return run_graph, graph.replay, max(3, round(_SECONDS_A_TURN * 1e3 / _milliseconds(graph.replay, 3)))

    def _turn(self) -> Row:
        if self._device.type == "cpu":
            start = time.perf_counter()
            self._graph()
            return {"milliseconds": (time.perf_counter() - start) * 1e3}
        for _ in range(2):  # brings back what the others drove out of the caches
            self._graph()
        return {"milliseconds": _milliseconds(self._graph, self._replays)}

    def _kernels(self) -> Row:
        """Kernels of one run and their milliseconds, by what they compute."""
        if self._device.type == "cpu":
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self._graph()
            torch.cuda.synchronize()
        kernels: dict[str, list[float]] = {}
        names: dict[str, list[float]] = {}
        for event in profile.events() or ():
            if event.device_type.name != "CUDA":
                continue
            text = event.name.lower()
            kind = next((kind for kind, words in _KINDS.items() if any(word in text for word in words)), "other")
            for found, key in ((kernels, kind), (names, event.name[:100])):
                count, milliseconds = found.get(key, (0, 0.0))
                found[key] = [count + 1, milliseconds + event.device_time / 1e3]
        return {"kernels": kernels, "names": dict(sorted(names.items(), key=lambda item: -item[1][1])[:20])}


def _milliseconds(replay: Any, times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(times):
        replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / times


def float64_error(network: nn.Module, model: ir.Model) -> float:
    """How far `network` is in float64 from what `model` means, as a share of the largest logit."""
    images = seeded_images(1, model.image, 2, model.embedding.channels)
    expected = interpret(model, images)
    with torch.no_grad():
        logits = copy.deepcopy(network).double()(torch.from_numpy(images).double()).numpy()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def timm_network(size: str) -> nn.Module:
    """Timm's dense network of a size, with random weights."""
    from timm.models.vision_transformer import VisionTransformer

    dim, depth, heads, patch, image = SIZES[size]
    network: nn.Module = VisionTransformer(
        img_size=image, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads
    ).eval()
    return network


class Seat(Protocol):
    """How a contestant is spoken to: what is sent is a request for `Contestant.answer`, what comes back its answer."""

    def send(self, request: Any) -> None:
        """Ask for something."""

    def poll(self, timeout: float) -> bool:
        """Whether the answer comes within so many seconds."""

    def recv(self) -> Any:
        """The answer."""


class Here:
    """A contestant in this process."""

    def __init__(self, subject: Subject) -> None:
        self._contestant, self._answers = Contestant(subject), list[Row]()

    def send(self, request: Any) -> None:
        """Answer at once."""
        self._answers.append(self._contestant.answer(request))

    def poll(self, timeout: float) -> bool:
        """The answer is there."""
        return True

    def recv(self) -> Row:
        """The answer."""
        return self._answers.pop(0)


def elsewhere(subject: Subject) -> Seat:
    """A contestant in a process of its own, which ends with this one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs, subject), daemon=True).start()
    return ours


def _serve(connection: Any, subject: Subject) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    contestant = Contestant(subject)
    contestant.tune_alone()
    with suppress(EOFError):  # nobody asks any more
        while True:
            connection.send(contestant.answer(connection.recv()))


def ask(seat: Seat, what: str) -> Row:
    """Ask for a turn, or for the kernels."""
    seat.send((what, None))
    if not seat.poll(60.0):
        raise TimeoutError(what)
    return answer(seat)


def answer(seat: Seat) -> Row:
    """What a contestant answers."""
    try:
        return seat.recv()  # type: ignore[no-any-return]
    except EOFError:
        return {"error": "its process ended"}
