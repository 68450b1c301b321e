"""The ViT-Slim front end against the released code's own outputs, and against the paper's definition where it has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimc import ir
from slimc.compiler.load import load_network
from slimc.compiler.pipeline import check_passes, compile_model, passes_for
from slimc.errors import BudgetError, OptionError
from slimc.files.checkpoint import Checkpoint, read_checkpoint
from slimc.ir.interpret.model import interpret
from slimc.models import vit_slim
from slimc.models.options import VitSlimOptions
from slimc.models.system import Network
from slimc.models.systems import recognises
from slimc.models.vit_slim_masks import threshold
from slimc.models.weights import Weights
from slimc.targets.target import find_target
from tests import vectors
from tests.checkpoints import Recipe, arguments, save, state_dict
from tests.models import vit_slim_spec as spec
from tests.onnx_files import emitted, products, run_onnx
from tests.targets.test_count import assert_counts, assert_least_products

TOLERANCE = 2e-5  # of logits that reach about 3, in float32


@dataclass(frozen=True, eq=False)
class Vector:
    """A checkpoint of the released code with its outputs."""

    folder: str
    checkpoint: Checkpoint
    searched: Network
    images: ir.FloatArray
    logits: ir.FloatArray
    logits_soft: ir.FloatArray


VECTORS = {
    "vitslim-a-channel-0.7": "checkpoint.pth",
    "vitslim-c-headsearch": "checkpoint.pth",
    "vitslim-e-patch-cls": "checkpoint.pth",
    "vitslim-g-emptylayers": "checkpoint.pth",
    "vitslim-digits-a": "retrained.pth",
}


@pytest.fixture(scope="module", params=VECTORS)
def vector(request: pytest.FixtureRequest) -> Vector:
    folder: str = request.param
    return load_vector(folder, VECTORS[folder])


def load_vector(folder: str, file: str, prefix: str = "", options: dict[str, Any] | None = None) -> Vector:
    path = vectors.DATA / folder / file
    checkpoint, searched = read_checkpoint(path, recognises), load_network(path, options)
    arrays = vectors.arrays(folder)
    logits, soft = arrays[f"{prefix}logits"], arrays[f"{prefix}logits_soft"]
    return Vector(folder, checkpoint, searched, arrays["images"], logits, soft)


def soft_network(checkpoint: Checkpoint) -> torch.nn.Module:
    weights = Weights(checkpoint.path, checkpoint.state)
    config = vit_slim.read_config(weights, checkpoint.path, checkpoint.args, VitSlimOptions())
    return vit_slim.build_network(checkpoint, config, None)


def run_torch(network: torch.nn.Module, images: ir.FloatArray, batch_size: int) -> ir.FloatArray:
    with torch.inference_mode():
        return np.concatenate([network(part).numpy() for part in torch.split(torch.from_numpy(images), batch_size)])


def run_batches(model: ir.Model, images: ir.FloatArray, batch_size: int) -> ir.FloatArray:
    graph = emitted(model, batch_size=batch_size)
    if len(images) == batch_size:
        return run_onnx(graph, images)
    return np.concatenate([run_onnx(graph, part) for part in np.split(images, len(images) // batch_size)])


def assert_close(actual: ir.FloatArray, expected: ir.FloatArray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_pytorch_network_gives_the_official_logits(vector, batch_size):
    images = vector.images[:8]
    assert_close(run_torch(vector.searched.pytorch("masked"), images, batch_size), vector.logits[:8])
    assert_close(run_torch(soft_network(vector.checkpoint), images, batch_size), vector.logits_soft[:8])


def test_the_masks_are_the_official_ones(vector):
    arrays = vectors.arrays(vector.folder)
    for layer, block in enumerate(vector.searched.masked.blocks):
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, ir.Attention)
        assert isinstance(mlp, ir.Mlp)
        np.testing.assert_array_equal(
            np.stack([np.asarray(head.mask) for head in attention.heads]), arrays["mask_attn"][layer]
        )
        np.testing.assert_array_equal(mlp.mask, arrays["mask_mlp"][layer])
        np.testing.assert_array_equal(attention.token_mask, arrays["mask_patch"][layer])
        np.testing.assert_array_equal(mlp.token_mask, arrays["mask_patch"][layer])


def test_the_thresholds_are_the_official_ones(vector):
    stored = vectors.meta(vector.folder)["thresholds"]
    expected = list(stored.values()) if isinstance(stored, dict) else stored
    if vector.folder != "vitslim-digits-a":  # whose meta.json tells those of the search
        assert list(vector.searched.details["thresholds"].values()) == expected


def test_the_ir_means_the_official_network(vector):
    assert_close(interpret(vector.searched.masked, vector.images[:4]), vector.logits[:4], 1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("variant", ["slim", "masked"])
def test_the_onnx_models_give_the_official_logits(vector, variant, batch_size):
    model = vector.searched.masked
    if variant == "slim":
        model = compile_model(model, passes_for(find_target("generic")))
    assert_close(run_batches(model, vector.images[:4], batch_size), vector.logits[:4])


@pytest.mark.parametrize("target", ["cpu", "sm75", "sm120"])
def test_every_target_gives_the_official_logits(vector, target):
    slim = compile_model(vector.searched.masked, passes_for(find_target(target)))
    assert_close(run_onnx(emitted(slim, target=target, batch_size=4), vector.images[:4]), vector.logits[:4])


def test_every_pass_is_exact(vector):
    errors = check_passes(vector.searched.masked, passes_for(find_target("generic")), vector.images[:1])
    assert max(errors.values()) <= 1e-9


@pytest.mark.parametrize("target", ["generic", "sm86"])
def test_counts_are_those_of_the_file(vector, target):
    assert_counts(compile_model(vector.searched.masked, passes_for(find_target(target))), target, 1)
    assert_counts(vector.searched.masked, target, 1)
    assert_counts(vector.searched.dense, target, 1)


def test_no_product_has_a_dimension_that_the_masks_made_unnecessary(vector):
    slim = compile_model(vector.searched.masked, passes_for(find_target("generic")))
    assert_least_products(vector.searched.masked, products(emitted(slim)), 1)


def test_a_layer_whose_channels_are_all_gone_leaves_nothing_behind():
    searched = load_vector("vitslim-g-emptylayers", "checkpoint.pth").searched
    slim = compile_model(searched.masked, passes_for(find_target("generic")))
    assert slim.blocks[1].attention is None
    assert slim.blocks[2].mlp is None
    assert not any(name.startswith(("blocks.1.attn", "blocks.2.mlp")) for name in products(emitted(slim)))


@pytest.fixture(scope="module")
def digits() -> Vector:
    return load_vector("vitslim-digits-a", "retrained.pth")


@pytest.fixture(scope="module")
def answers(digits) -> dict[str, ir.FloatArray]:
    slim = compile_model(digits.searched.masked, passes_for(find_target("generic")))
    return {
        "torch": run_torch(digits.searched.pytorch("masked"), digits.images, 60),
        "masked": run_batches(digits.searched.masked, digits.images, 60),
        "slim": run_batches(slim, digits.images, 60),
    }


@pytest.mark.parametrize("network", ["torch", "masked", "slim"])
def test_the_retrained_accuracy_is_reproduced_exactly(answers, network):
    labels = vectors.arrays("vitslim-digits-a")["labels"]
    assert int((answers[network].argmax(1) == labels).sum()) == 348


@pytest.mark.parametrize("network", ["torch", "masked", "slim"])
def test_all_logits_are_the_official_ones(digits, answers, network):
    assert_close(answers[network], digits.logits)


def test_masked_and_slim_agree_on_every_digit(answers):
    assert int((answers["masked"].argmax(1) == answers["slim"].argmax(1)).sum()) == 360


def test_the_searched_file_needs_budgets_and_then_gives_its_logits():
    with pytest.raises(BudgetError, match=r"searched.pth: a search-stage checkpoint.*--budget-attn"):
        load_vector("vitslim-digits-a", "searched.pth")
    budgets = {"budget_attn": 0.6, "budget_mlp": 0.6, "budget_patch": 0.7}
    searched = load_vector("vitslim-digits-a", "searched.pth", "searched_", budgets)
    expected = vectors.meta("vitslim-digits-a")["thresholds"]
    assert list(searched.searched.details["thresholds"].values()) == expected
    images = searched.images[:8]
    assert_close(run_torch(searched.searched.pytorch("masked"), images, 8), searched.logits[:8])
    assert_close(run_torch(soft_network(searched.checkpoint), images, 8), searched.logits_soft[:8])
    slim = compile_model(searched.searched.masked, passes_for(find_target("generic")))
    assert_close(run_onnx(emitted(slim, batch_size=8), images), searched.logits[:8])


RECIPES = {
    "channel": Recipe(),
    "head": Recipe(zeta="head", heads=6),
    "uniform": Recipe(zeta="uniform"),
    "uniform, one channel a head": Recipe(zeta="uniform", dim=6, heads=6, seed=1),
    "one head": Recipe(heads=1),
    "one head, head search": Recipe(heads=1, zeta="head"),
    "distilled": Recipe(distilled=True),
    "pre_logits": Recipe(representation=7),
    "no qkv bias": Recipe(qkv_bias=False),
    "wide grid": Recipe(grid=(2, 5)),
    "oblong patches": Recipe(patch=(4, 2), grid=(3, 3)),
    "one layer": Recipe(depth=1),
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


def load_small(
    path: Path, recipe: Recipe, options: dict[str, Any] | None = None, **others: Any
) -> tuple[Checkpoint, Network]:
    """A checkpoint of `recipe` as slimc understands it, with the arguments its training script would have saved."""
    args = arguments(input_size=list(recipe.image), uniform_search=recipe.zeta == "uniform", **others)
    file = save(path / "small.pth", {"model": state_dict(recipe), "args": args})
    return read_checkpoint(file, recognises), load_network(file, options)


def images_for(recipe: Recipe) -> ir.FloatArray:
    return np.random.default_rng(recipe.seed).standard_normal((3, 3, *recipe.image)).astype(np.float32)


def test_every_kind_of_network_is_that_of_the_definition(tmp_path, recipe):
    _, searched = load_small(tmp_path, recipe)
    state, images = state_dict(recipe), images_for(recipe)
    masks = spec.hard_masks(state, recipe, (0.7, 0.7, 0.7))
    expected = spec.forward(state, recipe, masks, images.astype(np.float64))
    np.testing.assert_allclose(interpret(searched.masked, images), expected, rtol=0, atol=1e-10)
    assert_close(run_torch(searched.pytorch("masked"), images, 3), expected)
    slim = compile_model(searched.masked, passes_for(find_target("generic")))
    assert_close(run_onnx(emitted(slim, batch_size=3), images), expected)


def test_every_kind_of_soft_network_is_that_of_the_definition(tmp_path, recipe):
    checkpoint, _ = load_small(tmp_path, recipe)
    state, images = state_dict(recipe), images_for(recipe)
    weights = Weights(checkpoint.path, checkpoint.state)
    config = vit_slim.read_config(weights, checkpoint.path, checkpoint.args, VitSlimOptions())
    expected = spec.forward(state, recipe, spec.soft_masks(state, recipe), images.astype(np.float64))
    assert_close(run_torch(vit_slim.build_network(checkpoint, config, None), images, 3), expected)


def test_the_dense_network_has_every_mask_at_one(tmp_path, recipe):
    _, searched = load_small(tmp_path, recipe)
    state, images = state_dict(recipe), images_for(recipe)
    ones = [tuple(np.ones_like(mask) for mask in layer) for layer in spec.soft_masks(state, recipe)]
    expected = spec.forward(state, recipe, ones, images.astype(np.float64))  # type: ignore[arg-type]
    np.testing.assert_allclose(interpret(searched.dense, images), expected, rtol=0, atol=1e-10)
    assert_close(run_torch(searched.pytorch("dense"), images, 3), expected)


def test_budgets_of_one_keep_everything(tmp_path):
    _, searched = load_small(tmp_path, Recipe(), {"budget_attn": 1.0, "budget_mlp": 1.0, "budget_patch": 1.0})
    images = images_for(Recipe())
    np.testing.assert_allclose(
        interpret(searched.masked, images), interpret(searched.dense, images), rtol=0, atol=1e-12
    )
    assert searched.settings["budgets"] == {"attn": 1.0, "mlp": 1.0, "patch": 1.0}


def test_the_threshold_follows_the_arithmetic_of_the_released_code():
    values = [np.arange(240, dtype=np.float32)]
    assert threshold(values, 0.9, "--budget-mlp") == 23.0  # (1 - 0.9) * 240 is 23.999...
    assert threshold(values, 0.1, "--budget-mlp") == 216.0
    assert threshold(values, 1.0, "--budget-mlp") == 0.0
    assert threshold(values, 1 / 240, "--budget-mlp") == 239.0


def test_ties_at_the_threshold_are_kept(tmp_path):
    recipe = Recipe(depth=1)
    state = state_dict(recipe)
    state["blocks.0.mlp.zeta"] = torch.tensor([[[0.1] * 4 + [0.5] * 11 + [0.9]]])
    state["blocks.0.attn.patch_zeta"] = torch.tensor([[[3.0]] + [[12.0]] * 3 + [[20.0]] * 6])  # tanh is 1 from 12 on
    file = save(tmp_path / "ties.pth", {"model": state, "args": arguments(mlp=0.5, patch=0.5)})
    searched = load_network(file, {})
    mlp = searched.masked.blocks[0].mlp
    assert isinstance(mlp, ir.Mlp)
    np.testing.assert_array_equal(np.asarray(mlp.mask), [0.0] * 4 + [1.0] * 12)
    np.testing.assert_array_equal(np.asarray(mlp.token_mask), [0.0] + [1.0] * 9)


def test_a_patch_that_a_later_layer_keeps_is_kept_in_all_earlier_ones(tmp_path):
    recipe = Recipe(depth=3)
    state = state_dict(recipe)
    for layer, kept in enumerate(([1, 2], [1, 2, 3], [3])):
        zeta = torch.full((1, 10, 1), -1.0)
        zeta[0, kept] = 1.0
        state[f"blocks.{layer}.attn.patch_zeta"] = zeta
    file = save(tmp_path / "or.pth", {"model": state, "args": arguments(patch=0.2)})
    searched = load_network(file, {})
    attentions = [block.attention for block in searched.masked.blocks]
    found = [np.flatnonzero(a.token_mask).tolist() for a in attentions if isinstance(a, ir.Attention)]  # type: ignore[arg-type]
    assert found == [[1, 2, 3], [1, 2, 3], [3]]


def test_qk_scale_replaces_the_scale_of_the_original_width(tmp_path):
    recipe = Recipe()
    _, searched = load_small(tmp_path, recipe, {"qk_scale": 0.9})
    state, images = state_dict(recipe), images_for(recipe)
    masks = spec.hard_masks(state, recipe, (0.7, 0.7, 0.7))
    expected = spec.forward(state, recipe, masks, images.astype(np.float64), scale=0.9)
    np.testing.assert_allclose(interpret(searched.masked, images), expected, rtol=0, atol=1e-10)
    assert_close(run_torch(searched.pytorch("masked"), images, 3), expected)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(tmp_path, scale):
    with pytest.raises(OptionError, match=r"--qk-scale: .* expected a positive number"):
        load_small(tmp_path, Recipe(), {"qk_scale": scale})


def test_the_grid_is_what_the_user_says_before_what_the_file_says(tmp_path):
    recipe = Recipe(patch=(4, 4), grid=(14, 14), dim=4, heads=2, hidden=4, depth=1)  # 56 x 56 unless told otherwise
    _, square = load_small(tmp_path, recipe)
    assert (square.masked.image, square.masked.grid) == ((56, 56), (14, 14))
    _, wide = load_small(tmp_path, recipe, {"img_size": (28, 112)})
    assert (wide.masked.image, wide.masked.grid) == ((28, 112), (7, 28))
    oblong = Recipe(patch=(4, 4), grid=(7, 28), dim=4, heads=2, hidden=4, depth=1)
    images = images_for(oblong)
    masks = spec.hard_masks(state_dict(recipe), oblong, (0.7, 0.7, 0.7))
    expected = spec.forward(state_dict(recipe), oblong, masks, images.astype(np.float64))
    np.testing.assert_allclose(interpret(wide.masked, images), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(28, 56), (0, 0), (57, 57), (-56, -56)])
def test_an_image_size_with_another_number_of_patches_is_refused(tmp_path, size):
    with pytest.raises(OptionError, match=r"--img-size: .* does not give the 9 patches of 2x2 pixels"):
        load_small(tmp_path, Recipe(), {"img_size": size})


def test_patches_that_make_no_square_need_an_image_size(tmp_path):
    file = save(tmp_path / "grid.pth", {"model": state_dict(Recipe(grid=(2, 5))), "args": arguments()})
    with pytest.raises(OptionError, match="--img-size: 10 patches make no square grid"):
        load_network(file, {})


def test_gradients_reach_zetas_while_soft_and_weights_once_compressed(tmp_path):
    checkpoint, searched = load_small(tmp_path, Recipe())
    images = torch.from_numpy(images_for(Recipe()))
    weights = Weights(checkpoint.path, checkpoint.state)
    config = vit_slim.read_config(weights, checkpoint.path, checkpoint.args, VitSlimOptions())
    soft = vit_slim.build_network(checkpoint, config, None).train()
    soft(images).square().sum().backward()
    assert [name for name, p in soft.named_parameters() if p.grad is None or not p.grad.any()] == []
    hard = searched.pytorch("masked").train()
    hard(images).square().sum().backward()
    idle = {name for name, p in hard.named_parameters() if p.grad is None}
    assert idle == {name for name, _ in hard.named_parameters() if name.endswith("zeta")}
