"""The intermediate representation: what a searched vision transformer computes, as frozen dataclasses over NumPy arrays.

A `Model` turns images into a residual stream of rows (one row a token), runs blocks over it and classifies. Two ideas keep
the passes short. Attention is a tuple of heads that own their matrices, so that a head may lose channels by itself. And
token positions are explicit: every index set counts rows of the stream that enters the node it belongs to.

`slimc.ir.interpret.model` is the definition of what a model means; `slimc.ir.validate` says which models are well formed.
Notation: B images, N rows of the stream, P prefix rows (cls, dist), C = dim, F = FFN width, H heads of width d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from slimc.ir.layers import Activation, FloatArray, IndexArray, LayerNorm, Linear, Norm, Rotation
from slimc.ir.readout import LOGITS, Classifier, Output


@dataclass(frozen=True, eq=False)
class Head:
    """One attention head: q, k = n Wq^T, n Wk^T [N, d_qk]; v = n Wv^T [N, d_v]; its share of the output is (a v) output^T.

    `mask` [d_qk] multiplies q and k channel by channel, `value_mask` [d_v] multiplies v; none means one. `output` is
    [C, d_v]. `rotation` turns q and k by the positions of their rows, last of all. `gate` is the decision of the block's
    `Gates.heads` that the head obeys; none means that it is always on.
    """

    query: Linear
    key: Linear
    value: Linear
    output: FloatArray
    mask: FloatArray | None = None
    gate: int | None = None
    value_mask: FloatArray | None = None
    rotation: Rotation | None = None


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention branch: residual_scale * (sum over heads of softmax(q k^T scale) v output^T + output_bias).

    `query_norm` and `key_norm` [d_qk] normalise q and k of every head before they are turned. `output_norm` [sum of d_v]
    normalises what the heads mix, side by side, before their `output`; the values' masks multiply its result once more.
    `layer_scale` [C] multiplies the branch channel by channel.

    The heads read n = norm(x). `token_mask` [N] multiplies the rows of n. `rows` is what such a mask becomes once it is
    removed: the rows of the stream that attention sees. The others are no keys, and as queries they count as zero rows
    of n (their query is the query bias). `ghosts` zero rows of n stay in every softmax as keys: their keys and values are
    the biases, zero where there are none.

    `groups` are the sizes of consecutive runs of heads with equal widths, each computed as one batched attention; none
    means that the emitter may take the runs as it finds them.
    """

    norm: Norm
    heads: tuple[Head, ...]
    output_bias: FloatArray | None
    scale: float
    token_mask: FloatArray | None = None
    rows: IndexArray | None = None
    ghosts: int = 0
    groups: tuple[int, ...] | None = None
    residual_scale: float = 1.0
    layer_scale: FloatArray | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    output_norm: Norm | None = None

    @property
    def masked(self) -> bool:
        """Whether a mask stands on the channels of any head."""
        return any(head.mask is not None or head.value_mask is not None for head in self.heads)

    @property
    def normed(self) -> bool:
        """Whether queries or keys have a norm."""
        return self.query_norm is not None or self.key_norm is not None


@dataclass(frozen=True, eq=False)
class Mlp:
    """The FFN branch: residual_scale * down(h * mask) with h = activation(up(n)) and n = norm(x).

    With a `gate`, h = activation(gate(n)) * up(n) (arXiv 2002.05202). `inner_norm` [F] normalises h * mask, whose result
    the mask multiplies once more. `layer_scale` [C] multiplies the branch channel by channel.

    `mask` is [F]. `token_mask` [N] multiplies the rows of n; `rows` is what it becomes once it is removed: the rows that
    are computed. The others count as zero rows of n. `inputs` are the channels of n that `up` reads; none means all.

    `input_gates` (an entry a column of `up`) and `unit_gates` (an entry a hidden unit) number the decisions of the block's
    `Gates.heads` that multiply what `up` reads, and what `down` reads; -1 is always one, and none means all -1.
    """

    norm: Norm
    up: Linear
    down: Linear
    mask: FloatArray | None = None
    token_mask: FloatArray | None = None
    rows: IndexArray | None = None
    residual_scale: float = 1.0
    inputs: IndexArray | None = None
    input_gates: IndexArray | None = None
    unit_gates: IndexArray | None = None
    activation: Activation = "gelu"
    gate: Linear | None = None
    inner_norm: Norm | None = None
    layer_scale: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Constant:
    """A branch that adds the same vector [C] to every row."""

    vector: FloatArray


@dataclass(frozen=True, eq=False)
class TokenScorer:
    """How much each patch row x [N, C] of an image is worth keeping (DynamicViT, arXiv 2106.02034, section 3.2).

    With n = norm(x): local = gelu(local(n)) and context = the mean of gelu(context(n)) over the rows still kept, both
    [C/2]. The layers, a GELU between two, map [local, context] to two logits, keep and drop; the score is the
    log-softmax of keep. A last layer of one output is the difference keep - drop, of which that log-softmax is a rising
    function; it is the score then.
    """

    norm: LayerNorm
    local: Linear
    context: Linear
    layers: tuple[Linear, ...]


@dataclass(frozen=True, eq=False)
class SelectTokens:
    """Keep the `keep` patch rows of the highest score, image by image; all where there are no more than that.

    Equal scores: the earlier row is kept. A NaN in any patch reaches every score through the context, and NaNs are equal:
    the first rows are kept. The first `prefix` rows always stay first; the kept rows follow in any order, on which nothing
    depends. With `drop` the others leave the stream. Without, they
    stay in it as the training network has it: from here on no attention takes them as keys, no scorer counts them or
    selects them again, and the classifier does not read them.
    """

    scorer: TokenScorer
    keep: int
    prefix: int
    drop: bool = True


@dataclass(frozen=True, eq=False)
class TokenGate:
    """The rows that a block uses for an image: prefix rows, and the patches with score(norm(x)) > threshold, strictly.

    `score` is [1, C]. Of more than `capacity` patches, those of the highest scores are used (of equal ones the first);
    none means any number.
    """

    norm: LayerNorm
    score: Linear
    threshold: float
    capacity: int | None = None


@dataclass(frozen=True, eq=False)
class Gates:
    """What a block decides for each image (AdaViT, arXiv 2111.15668), from p: row 0 of the entering stream, after `norm`.

    `attention` and `mlp` [1, C] switch a branch: it is added where the logit of p exceeds 0; none means always. `heads`
    [G, C] are decisions, 1 where the logit exceeds 0, that heads and FFNs refer to by number. A head that is off gives
    zero, or with `off_heads` "value" every token its own value. `tokens`: rows that are not used are no keys, and the
    attention branch adds nothing to them, its bias included; nor does the FFN where `tokens_gate_mlp`.
    """

    attention: Linear | None = None
    mlp: Linear | None = None
    heads: Linear | None = None
    tokens: TokenGate | None = None
    norm: LayerNorm | None = None
    tokens_gate_mlp: bool = False
    off_heads: Literal["zero", "value"] = "zero"


@dataclass(frozen=True, eq=False)
class Block:
    """x = select(x); x = x[live] + attention(x); x = x + mlp(x). A branch that adds nothing is none.

    `live` are the rows of the stream entering the attention that leave it, none for all: the others end there.
    `name` is the module path in the checkpoint, such as ``blocks.3``. `gates` decide for each image what runs.
    """

    name: str
    attention: Attention | Constant | None
    mlp: Mlp | Constant | None
    live: IndexArray | None = None
    select: SelectTokens | None = None
    gates: Gates | None = None


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the channels, all [C], as in evaluation."""

    weight: FloatArray
    bias: FloatArray
    mean: FloatArray
    variance: FloatArray
    eps: float


@dataclass(frozen=True, eq=False)
class Convolution:
    """relu(norm(conv(x) + bias)): weight [out, in, k, k] with k odd, zero padding k // 2 on every side, and a stride."""

    weight: FloatArray
    bias: FloatArray | None
    stride: int
    norm: BatchNorm | None = None


@dataclass(frozen=True, eq=False)
class Performer:
    """A layer of linear attention (T2T-ViT, arXiv 2101.11986; features of arXiv 2009.14794), from rows x [N, E] to [N, D].

    k, q, v [N, D] = key(n), query(n), value(n) of n = norm1(x); phi(u) = exp(features u - |u|^2 / 2) / sqrt(m) with
    features [m, D]; y = v + output(phi(q) (phi(k)^T v) / (phi(q) sum of phi(k) + 1e-8)); then y + down(gelu(up(norm2(y)))).
    """

    norm1: LayerNorm
    key: Linear
    query: Linear
    value: Linear
    features: FloatArray
    output: Linear
    norm2: LayerNorm
    up: Linear
    down: Linear


@dataclass(frozen=True, eq=False)
class SoftSplit:
    """A stage of T2T-ViT's stem, from a map to a map: overlapping windows, each a row, then `performer` on the rows.

    Windows of side x side pixels, `stride` apart, zeros `padding` pixels around the map (``unfold``: channels first).
    """

    side: int
    stride: int
    padding: int
    performer: Performer | None = None


@dataclass(frozen=True, eq=False)
class PatchEmbed:
    """Non-overlapping patches of the image, each mapped to a row: weight [C, channels, p, p], bias [C] or
    none.

    Where the embedding has a stem, patches of the stem's output: weight [C, channels of the stem, p, p].

    `patches` are the positions on the patch grid (row-major) that are embedded, in the order of the stream; none for all.
    """

    weight: FloatArray
    bias: FloatArray | None
    patches: IndexArray | None = None


@dataclass(frozen=True, eq=False)
class Embedding:
    """The stream's first rows: prefix tokens [P, C], then the patches; position embeddings are added to both.

    `prefix_position` is [P, C], `patch_position` [number of patches, C]; none means zero. `stem` are stages that
    the image passes before it is cut into patches. `patch_norm` normalises the patches before positions are added, `norm`
    all rows after that.
    """

    patch: PatchEmbed
    prefix: FloatArray
    prefix_position: FloatArray | None
    patch_position: FloatArray | None
    stem: tuple[Convolution | SoftSplit, ...] = ()
    patch_norm: Norm | None = None
    norm: Norm | None = None

    @property
    def channels(self) -> int:
        """Channels of the image."""
        if not self.stem:
            return int(self.patch.weight.shape[1])
        first = self.stem[0]
        if isinstance(first, Convolution):
            return int(first.weight.shape[1])
        rows = self.patch.weight.shape[1] if first.performer is None else len(first.performer.norm1.weight)
        return int(rows) // first.side**2


@dataclass(frozen=True, eq=False)
class Model:
    """A network from images [B, channels, height, width] to `outputs`; `image` is (height, width) in pixels."""

    image: tuple[int, int]
    embedding: Embedding
    blocks: tuple[Block, ...]
    classifier: Classifier
    outputs: tuple[Output, ...] = (LOGITS,)

    @property
    def dim(self) -> int:
        """Width C of the residual stream."""
        return int(self.embedding.patch.weight.shape[0])

    @property
    def classes(self) -> int:
        """Number of logits; 0 where there are none."""
        heads = self.classifier.heads
        return int(heads[0].weight.shape[0]) if heads else 0

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        p, q = self.patch
        return self.image[0] // p, self.image[1] // q

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch in pixels of the image."""
        stride = math.prod(stage.stride for stage in self.embedding.stem)
        height, width = self.embedding.patch.weight.shape[2:]
        return height * stride, width * stride

    @property
    def prefix(self) -> int:
        """Number P of prefix rows."""
        return int(self.embedding.prefix.shape[0])
