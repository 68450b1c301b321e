"""What a DynamicViT checkpoint means: the released code's logits and kept sets, and every way to be told the rest."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from slimc.errors import BudgetError, CheckpointError, OptionError
from slimc.files.checkpoint import Checkpoint, read_checkpoint
from slimc.ir import Attention, Mlp, arrays
from slimc.ir.interpret.model import interpret, trace
from slimc.ir.validate import validate
from slimc.models import dynamic_vit
from slimc.models.dynamic_vit_network import DynamicVisionTransformer, DynamicVitConfig, Masked
from slimc.models.dynamic_vit_settings import keep_ratios
from slimc.models.options import DynamicVitOptions
from slimc.models.systems import DynamicVit, VitSlim, recognises
from tests.selecting import (
    VECTORS,
    Vector,
    images_for,
    random_checkpoint,
    random_searched,
    searched_models,
    small_config,
)

PUBLISHED = {
    # family, width, depth: heads, pruning locations, LV-ViT
    ("DeiT", 256, 12): (4, (3, 6, 9)),
    ("DeiT", 384, 12): (6, (3, 6, 9)),
    ("DeiT", 768, 12): (12, (3, 6, 9)),
    ("LV-ViT", 384, 16): (6, (4, 8, 12)),
    ("LV-ViT", 512, 20): (8, (5, 10, 15)),
}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_the_network_gives_the_released_logits_and_keeps_the_same_patches(vector: Vector):
    searched = DynamicVit().load(read_checkpoint(vector.checkpoint, recognises), DynamicVitOptions(**vector.options))
    with torch.inference_mode():
        found = searched.trace(searched.pytorch("masked"), torch.from_numpy(vector.images))
    np.testing.assert_allclose(found.logits.numpy(), vector.logits, rtol=0, atol=2e-6)
    for kept, expected in zip(found.kept, vector.kept, strict=True):
        np.testing.assert_array_equal(np.sort(kept.numpy(), axis=1), expected)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_the_ir_means_the_same(vector: Vector):
    searched = DynamicVit().load(read_checkpoint(vector.checkpoint, recognises), DynamicVitOptions(**vector.options))
    validate(searched.masked)
    found = trace(searched.masked, vector.images)
    np.testing.assert_allclose(found.logits, vector.logits, rtol=0, atol=2e-6)
    for kept, expected in zip(found.kept, vector.kept, strict=True):
        np.testing.assert_array_equal(kept, expected)


@settings(max_examples=15, deadline=None)
@given(searched_models())
def test_network_and_ir_agree_on_random_networks(searched):
    images = images_for(searched)
    with torch.inference_mode():
        for variant, model in (("masked", searched.masked), ("dense", searched.dense)):
            network = searched.pytorch(variant).double()
            logits = network(torch.from_numpy(images).double()).numpy()
            np.testing.assert_allclose(interpret(model, images), logits, rtol=0, atol=1e-9)


def test_the_dense_network_has_no_predictor_and_keeps_every_token():
    searched = random_searched(small_config())
    assert all(block.select is None for block in searched.dense.blocks)
    assert not any("score_predictor" in key for key in searched.pytorch("dense").state_dict())


def test_settings_tell_what_is_in_force():
    searched = DynamicVit().load(
        read_checkpoint(VECTORS[0].checkpoint, recognises), DynamicVitOptions(**VECTORS[0].options)
    )
    assert searched.settings["keep"] == [137, 96, 67]
    assert searched.settings["keep_ratios"] == pytest.approx([0.7, 0.49, 0.343])
    assert searched.settings["pruning_loc"] == [3, 6, 9]
    assert searched.details["family"] == "DeiT"


def meta_checkpoint(family: str, dim: int, depth: int, args: dict[str, object] | None = None) -> Checkpoint:
    """Shapes alone, of a published size: there are no weights behind them."""
    lvvit = family == "LV-ViT"
    config = DynamicVitConfig(
        image=(224, 224), patch=(16, 16), dim=dim, depth=depth, heads=1, hidden=(3 * dim,) * depth, classes=10,
        pruning_loc=(1, 2, 3), keep=(9, 9, 9), stem=((64, 7), (64, 3), (64, 3)) if lvvit else (), auxiliary=lvvit,
    )  # fmt: skip
    with torch.device("meta"):
        state = DynamicVisionTransformer(config).state_dict()
    return dataclasses.replace(random_checkpoint(small_config()), state=state, args=args or {})


@pytest.mark.parametrize(("shape", "expected"), PUBLISHED.items(), ids=str)
def test_published_sizes_need_only_the_keep_rate(shape, expected):
    from slimc.models.weights import Weights

    family, dim, depth = shape
    checkpoint = meta_checkpoint(family, dim, depth, {"base_rate": 0.9})
    weights = Weights(checkpoint.path, checkpoint.state)
    shapes = dynamic_vit.read_shapes(weights, checkpoint)
    ratios = keep_ratios(shapes, checkpoint.args, DynamicVitOptions())
    config = dynamic_vit.read_config(weights, shapes, ratios, checkpoint.args, DynamicVitOptions())
    assert (config.heads, config.pruning_loc) == expected
    assert config.keep == (int(196 * 0.9), int(196 * 0.9**2), int(196 * 0.9**3))
    assert config.skip_lam == (2.0 if shape[0] == "LV-ViT" else 1.0)
    assert config.eps == (1e-5 if shape[0] == "LV-ViT" else 1e-6)
    assert config.image == (224, 224)


def load_with(**options: object) -> None:
    base: dict[str, object] = {"num_heads": 2, "pruning_loc": (1, 2), "keep_rate": 0.6}
    system = DynamicVit()
    system.load(random_checkpoint(small_config()), system.read_options(base | options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_rate": None}, BudgetError, "no keep rate; give --keep-rate"),
        ({"keep_rate": 1.5}, BudgetError, "--keep-rate: 1.5 is not a keep rate"),
        ({"keep_rate": 0.0}, BudgetError, "--keep-rate: 0.0 is not a keep rate"),
        ({"keep_rate": float("nan")}, BudgetError, "--keep-rate: nan is not a keep rate"),
        ({"keep_rate": 0.05}, BudgetError, "--keep-rate: 0.05 of 12 patches keeps none"),
        ({"keep_rate": None, "keep_ratios": (0.5,)}, BudgetError, "--keep-ratios: 0.5; expected 2, one for each"),
        ({"keep_rate": None, "keep_ratios": (0.5, -0.1)}, BudgetError, "--keep-ratios: -0.1 is not a keep rate"),
        ({"keep_ratios": (0.5, 0.2)}, OptionError, "contradicts --keep-rate"),
        ({"pruning_loc": None}, OptionError, "--pruning-loc: .*nothing tells where the 2 predictors"),
        ({"pruning_loc": (1, 3)}, OptionError, "--pruning-loc: 1,3 are not blocks; expected numbers from 0 to 2"),
        ({"pruning_loc": (-1, 1)}, OptionError, "--pruning-loc: -1,1 are not blocks"),
        ({"pruning_loc": (2, 1)}, OptionError, "--pruning-loc: 2,1; expected 2 ascending numbers"),
        ({"pruning_loc": (1, 1)}, OptionError, "expected 2 ascending"),
        ({"pruning_loc": (1,)}, OptionError, "expected 2 ascending"),
        ({"num_heads": None}, OptionError, "--num-heads: .*DeiT of width 16 and depth 3, which is none of the published"),
        ({"num_heads": 3}, OptionError, "--num-heads: 3 does not divide the width 16"),
        ({"num_heads": 0}, OptionError, "--num-heads: 0 does not divide"),
        ({"skip_lam": 2.0}, OptionError, "--skip-lam: .*DeiT-based"),
        ({"budget_attn": 0.5}, OptionError, "--budget-attn: DynamicViT checkpoints have no such setting"),
        ({"qk_scale": 0.5}, OptionError, "--qk-scale: DynamicViT checkpoints have no such setting"),
        ({"img_size": (8, 8)}, OptionError, "--img-size: 8 8 does not give the 12 patches"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error_that_names_the_option(options, error, message):
    with pytest.raises(error, match=message):
        load_with(**options)


@pytest.mark.parametrize("skip_lam", [0.0, -1.0, float("inf")])
def test_a_divisor_must_divide(skip_lam):
    checkpoint = random_checkpoint(small_config(lvvit=True))
    options = DynamicVitOptions(num_heads=2, pruning_loc=(1, 2), keep_rate=0.6, skip_lam=skip_lam)
    with pytest.raises(OptionError, match="--skip-lam"):
        DynamicVit().load(checkpoint, options)


def test_pruning_locations_and_rates_in_the_training_arguments_are_used_and_checked():
    checkpoint = random_checkpoint(small_config())
    told = dataclasses.replace(checkpoint, args={**checkpoint.args, "pruning_loc": [0, 2], "base_rate": 0.6})
    assert DynamicVit().load(told, DynamicVitOptions(num_heads=2)).settings["pruning_loc"] == [0, 2]
    wrong = dataclasses.replace(checkpoint, args={**told.args, "pruning_loc": "1,2"})
    with pytest.raises(OptionError, match=r"args.pruning_loc: '1,2' are not blocks"):
        DynamicVit().load(wrong, DynamicVitOptions(num_heads=2))
    bad = dataclasses.replace(checkpoint, args={**told.args, "base_rate": "high"})
    with pytest.raises(BudgetError, match=r"args.base_rate: 'high' is not a keep rate"):
        DynamicVit().load(bad, DynamicVitOptions(num_heads=2))


@pytest.mark.parametrize(
    ("key", "replacement", "message"),
    [
        ("score_predictor.1.out_conv.4.weight", torch.zeros(3, 4), "score_predictor.1.out_conv.4.weight has the shape"),
        ("score_predictor.0.in_conv.1.bias", None, "no score_predictor.0.in_conv.1.bias"),
        ("blocks.1.attn.proj.bias", torch.full((16,), torch.nan), "NaN or Inf"),
        ("dist_token", torch.zeros(1, 1, 16), "unexpected dist_token"),
    ],
)
def test_a_state_dict_of_another_network_is_refused(key, replacement, message):
    checkpoint = random_checkpoint(small_config())
    state = dict(checkpoint.state) | {key: replacement}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        DynamicVit().load(
            dataclasses.replace(checkpoint, state=state),
            DynamicVitOptions(num_heads=2, pruning_loc=(1, 2), keep_rate=0.6),
        )


MUTATIONS = {
    "a scalar": lambda t: torch.ones((), dtype=t.dtype),
    "flat": lambda t: t.reshape(-1) if t.ndim > 1 else t[None],
    "one more axis": lambda t: t[None],
    "empty": lambda t: t[..., :0] if t.ndim else t[None][:0],
    "longer": lambda t: torch.cat([t, t]) if t.ndim else torch.stack([t, t]),
    "integers": lambda t: t.to(torch.int32),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("lvvit", [False, True])
def test_a_weight_of_any_other_shape_or_type_is_a_clean_error(lvvit: bool, mutation: str):
    checkpoint = random_checkpoint(small_config(lvvit=lvvit))
    options = DynamicVitOptions(num_heads=2, pruning_loc=(1, 2), keep_rate=0.6)
    for key, tensor in checkpoint.state.items():
        if not key.endswith("num_batches_tracked"):
            state = {**checkpoint.state, key: MUTATIONS[mutation](tensor)}
            with pytest.raises((CheckpointError, OptionError)):
                DynamicVit().load(dataclasses.replace(checkpoint, state=state), options)


def test_options_of_dynamic_vit_are_refused_by_vit_slim():
    with pytest.raises(OptionError, match="--keep-rate: ViT-Slim"):
        VitSlim().read_options({"keep_rate": 0.5})


def test_a_stage_that_would_keep_more_than_are_left_keeps_them_all():
    wide = random_searched(small_config(keep=(5, 9)))
    assert [block.select is None for block in wide.masked.blocks] == [True, False, True]
    images = images_for(wide)
    network = wide.pytorch("masked")
    assert isinstance(network, DynamicVisionTransformer)
    kept = network.select(torch.from_numpy(images)).kept
    assert [stage.shape[1] for stage in kept] == [5]


def test_lvvit_divides_both_branches_and_has_no_qkv_bias():
    model = random_searched(small_config(lvvit=True)).masked
    for block in model.blocks:
        assert isinstance(block.attention, Attention)
        assert isinstance(block.mlp, Mlp)
        assert block.attention.residual_scale == block.mlp.residual_scale == 1 / 2.5
        assert all(head.query.bias is None and head.key.bias is None for head in block.attention.heads)


def test_the_ir_shares_memory_with_the_checkpoint():
    checkpoint = random_checkpoint(small_config())
    model = DynamicVit().load(checkpoint, DynamicVitOptions(num_heads=2, pruning_loc=(1, 2), keep_rate=0.6)).masked
    weights = {tensor.untyped_storage().data_ptr() for tensor in checkpoint.state.values()}
    bases = [array if array.base is None else array.base for array in arrays(model)]
    shared = sum(np.asarray(base).ctypes.data in weights for base in bases)
    assert shared / len(bases) > 0.9


class TestTraining:
    """The differentiable network: nothing leaves, decisions hide."""

    def test_hiding_is_dropping_for_the_tokens_that_are_kept(self):
        config = small_config()
        network = random_searched(config).pytorch("masked").double()
        assert isinstance(network, DynamicVisionTransformer)
        images = torch.randn(3, 3, *config.image, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def best(logits: torch.Tensor, stage: int) -> torch.Tensor:
            score = logits[..., 0] - logits[..., 1]
            hidden = torch.ones_like(score) if not masks else masks[-1]
            score = score.masked_fill(hidden == 0, -torch.inf)
            chosen = score.argsort(dim=1, descending=True, stable=True)[:, : config.keep[stage]]
            masks.append(torch.zeros_like(score).scatter(1, chosen, 1.0))
            return masks[-1]

        masks: list[torch.Tensor] = []
        with torch.inference_mode():
            masked, selected = network.mask(images, best), network.select(images)
        torch.testing.assert_close(masked.logits, selected.logits, rtol=0, atol=1e-10)
        for decision, kept in zip(masked.decisions, selected.kept, strict=True):
            assert torch.equal(decision.nonzero()[:, 1].reshape(3, -1), kept.sort(1).values)

    @pytest.mark.parametrize("lvvit", [False, True])
    def test_gradients_reach_every_parameter_that_decides(self, lvvit):
        config = small_config(lvvit=lvvit)
        torch.manual_seed(0)
        network = random_searched(config).pytorch("masked").train()
        output = network(torch.randn(4, 3, *config.image))
        assert isinstance(output, Masked)
        assert (output.auxiliary is not None) == lvvit
        loss = output.logits.square().sum() + sum(decision.mean() for decision in output.decisions)
        loss.backward()
        for name, parameter in network.named_parameters():
            if "aux_head" not in name:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().sum() > 0, name

    def test_decisions_are_hard_and_never_come_back(self):
        config = small_config(keep=(6, 3))
        torch.manual_seed(0)
        network = random_searched(config).pytorch("masked").train()
        output = network(torch.randn(8, 3, *config.image))
        first, second = output.decisions
        assert set(first.unique().tolist()) <= {0.0, 1.0}
        assert (second <= first).all()
        assert 0 < second.mean() < first.mean() < 1

    def test_a_hidden_key_that_dwarfs_the_visible_ones_leaves_finite_numbers(self):
        from slimc.models.dynamic_vit_network import _weighted_attention

        q = torch.ones(1, 1, 3, 4) * 50
        k = (
            torch.stack([torch.zeros(3), torch.ones(3), torch.zeros(3)])
            .repeat_interleave(2, 1)[:, :4]
            .reshape(1, 1, 3, 4)
        )
        v = torch.randn(1, 1, 3, 4)
        kept = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
        mixed = _weighted_attention(q, k, v, kept)
        mixed.sum().backward()
        assert kept.grad is not None
        assert mixed.isfinite().all()
        assert kept.grad.isfinite().all()
