"""The order in which passes run, and running them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimc import ir
from slimc.errors import PassError, ValidationError
from slimc.ir.interpret.model import trace
from slimc.ir.validate import validate
from slimc.passes.absorb_latents import AbsorbLatents
from slimc.passes.align_hidden import AlignHidden
from slimc.passes.drop_tokens import DropUnselectedTokens
from slimc.passes.fold_batch_norm import FoldBatchNorm
from slimc.passes.fold_biases import FoldBiases
from slimc.passes.fold_constants import FoldConstants
from slimc.passes.fold_norm_biases import FoldNormBiases
from slimc.passes.fold_output_biases import FoldOutputBiases
from slimc.passes.fold_scales import FoldScales
from slimc.passes.fold_scores import FoldScores
from slimc.passes.order_tokens import OrderTokens
from slimc.passes.pack_heads import PackHeads
from slimc.passes.remove_channels import RemoveMaskedChannels
from slimc.passes.remove_dead_tokens import RemoveDeadTokens
from slimc.passes.remove_empty import RemoveEmptyBranches
from slimc.passes.remove_hidden import RemoveMaskedHidden
from slimc.passes.remove_positions import RemoveMaskedPositions
from slimc.passes.rewrite import Pass
from slimc.targets.target import Target

CHECK_TOLERANCE = 1e-9


def lasting_passes() -> tuple[Pass, ...]:
    """The passes that ask for nothing but the network: whatever it is compiled for and whatever is read, they come first.

    Run a second time they change nothing.
    """
    return (
        # First: fewer rows for all that follows, whose row sets count those that are left.
        DropUnselectedTokens(),
        FoldScores(),
        FoldBatchNorm(),
        # Channels next: every later pass has less to move, and biases count only after their mask.
        RemoveMaskedChannels(),
        RemoveMaskedHidden(),
        FoldScales(),
        # After the masks, which the biases stand behind.
        FoldBiases(),
        AbsorbLatents(),
        RemoveMaskedPositions(),
        # After positions: a branch may have lost its last key. Before liveness: an empty attention reads no row.
        RemoveEmptyBranches(),
    )


def passes_for(target: Target, batch_size: int = 1) -> tuple[Pass, ...]:
    """The passes that make a searched model slim, to run on `batch_size` images at a time."""
    return (
        *lasting_passes(),
        RemoveDeadTokens(),
        # Again after liveness: where only masked rows live on, an FFN computes no row.
        RemoveEmptyBranches(),
        # After FoldBiases, which makes room in the position embeddings.
        FoldConstants(),
        # After liveness, which says how long a token lives.
        OrderTokens(),
        # After liveness, which says how many rows a branch computes.
        *((FoldOutputBiases(target),) if target.residual_in_product else ()),
        # After FoldOutputBiases, which adds a bias, and after all that makes ghosts, which this one leaves alone.
        *((FoldNormBiases(),) if target.biases_in_norm else ()),
        # After all that removes units or adds one.
        AlignHidden(target),
        # Last: the cost of a group depends on how many rows are left.
        PackHeads(target, batch_size),
    )


def compile_model(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    """Run `passes` over `model`, validating after each.

    Raises:
        ValidationError: `model` contradicts itself.
        PassError: a pass refused its input or has a defect; it is named.
    """
    validate(model)
    for step in passes:
        model = _run(step, model)
    return model


def check_passes(model: ir.Model, passes: Sequence[Pass], images: ir.FloatArray) -> dict[str, float]:
    """Run `passes` over `model` in float64 and compare what it means after each with what it meant at first.

    Returns:
        The largest difference of any output after each pass, by the pass's name.

    Raises:
        PassError: a pass changed an output by more than 1e-9 of its scale, or other outputs than there were are left.
    """
    model = ir.to_float64(model)
    expected = trace(model, images).outputs
    limits = {name: CHECK_TOLERANCE * max(1.0, float(np.abs(values).max())) for name, values in expected.items()}
    errors: dict[str, float] = {}
    for step in passes:
        rewritten = _run(step, model)
        name, found = type(step).__name__, expected if rewritten is model else trace(rewritten, images).outputs
        if list(found) != list(expected):
            raise PassError(name, f"changed the outputs {', '.join(expected)} to {', '.join(found)}")
        differences = {output: float(np.abs(found[output] - values).max()) for output, values in expected.items()}
        for output, error in differences.items():
            if not error <= limits[output]:
                raise PassError(name, f"changed the {output} by {error:.3g}, more than {limits[output]:.3g}")
        errors[name], model = max(differences.values()), rewritten
    return errors


def _run(step: Pass, model: ir.Model) -> ir.Model:
    model = step(model)
    try:
        validate(model)
    except ValidationError as error:
        raise PassError(type(step).__name__, f"left a model that contradicts itself: {error}") from error
    return model
