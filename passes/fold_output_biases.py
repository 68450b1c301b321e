"""Fold the output biases of attention and FFN into one more channel of what the last product reads.

    attention    the weights of a softmax sum to 1, so a value channel that is 1 in every row is mixed to 1:
                 sum_h a_h Wo^T + bo  =  [sum_h a_h, 1] [Wo, bo]^T          value row 0, value bias 1, output column bo
    FFN          gelu(8) = 8 (1 + erf(8 / sqrt 2)) / 2 = 8 to 1 part in 10^15, so a hidden unit may be 8 in every row:
                 gelu(u) W2^T + b2    =  [gelu(u), 8] [W2, b2 / 8]^T        up row 0, up bias 8, down column b2 / 8
                 (other activations reach this precision at 32 or 64; of a gated FFN the gate is that, and up is 1)

Given   a branch with an output bias, which a product adds, and then a sum with the residual stream
Result  a branch without: a product that adds the residual stream instead, one pass over memory less; one channel more

The channel joins the narrowest head. Exact: ghosts have the value bias too. Left as they are: branches of blocks with gates,
which may be switched off; attention without query biases, whose first product would only now add a bias; attention that
the target computes without values; and branches with a norm in front of their last product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slimc.ir import Activation, Attention, Block, FloatArray, Head, Linear, Mlp, Model
from slimc.passes.rewrite import with_blocks
from slimc.targets.plan import BlockPlan, plan_model
from slimc.targets.target import Target

# Where each activation is the identity to one part in 10^15; powers of two, by which dividing is exact.
_UNITS: dict[Activation, float] = {"gelu": 8.0, "gelu_tanh": 8.0, "quick_gelu": 32.0, "silu": 64.0, "relu": 8.0}


@dataclass(frozen=True)
class FoldOutputBiases:
    """Let no branch have an output bias that `target` could do without."""

    target: Target

    def __call__(self, model: Model) -> Model:
        """`model` without output biases; the same object where none can go."""
        pairs = zip(model.blocks, plan_model(model, self.target), strict=True)
        return with_blocks(model, tuple(_block(block, plan) for block, plan in pairs))


def _block(block: Block, plan: BlockPlan) -> Block:
    if block.gates is not None:
        return block
    attention, mlp = block.attention, block.mlp
    if plan.attention is not None and not plan.attention.absorbed:
        attention = _attention(plan.attention.node)
    if isinstance(mlp, Mlp):
        mlp = _mlp(mlp)
    same = attention is block.attention and mlp is block.mlp
    return block if same else replace(block, attention=attention, mlp=mlp)


def _attention(attention: Attention) -> Attention:
    bias, heads = attention.output_bias, attention.heads
    biased = any(head.query.bias is not None for head in heads)
    if bias is None or not biased or attention.masked or attention.output_norm is not None:
        return attention
    narrowest = min(range(len(heads)), key=lambda i: len(heads[i].value.weight))
    changed = tuple(_with_constant(head, bias) if i == narrowest else head for i, head in enumerate(heads))
    return replace(attention, heads=changed, output_bias=None, groups=None)


def _with_constant(head: Head, bias: FloatArray) -> Head:
    """`head` with a value channel of ones that `bias` takes to the output."""
    value = _with_row(head.value, 1.0)
    return replace(head, value=value, output=np.concatenate([head.output, bias[:, None]], axis=1))


def _mlp(mlp: Mlp) -> Mlp:
    if mlp.down.bias is None or mlp.mask is not None or mlp.inner_norm is not None:
        return mlp
    unit = _UNITS[mlp.activation]
    column = (mlp.down.bias / unit).astype(mlp.down.weight.dtype)[:, None]
    down = Linear(np.concatenate([mlp.down.weight, column], axis=1))
    if mlp.gate is None:
        return replace(mlp, up=_with_row(mlp.up, unit), down=down)
    return replace(mlp, up=_with_row(mlp.up, 1.0), gate=_with_row(mlp.gate, unit), down=down)


def _with_row(linear: Linear, constant: float) -> Linear:
    """`linear` with one more output that is `constant` whatever the input."""
    out, into = linear.weight.shape
    weight = np.concatenate([linear.weight, np.zeros((1, into), linear.weight.dtype)])
    bias = np.zeros(out + 1, linear.weight.dtype)
    bias[:out] = 0.0 if linear.bias is None else linear.bias
    bias[out] = constant
    return Linear(weight, bias)
