from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimc.compiler.load import load_network
from slimc.errors import CheckpointError, OptionError
from slimc.files.checkpoint import read_checkpoint
from slimc.ir import Attention
from slimc.ir.interpret.model import interpret, trace
from slimc.ir.validate import validate
from slimc.models.ada_vit_flags import UNSUPPORTED
from slimc.models.options import AdaVitOptions
from slimc.models.systems import AdaVit, recognises
from tests.gated import DATA, SMALL, VECTORS, images_for, observe, random_adaptive, random_checkpoint, vector


@pytest.mark.parametrize("name", VECTORS)
def test_the_network_computes_and_decides_what_the_released_code_does(name):
    released = vector(name)
    logits, usage = observe(released.searched, released.images)
    np.testing.assert_allclose(logits, released.io["logits"], rtol=0, atol=2e-6)
    heads = np.stack([block.heads for block in usage.blocks[1:]], axis=1)
    branches = np.stack([np.stack([block.attention, block.mlp], axis=1) for block in usage.blocks[1:]], axis=1)
    assert np.array_equal(heads, released.io["head_select"] > 0)
    assert np.array_equal(branches, released.io["layer_select"] > 0)
    if "token_select" in released.io:
        tokens = np.stack([block.tokens for block in usage.blocks], axis=1)
        assert np.array_equal(tokens, released.io["token_select"] > 0)


@pytest.mark.parametrize("name", VECTORS)
def test_the_ir_means_what_the_released_code_computes(name):
    released = vector(name)
    validate(released.searched.masked)
    found = trace(released.searched.masked, released.images)
    np.testing.assert_allclose(found.logits, released.io["logits"], rtol=0, atol=2e-6)
    heads = np.stack([decided.heads for decided in found.decisions[1:]], axis=1)
    assert np.array_equal(heads, released.io["head_select"])
    if "token_select" in released.io:
        tokens = np.stack([decided.tokens for decided in found.decisions], axis=1)
        assert np.array_equal(tokens, released.io["token_select"])


def test_without_ema_the_other_weights_are_taken():
    released = vector(VECTORS[0])
    searched = load_network(released.checkpoint, ema=False)
    np.testing.assert_allclose(
        observe(searched, released.images)[0], released.io["logits_of_state_dict"], rtol=0, atol=2e-6
    )
    assert (released.searched.settings["ema"], searched.settings["ema"]) == (True, False)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    head_effect=st.sampled_from(["plain", "v2", "attn"]),
    flags=st.fixed_dictionaries({
        "norm_policy": st.booleans(),
        "heads_from": st.sampled_from([None, 0, 2]),
        "branches_from": st.sampled_from([None, 1]),
        "tokens_with_mlp": st.booleans(),
        "qkv_bias": st.booleans(),
        "heads_bias": st.booleans(),
        "hidden": st.sampled_from([(32,) * 3, (48,) * 3]),
    }),
)  # fmt: skip
def test_network_and_ir_agree_under_every_flag(seed, head_effect, flags):
    if flags["heads_from"] is None:
        head_effect = "plain"
    if flags["heads_from"] is None and flags["branches_from"] is None:
        flags = {**flags, "norm_policy": False}
    searched = random_adaptive(seed, head_effect=head_effect, **flags)
    validate(searched.masked)
    images = images_for(searched, 2, seed)
    logits, usage = observe(searched, images)
    found = trace(searched.masked, images)
    clear = usage.margin > 1e-5
    np.testing.assert_allclose(found.logits[clear], logits[clear], rtol=0, atol=1e-4 * max(1.0, np.abs(logits).max()))
    tokens = np.stack([decided.tokens for decided in found.decisions], axis=1)
    assert np.array_equal(tokens[clear] > 0, np.stack([block.tokens for block in usage.blocks], axis=1)[clear])


def test_a_block_that_decides_nothing_may_hold_the_norm_of_its_policy():
    checkpoint = random_checkpoint(replace(SMALL, norm_policy=True, heads_from=1, branches_from=1))
    assert "blocks.0.norm_policy.weight" not in checkpoint.state
    extra = {f"blocks.0.norm_policy.{kind}": torch.ones(SMALL.dim) for kind in ("weight", "bias")}
    images = images_for(AdaVit().load(checkpoint, AdaVitOptions()), 2)
    longer = replace(checkpoint, state={**checkpoint.state, **extra})
    without, with_norm = (observe(AdaVit().load(file, AdaVitOptions()), images)[0] for file in (checkpoint, longer))
    assert np.array_equal(without, with_norm)


def test_dense_has_every_gate_at_one():
    searched = random_adaptive(3)
    images = images_for(searched)
    with torch.inference_mode():
        dense = searched.pytorch("dense")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(interpret(searched.dense, images), dense, rtol=0, atol=1e-4)
    assert np.abs(dense - interpret(searched.masked, images)).max() > 0.01
    assert all(block.gates is None for block in searched.dense.blocks)


@pytest.mark.parametrize("flag", sorted(UNSUPPORTED))
def test_a_flag_that_evaluation_does_not_define_is_refused_by_name(flag):
    checkpoint = random_checkpoint()
    args: dict[str, Any] = {**checkpoint.args, flag: not UNSUPPORTED[flag]}
    with pytest.raises(CheckpointError, match=f"--{flag.replace('_', '-')}.*expected {UNSUPPORTED[flag]}"):
        AdaVit().load(replace(checkpoint, args=args), AdaVitOptions())


def test_a_file_without_arguments_needs_options_and_then_is_the_same_network():
    released = vector(VECTORS[1])
    bare = replace(read_checkpoint(released.checkpoint, recognises), args={})
    with pytest.raises(OptionError, match=r"--ada-head: .* plain, v2 or attn"):
        AdaVit().load(bare, AdaVitOptions())
    with pytest.raises(OptionError, match="--ada-token-with-mlp"):
        AdaVit().load(bare, AdaVitOptions(ada_head="plain"))
    searched = AdaVit().load(bare, AdaVitOptions(ada_head="plain", ada_token_with_mlp=True))
    np.testing.assert_allclose(observe(searched, released.images)[0], released.io["logits"], rtol=0, atol=2e-6)


def test_the_number_of_heads_comes_from_the_policy_or_the_option():
    checkpoint = random_checkpoint(replace(SMALL, heads_from=None))
    with pytest.raises(OptionError, match=r"--num-heads: .* no head policy"):
        AdaVit().load(checkpoint, AdaVitOptions())
    with pytest.raises(OptionError, match="--num-heads: 3 heads do not divide"):
        AdaVit().load(checkpoint, AdaVitOptions(num_heads=3))
    attention = AdaVit().load(checkpoint, AdaVitOptions(num_heads=8)).masked.blocks[0].attention
    assert isinstance(attention, Attention)
    assert len(attention.heads) == 8
    with pytest.raises(OptionError, match="--num-heads: 2 contradicts"):
        AdaVit().load(random_checkpoint(), AdaVitOptions(num_heads=2))


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"ada_head": False}, "args.ada_head is False, but the state dict has"),
        ({"keep_layers": 2}, r"args.keep_layers is 2, but blocks.1 is the first"),
        ({"norm_policy": True}, "args.norm_policy is True, but the state dict has no"),
        ({"ada_head_v2": True, "ada_head_attn": True}, "both set"),
    ],
)
def test_arguments_that_contradict_the_weights_are_refused(args, match):
    checkpoint = random_checkpoint()
    with pytest.raises(CheckpointError, match=match):
        AdaVit().load(replace(checkpoint, args={**checkpoint.args, **args}), AdaVitOptions())


def test_options_that_contradict_the_arguments_are_refused():
    with pytest.raises(OptionError, match="--ada-head: v2 contradicts"):
        AdaVit().load(random_checkpoint(), AdaVitOptions(ada_head="v2"))
    with pytest.raises(OptionError, match="--ada-token-with-mlp: contradicts"):
        AdaVit().load(random_checkpoint(), AdaVitOptions(ada_token_with_mlp=False))
    with pytest.raises(OptionError, match="--qk-scale: AdaViT"):
        AdaVit().read_options({"qk_scale": 1.0})


def test_a_block_without_the_policy_that_its_predecessors_have_is_refused():
    checkpoint = random_checkpoint()
    state = {key: value for key, value in checkpoint.state.items() if not key.startswith("blocks.2.head_select")}
    with pytest.raises(CheckpointError, match=r"blocks.1 has head_select, but the later blocks.2 has not"):
        AdaVit().load(replace(checkpoint, state=state), AdaVitOptions())


def test_the_vectors_lie_in_the_tests():
    assert all((DATA / name / "checkpoint.pth").is_file() for name in VECTORS)
