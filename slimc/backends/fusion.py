"""What became of each block in a built engine: how many kernels, and whether its attention was fused into one.

TensorRT-RTX ends its verbose log with the list of kernels and the ONNX nodes that each computes; plain TensorRT tells the
same through its engine inspector, as JSON. Both need a build with detailed profiling verbosity. A fused attention is a
kernel with ``mha`` in its name that computes the softmax.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as oir

from slimc.backends.tensorrt_common import Message

_KERNEL = re.compile(r"Name: (?P<name>\S+), LayerType: (?P<kind>\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_BLOCK = re.compile(r"^(?P<block>\w*blocks\.\d+)\.")
_HALF = (oir.DataType.FLOAT16, oir.DataType.BFLOAT16)
_FUSED_WIDTHS = range(16, 257)


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine; `nodes` are the ONNX nodes that it computes."""

    name: str
    kind: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class AttentionSite:
    """One batched attention in an ONNX graph, called by its Softmax node; None where the graph does not say."""

    softmax: str
    block: str
    batch: int | None
    heads: int | None
    width: int | None
    half: bool
    fusible: bool


@dataclass(frozen=True)
class BlockFusion:
    """One block in an engine. `lost` says of every attention that was not fused why that is."""

    name: str
    kernels: int
    attentions: int
    fused: int
    lost: tuple[str, ...]


def read_log(log: Sequence[Message]) -> tuple[Kernel, ...]:
    """The kernels that a build log ends with; none where it has no such list."""
    listing = next((m.text for m in reversed(log) if m.text.startswith("Layers:")), "")
    found = ((line, _KERNEL.search(line)) for line in listing.splitlines())
    return tuple(Kernel(m["name"], m["kind"], tuple(_NODE.findall(line))) for line, m in found if m is not None)


def read_inspector(text: str) -> tuple[Kernel, ...]:
    """The kernels in what `IEngineInspector.get_engine_information(JSON)` returns."""
    layers = json.loads(text).get("Layers", [])
    return tuple(
        Kernel(layer["Name"], layer.get("LayerType", ""), tuple(_NODE.findall(layer.get("Metadata", ""))))
        for layer in layers
        if isinstance(layer, dict)  # a bare name: built without detailed verbosity
    )


def attention_sites(graph: oir.Graph) -> tuple[AttentionSite, ...]:
    """Every attention of `graph`: a Softmax between two MatMuls."""
    return tuple(_site(node) for node in graph.all_nodes() if node.op_type == "Softmax" and node.name)


def _site(softmax: oir.Node) -> AttentionSite:
    scores = _upstream(softmax.inputs[0], ("Add", "Cast"))
    query = scores.inputs[0] if scores is not None and scores.op_type == "MatMul" else None
    sizes = () if query is None or query.shape is None else query.shape
    shape = [size if isinstance(size, int) else None for size in sizes]
    # One head alone has no axis for heads, and at batch size 1 none for images.
    padded: list[int | None] = [*[1] * (4 - len(shape)), *shape] if 2 <= len(shape) <= 4 else [None] * 4
    if len(shape) == 3:
        padded[:2] = [shape[0], 1]
    readers = [use.node.op_type for use in softmax.outputs[0].uses()]
    return AttentionSite(
        softmax=str(softmax.name),
        block=block_of(str(softmax.name)) or "",
        batch=padded[0],
        heads=padded[1],
        width=padded[3],
        half=query is not None and query.dtype in _HALF,
        fusible="Relu" not in readers,
    )


def _upstream(value: oir.Value | None, through: Iterable[str]) -> oir.Node | None:
    """The node that makes `value`, not counting those in `through`."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in through:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node


def block_of(node: str) -> str | None:
    """The block a node belongs to by its name, such as ``blocks.3``."""
    match = _BLOCK.match(node)
    return None if match is None else match["block"]


def summarise(kernels: Sequence[Kernel], sites: Sequence[AttentionSite]) -> tuple[BlockFusion, ...]:
    """Kernels and attentions by block, in the graph's order. A kernel without nodes counts to the block before it."""
    counts: Counter[str] = Counter()
    fused: set[str] = set()
    block: str | None = None
    for kernel in kernels:
        blocks = [found for node in kernel.nodes if (found := block_of(node)) is not None]
        block = min(blocks, key=_number) if blocks else (None if kernel.nodes else block)
        if block is not None:
            counts[block] += 1
        if "mha" in kernel.name:
            fused |= set(kernel.nodes)
    names = sorted({*counts, *(site.block for site in sites)} - {""}, key=_number)
    return tuple(_block(name, counts[name], [site for site in sites if site.block == name], fused) for name in names)


def _block(name: str, kernels: int, sites: Sequence[AttentionSite], fused: set[str]) -> BlockFusion:
    lost = [site for site in sites if site.softmax not in fused]
    return BlockFusion(name, kernels, len(sites), len(sites) - len(lost), tuple(_why_lost(site) for site in lost))


def _why_lost(site: AttentionSite) -> str:
    """What is known to keep TensorRT from fusing the attention at `site`."""
    if not site.fusible:
        return "switched off by --no-fused-attention"
    if not site.half:
        return "its operands are float32, and only half precision is fused: build with --fp16 or --bf16"
    if site.width is not None and site.width not in _FUSED_WIDTHS:
        return f"heads of width {site.width}; {_FUSED_WIDTHS[0]} to {_FUSED_WIDTHS[-1]} are fused"
    if site.batch == 1 and site.heads == 1:
        return "one head alone in a batch of one; two or more are fused"
    return "the builder gives no reason"


def _number(block: str) -> tuple[int, str]:
    return int(block.rsplit(".", 1)[1]), block
