"""What it costs to compute the heads of an attention in groups: counted in multiply-accumulates, or measured.

Heads are packed by the groups that cost least (`slimc.passes.pack_heads`). A group pads its heads to the widest, so it
costs multiply-accumulates in the projections before and behind it. It saves operations, and where several threads share the
heads of one operator, the threads' waiting for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Work:
    """What the heads of an attention are to do: `queries` rows attend to `keys` rows, all `dim` wide, in
    each of `batch` images.

    `divisible` is how many queries a head alone has where they are cut into parts for the threads; none where they cannot
    be.
    """

    dim: int
    queries: int
    keys: int
    batch: int = 1
    divisible: int | None = None

    @property
    def channel_macs(self) -> int:
        """Multiply-accumulates of one channel of one head: its rows of q, k, v and output, scores and mixing."""
        return self.batch * (2 * self.dim * (self.queries + self.keys) + 2 * self.queries * self.keys)

    @property
    def scores(self) -> int:
        """Scores of one head for one image."""
        return self.queries * self.keys


class Costs(Protocol):
    """A measure by which groups of heads are compared."""

    def group(self, heads: int, width: int, work: Work) -> float:
        """What a group of `heads` heads costs that are padded to `width` channels."""
        ...


@dataclass(frozen=True)
class CountedCosts:
    """Costs in multiply-accumulates; whatever its size, a group costs `group_macs` besides, and `image_macs` an image."""

    group_macs: float
    image_macs: float = 0.0

    def group(self, heads: int, width: int, work: Work) -> float:
        """Every channel that is computed, padding included, and once for the group."""
        return self.group_macs + self.image_macs * work.batch + heads * width * work.channel_macs


@dataclass(frozen=True)
class Kernel:
    """Time of an attention without its projections: launch + scores * (score + channel * width).

    `launch` is in microseconds, `score` and `channel` in picoseconds.
    """

    launch: float
    score: float
    channel: float

    def microseconds(self, rounds: int, scores: int, width: int) -> float:
        """Time of `rounds` heads one after the other."""
        return self.launch + 1e-6 * rounds * scores * (self.score + self.channel * width)


@dataclass(frozen=True)
class MeasuredCosts:
    """Costs in microseconds, as `slimc tune` measures them for a number of `threads`.

    projection   picoseconds a multiply-accumulate of the projections, which all threads share
    alone        a head by itself, whose products all threads share
    together     several heads in one operator, of which every thread takes one at a time; a head whose queries are cut into
                 a part for every thread is as many
    """

    threads: int
    projection: float
    alone: Kernel
    together: Kernel

    def group(self, heads: int, width: int, work: Work) -> float:
        """The group's share of the projections, and its heads: alone or together."""
        rows = 2 * work.batch * (work.queries + work.keys)
        shared = 1e-6 * self.projection * rows * work.dim * heads * width
        if heads == 1 and work.divisible is not None:
            return shared + self.together.microseconds(work.batch, work.divisible // self.threads * work.keys, width)
        if heads == 1 and work.batch == 1:
            return shared + self.alone.microseconds(1, work.scores, width)
        kernel = self.together
        if heads == 1:  # one product over the images, which the threads share as they share heads
            kernel = Kernel(self.alone.launch, kernel.score, kernel.channel)
        return shared + kernel.microseconds(-(-heads * work.batch // self.threads), work.scores, width)
