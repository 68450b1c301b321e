"""Multiply-accumulates and parameters behind the last block: of what the outputs read, and of nothing else."""

from __future__ import annotations

from slimc import ir
from slimc.targets.count_parts import mlp_macs, mlp_params, params_of, size_of, zero_biases
from slimc.targets.plan import latent_runs, without_empty_heads


def readout_macs(model: ir.Model) -> int:
    """MACs behind the last block for one image."""
    classifier, kinds = model.classifier, _kinds(model)
    macs = 0
    if kinds & {"logits", "features"}:
        if isinstance(classifier.pool, ir.LatentPool):
            macs += _latent_macs(without_empty_heads(classifier.pool), model.dim)
        if classifier.pre_logits is not None:
            macs += classifier.pre_logits.weight.size * _readers(classifier)
    if "logits" in kinds:
        macs += sum(head.weight.size for head in classifier.heads)
        if classifier.auxiliary is not None:
            rows = ir.block_rows(model)[-1].leaving if model.blocks else ir.embedded_rows(model)
            macs += (rows - model.prefix) * classifier.auxiliary.weight.size
    return macs


def readout_params(model: ir.Model) -> int:
    """Parameters behind the last block."""
    classifier, kinds = model.classifier, _kinds(model)
    if kinds == {"blocks"}:
        return 0
    params = params_of(classifier.norm)
    if kinds & {"logits", "features"} and _readers(classifier):
        params += params_of(classifier.pooled_norm) + params_of(classifier.pre_logits)
        if isinstance(classifier.pool, ir.LatentPool):
            params += _latent_params(without_empty_heads(classifier.pool))
    if "logits" in kinds:
        params += params_of(classifier.heads) + params_of(classifier.auxiliary)
    return params


def _kinds(model: ir.Model) -> set[str]:
    return {output.kind for output in model.outputs}


def _readers(classifier: ir.Classifier) -> int:
    """How many features there are for an image."""
    return len(classifier.rows) if classifier.pool is None else 1


def _latent_macs(pool: ir.LatentPool, dim: int) -> int:
    rows = len(pool.rows)
    macs = 0 if pool.mlp is None else mlp_macs(pool.mlp)
    for head in pool.heads:
        key, value = head.key.weight, head.value.weight
        if pool.absorbed:
            macs += 2 * rows * dim + value.size
        else:
            macs += rows * (key.size + value.size + len(key) + len(value))
        macs += head.output.size
    return int(macs)


def _latent_params(pool: ir.LatentPool) -> int:
    """Parameters of the pool: its arrays without masks; absorbed, the scores of a head take one channel without a bias."""
    heads = pool.heads
    params = sum(head.output.size for head in heads)
    if pool.mlp is not None:
        # Without hidden units only a bias is left.
        params += mlp_params(pool.mlp) if len(pool.mlp.up.weight) else size_of(pool.mlp.down.bias)
    values = tuple(head.value for head in heads)
    if not heads:
        return params
    params += params_of(values) + params_of(pool.output_bias)
    if pool.absorbed:
        return int(params + sum(head.key.weight.shape[1] for head in heads) + _zero_runs(pool))
    keys = tuple(head.key for head in heads)
    params += params_of(keys) + zero_biases([*keys, *values])
    return int(params + sum(len(head.query) for head in heads))


def _zero_runs(pool: ir.LatentPool) -> int:
    """Entries that stand for no bias in the biases of runs of heads."""
    return sum(zero_biases([head.value for head in run]) for run in latent_runs(pool))
