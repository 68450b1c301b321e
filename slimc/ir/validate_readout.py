"""Which readouts are well formed: heads that fit the features, outputs that fit the stream."""

from __future__ import annotations

from slimc import ir
from slimc.errors import ValidationError
from slimc.ir.validate_parts import check_indices, check_linear, check_norm, check_shape


def check_classifier(model: ir.Model) -> None:
    """Check the classifier of `model`."""
    classifier, dim = model.classifier, model.dim
    check_norm("classifier.norm", classifier.norm, dim)
    rows = ir.block_rows(model)[-1].leaving if model.blocks else ir.embedded_rows(model)
    read = 1 if classifier.pool is not None else len(classifier.rows)
    misfit = bool(classifier.heads) and len(classifier.heads) != read
    if misfit or not all(0 <= row < rows for row in classifier.rows):
        raise ValidationError(
            f"classifier.rows: {classifier.rows} do not fit {rows} rows and {len(classifier.heads)} heads"
        )
    if classifier.pool is not None and classifier.rows:
        raise ValidationError("classifier.rows: there is a pool as well")
    features = dim
    if isinstance(classifier.pool, ir.Pool):
        features = _check_pool(classifier.pool, dim, rows)
    elif isinstance(classifier.pool, ir.LatentPool):
        _check_latent(classifier.pool, dim, rows)
    check_norm("classifier.pooled_norm", classifier.pooled_norm, features)
    if classifier.pre_logits is not None:
        into, features = features, classifier.pre_logits.weight.shape[0]
        check_linear("classifier.pre_logits", classifier.pre_logits, features, into)
    for head in classifier.heads:
        check_linear("classifier.heads", head, model.classes, features)
    if classifier.auxiliary is not None:
        check_linear("classifier.auxiliary", classifier.auxiliary, model.classes, dim)
        if rows <= model.prefix:
            raise ValidationError(f"classifier.auxiliary: no patch row among {rows}")


def _check_pool(pool: ir.Pool, dim: int, rows: int) -> int:
    """Check a pool, and return its features."""
    least = 2 if pool.kind == "token+avg" else 1
    check_indices("classifier.pool.rows", pool.rows, rows)
    if len(pool.rows) < least:
        raise ValidationError(f"classifier.pool: {pool.kind} of {len(pool.rows)} rows")
    return 2 * dim if pool.kind == "token+avg" else dim


def _check_latent(pool: ir.LatentPool, dim: int, rows: int) -> None:
    name = "classifier.pool"
    check_indices(f"{name}.rows", pool.rows, rows)
    if len(pool.rows) == 0:
        raise ValidationError(f"{name}: a softmax over no key")
    for i, head in enumerate(pool.heads):
        d_qk, d_v = len(head.query), head.value.weight.shape[0]
        check_shape(f"{name}.heads[{i}].query", head.query, (d_qk,))
        check_linear(f"{name}.heads[{i}].key", head.key, d_qk, dim)
        check_linear(f"{name}.heads[{i}].value", head.value, d_v, dim)
        check_shape(f"{name}.heads[{i}].output", head.output, (dim, d_v))
        check_shape(f"{name}.heads[{i}].mask", head.mask, (d_qk,))
        check_shape(f"{name}.heads[{i}].value_mask", head.value_mask, (d_v,))
    check_shape(f"{name}.output_bias", pool.output_bias, (dim,))
    if pool.mlp is not None:
        check_norm(f"{name}.mlp.norm", pool.mlp.norm, dim)
        width = pool.mlp.up.weight.shape[0]
        check_linear(f"{name}.mlp.up", pool.mlp.up, width, dim)
        check_linear(f"{name}.mlp.down", pool.mlp.down, dim, width)


def check_outputs(model: ir.Model) -> None:
    """Check the outputs of `model`."""
    names = [output.name for output in model.outputs]
    if not names or len(set(names)) != len(names):
        raise ValidationError(f"outputs: {names}: expected at least one, and each once")
    leaving = [rows.leaving for rows in ir.block_rows(model)]
    for output in model.outputs:
        name = f"outputs.{output.name}"
        if output.kind == "logits" and not model.classifier.heads:
            raise ValidationError(f"{name}: there is no head")
        if output.kind == "features" and model.classifier.pool is None and not model.classifier.rows:
            raise ValidationError(f"{name}: nothing is pooled")
        if output.kind in ("logits", "features"):
            continue
        if any(block.select is not None for block in model.blocks):
            raise ValidationError(f"{name}: which patches are left depends on the image")
        if output.rows is None or output.layout == "NC":
            raise ValidationError(f"{name}: needs rows and a layout of them")
        if (output.block is None) != (output.kind == "tokens") or not (output.block or 0) < max(len(leaving), 1):
            raise ValidationError(f"{name}: there are {len(leaving)} blocks")
        after = leaving[-1 if output.block is None else output.block] if leaving else ir.embedded_rows(model)
        check_indices(f"{name}.rows", output.rows, after)
        if output.layout == "NCHW" and len(output.rows) != model.grid[0] * model.grid[1]:
            raise ValidationError(f"{name}: {len(output.rows)} rows are no map of {model.grid}")
