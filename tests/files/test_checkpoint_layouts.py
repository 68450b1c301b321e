"""Weights and arguments are found where training scripts put them, and nothing is taken for what it is not."""

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import prune

from slimc import ir
from slimc.compiler.load import load_network
from slimc.errors import CheckpointError, OptionError
from slimc.files.checkpoint import Checkpoint, choose_weights, read_checkpoint
from slimc.ir.interpret.model import interpret
from slimc.models.systems import recognises
from tests import vectors
from tests.checkpoints import Recipe, State, arguments, save, state_dict
from tests.networks import images_for

STATE, OTHER = state_dict(), state_dict(Recipe(seed=1))
DENSE = {key: value for key, value in OTHER.items() if "zeta" not in key}


def behind(prefix: str, state: State = STATE) -> State:
    return {prefix + key: value for key, value in state.items()}


def read(path: Path, content: object, **options: Any) -> Checkpoint:
    return read_checkpoint(save(path / "c.pth", content), recognises, **options)


def assert_is(state: Any, expected: State) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


PREFIXES = (
    *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_forward_module.", "model.", "backbone."),
    *("module.model.", "net.module._orig_mod.", "a.b.c.d.e.", "student.encoder.", "0."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_behind_any_prefix(tmp_path, prefix):
    checkpoint = read(tmp_path, {"model": behind(prefix), "args": arguments()})
    assert_is(checkpoint.state, STATE)
    assert checkpoint.warnings == ()
    # What torch.compile puts in is no part of the name.
    names = [part for part in prefix.split(".") if part and part != "_orig_mod"]
    assert checkpoint.state_key == ".".join(["model", *names])


@pytest.mark.parametrize("system", ["dynamicvit-a-deit-0.7", "adavit-a-head-layer"])
def test_weights_of_every_system_behind_a_prefix(tmp_path, system):
    content = torch.load(vectors.DATA / system / "checkpoint.pth", weights_only=False)
    key = "model" if "model" in content else "state_dict"
    wrapped = read(tmp_path, {"net": behind("model.module.", content[key])})
    assert_is(wrapped.state, content[key])


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_blocks_that_were_wrapped_one_by_one(tmp_path, wrapper):
    state = {key.replace("blocks.0.", f"blocks.0.{wrapper}."): value for key, value in STATE.items()}
    assert_is(read(tmp_path, state).state, STATE)


KEYS: dict[str, tuple[dict[Any, Any], str]] = {
    key: ({key: STATE}, key)
    for key in ("model", "state_dict", "module", "model_state_dict", "model_state", "net", "teacher", "weights", "best")
} | {
    "nested": ({"checkpoint": {"states": {"model": STATE}}}, "checkpoint.states.model"),
    "in a list": ({"nets": [None, STATE]}, "nets.1"),
    "an epoch": ({12: STATE}, "12"),
    "beside a configuration": ({"model": {"type": "vit", "depth": 4}, "state_dict": STATE}, "state_dict"),
    "beside a name": ({"model": "deit_small", "net": STATE}, "net"),
    "beside a dense teacher": ({"student": STATE, "teacher": DENSE}, "student"),
    "twice": ({"model": STATE, "state_dict": dict(STATE)}, "model"),
    "with an optimizer's averages": ({"model": STATE, "optimizer": {"exp_avg": OTHER}}, "model"),
    "with gradients": ({"model": STATE, "grads": OTHER}, "model"),
    "with masks": ({"model": STATE, "masks": {k: v > 0 for k, v in STATE.items() if "zeta" in k}}, "model"),
    "in an object": ({"saved": types.SimpleNamespace(model=STATE)}, "saved.model"),
}


@pytest.mark.parametrize("layout", KEYS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_weights_under_any_key(tmp_path, layout, legacy):
    content, key = KEYS[layout]
    checkpoint = read_checkpoint(save(tmp_path / "c.pth", content, legacy=legacy), recognises)
    assert_is(checkpoint.state, STATE)
    assert (checkpoint.state_key, checkpoint.ema, checkpoint.averaged) == (key, False, None)


def test_a_list_with_a_state_dict_in_it(tmp_path):
    assert read(tmp_path, (STATE, 3)).state_key == "0"


def test_other_weights_beside_the_network_are_left_out_and_told(tmp_path):
    content = {"state_dict": behind("model.") | behind("criterion.teacher.", DENSE) | {"scale": torch.ones(1)}}
    checkpoint = read(tmp_path, content | {"args": arguments()})
    assert_is(checkpoint.state, STATE)
    warning = load_network(checkpoint.path).warnings[0]
    assert f"took the weights under state_dict.model; left out {len(DENSE) + 1} beside them" in warning
    assert "criterion.teacher.cls_token" in warning


AVERAGED = {
    "model_ema": {"model": STATE, "model_ema": OTHER},
    "state_dict_ema": {"state_dict": STATE, "state_dict_ema": behind("module.", OTHER)},
    "ema first": {"ema": OTHER, "model": STATE},
    "nested": {"model": STATE, "ema": {"decay": 0.99, "model": behind("module.", OTHER)}},
    "EMA": {"net": STATE, "EMA_weights": OTHER},
    "ModelEma": {"net": STATE, "ModelEmaV2": OTHER},
    "shadow": {"model": STATE, "shadow": OTHER},
    "swa": {"model": STATE, "swa_model": behind("module.", OTHER) | {"n_averaged": torch.tensor(3)}},
    "in one mapping": {"state_dict": behind("model.") | behind("model_ema.module.", OTHER)},
    "beside bare weights": STATE | behind("ema.", OTHER),
}


@pytest.mark.parametrize("layout", AVERAGED)
def test_averaged_weights_under_any_name(tmp_path, layout):
    checkpoint = read(tmp_path, AVERAGED[layout])
    assert_is(choose_weights(checkpoint, ema=None, averaged=False).state, STATE)
    chosen = choose_weights(checkpoint, ema=True, averaged=False)
    assert_is(chosen.state, OTHER)
    assert chosen.ema
    assert chosen.state_key == checkpoint.averaged_key


def test_names_that_only_look_like_averages(tmp_path):
    assert read(tmp_path, {"schema": STATE}).ema is False
    assert read(tmp_path, {"remainder_ema": STATE}).ema is True


def test_a_file_with_nothing_but_averaged_weights(tmp_path):
    checkpoint = read(tmp_path, {"model_ema": OTHER, "args": arguments()})
    assert_is(choose_weights(checkpoint, ema=None, averaged=False).state, OTHER)
    assert choose_weights(checkpoint, ema=True, averaged=False).ema
    with pytest.raises(OptionError, match=r"--no-ema: the weights that .*c.pth has under model_ema are averaged ones"):
        load_network(checkpoint.path, ema=False)


AMBIGUOUS = {
    "mappings": ({"model": STATE, "best": OTHER}, ("model", "best")),
    "prefixes": ({"net": behind("student.") | behind("teacher.", OTHER)}, ("net.student", "net.teacher")),
    "nested prefixes": (STATE | behind("teacher.", OTHER), (".", "teacher")),
}


@pytest.mark.parametrize("layout", AMBIGUOUS)
def test_several_networks_are_an_error_until_one_is_chosen(tmp_path, layout):
    content, (first, second) = AMBIGUOUS[layout]
    with pytest.raises(CheckpointError, match="has the weights of several networks, under ") as caught:
        read(tmp_path, content)
    assert f"under {first}, {second}; expected one: choose with --state-key {first}" in str(caught.value)
    assert_is(read(tmp_path, content, state_key=first).state, STATE)
    assert_is(read(tmp_path, content, state_key=second).state, OTHER)


def test_the_chosen_weights_are_taken_as_they_are(tmp_path):
    content = {"model": behind("module.") | behind("teacher.", DENSE), "model_ema": OTHER, "args": arguments()}
    assert_is(read(tmp_path, content, state_key="model").state, STATE)
    assert_is(read(tmp_path, content, state_key="model.module").state, STATE)
    assert_is(read(tmp_path, content, state_key="model.teacher").state, DENSE)
    averaged = read(tmp_path, content, state_key="model_ema")
    assert_is(averaged.state, OTHER)
    assert averaged.ema
    path = averaged.path
    assert len(load_network(path, {"state_key": "model.module"}).masked.blocks) == 2
    with pytest.raises(OptionError, match=r"no averaged weights beside model.module"):
        load_network(path, {"state_key": "model"}, ema=True)
    with pytest.raises(CheckpointError, match="not the weights of this network"):
        load_network(path, {"state_key": "model.teacher"})


def test_a_choice_of_nothing_lists_what_there_is(tmp_path):
    content = {"model": STATE, "model_ema": OTHER, "head": {"weight": torch.ones(2)}}
    with pytest.raises(
        OptionError, match=r"--state-key: .*c.pth has no weights under nett; it has model, model_ema, head"
    ):
        read(tmp_path, content, state_key="nett")


def test_counters_of_profilers_are_no_weights(tmp_path):
    counters = {f"{name}{kind}": torch.zeros(1) for name in ("", "blocks.0.") for kind in ("total_ops", "total_params")}
    assert_is(read(tmp_path, STATE | counters).state, STATE)


def test_weights_that_torch_pruned_are_folded(tmp_path):
    linear = torch.nn.Linear(16, 12)
    prune.l1_unstructured(linear, "weight", amount=0.5)
    prune.random_unstructured(linear, "bias", amount=0.5)
    split = {f"blocks.0.mlp.fc2.{key}": value for key, value in linear.state_dict().items()}
    assert sorted(split)[0].endswith("bias_mask")
    state = {key: value for key, value in STATE.items() if not key.startswith("blocks.0.mlp.fc2.")}
    whole = {"blocks.0.mlp.fc2.weight": linear.weight.detach(), "blocks.0.mlp.fc2.bias": linear.bias.detach()}
    assert_is(read(tmp_path, {"model": behind("module.", state | split)}).state, state | whole)


def test_masks_of_another_shape_are_an_error(tmp_path):
    state = STATE | {"head.weight_orig": torch.ones(5, 12), "head.weight_mask": torch.ones(5, 1)}
    del state["head.weight"]
    with pytest.raises(CheckpointError, match=r"head.weight_orig has the shape \[5, 12\], its mask \[5, 1\]"):
        read(tmp_path, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_weights_of_any_precision_compute_what_they_say(tmp_path, dtype, container):
    state, path = {key: value.to(dtype) for key, value in STATE.items()}, tmp_path / "c.pth"
    budgets = {f"budget_{kind}": 0.7 for kind in ("attn", "mlp", "patch")}
    if container == "safetensors":
        save_file(state, path)
    else:
        save(path, state, legacy=container == "legacy")
    wide = save(tmp_path / "wide.pth", {key: value.float() for key, value in state.items()})
    assert_same(logits(path, budgets), logits(wide, budgets))


def logits(path: Path, options: dict[str, float]) -> ir.FloatArray:
    network = load_network(path, options).masked
    return interpret(network, images_for(network))


def assert_same(found: ir.FloatArray, expected: ir.FloatArray) -> None:
    np.testing.assert_array_equal(found, expected)


def test_weights_as_numpy_arrays(tmp_path):
    arrays = {key: value.numpy() for key, value in STATE.items()}
    assert_is(read(tmp_path, {"model": arrays}).state, STATE)


def test_weights_that_share_memory_or_are_views(tmp_path):
    whole = torch.randn(4, 5, 12)
    state = STATE | {"head.weight": whole[2], "norm.weight": whole[1, 3], "cls_token": whole.transpose(0, 2)[:, :1, :1]}
    for legacy in (False, True):
        path = save(tmp_path / "c.pth", {"model": state}, legacy=legacy)
        assert_is(read_checkpoint(path, recognises).state, state)


def test_weights_that_are_no_plain_tensors_are_named(tmp_path):
    content = {"model": STATE | {"head.weight": torch.ones(5, 12).to_sparse()}}
    with pytest.raises(CheckpointError, match=r"head.weight is made by torch._utils._rebuild_sparse_tensor; expected"):
        read(tmp_path, content)
