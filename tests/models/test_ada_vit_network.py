from dataclasses import replace

import pytest
import torch

from slimc.models.ada_vit_network import AdaptiveVisionTransformer, Policy, visible
from tests.gated import SMALL, images_for, random_adaptive


@pytest.mark.parametrize("head_effect", ["plain", "v2", "attn"])
def test_in_training_mode_gradients_reach_every_weight(head_effect):
    torch.manual_seed(0)
    network = AdaptiveVisionTransformer(replace(SMALL, head_effect=head_effect, norm_policy=True)).train()
    logits, decisions = network.run(torch.randn(8, 3, 32, 32))
    shares = sum(block.branches.mean() + block.heads.mean() + block.tokens.mean() for block in decisions)
    (logits.square().mean() + shares).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_training_decisions_are_hard_random_and_carry_the_gradient_of_soft_ones():
    policy = Policy(4, 1, threshold=0.6).train()
    x = torch.randn(4000, 4)
    torch.manual_seed(1)
    decided, _ = policy(x)
    again, _ = policy(x)
    assert (torch.isclose(decided, torch.zeros(1), atol=1e-6) | torch.isclose(decided, torch.ones(1), atol=1e-6)).all()
    assert not torch.equal(decided > 0.5, again > 0.5)
    decided.sum().backward()
    assert policy.mlp_head.bias.grad is not None
    # The slope of sigmoid((logit + noise) / 5) is at most 1 / 20.
    assert 0 < float(policy.mlp_head.bias.grad) <= len(x) / 20


def test_the_gumbel_noise_is_logistic_so_that_a_logit_decides_with_its_own_probability():
    policy = Policy(1, 1).train()
    with torch.no_grad():
        policy.mlp_head.weight.fill_(1.0)
        policy.mlp_head.bias.zero_()
        torch.manual_seed(0)
        for logit in (-1.0, 0.0, 2.0):
            decided, _ = policy(torch.full((20000, 1), logit))
            assert float((decided > 0.5).float().mean()) == pytest.approx(
                torch.sigmoid(torch.tensor(logit)).item(), abs=0.015
            )


def test_in_eval_mode_decisions_compare_strictly_at_the_threshold():
    policy = Policy(1, 1, threshold=0.6, bias=False).eval()
    with torch.no_grad():
        policy.mlp_head.weight.fill_(1.0)
        edge = policy.logit_threshold
        decided, distance = policy(torch.tensor([[edge - 1e-3], [edge + 1e-3], [0.2]]))
    assert edge == pytest.approx(0.405465)
    assert decided[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert distance[2].item() == pytest.approx(edge - 0.2, abs=1e-6)


def test_a_token_that_is_off_sees_itself_and_is_seen_by_nobody():
    seen = visible(torch.tensor([[1.0, 0.0, 1.0]]))[0]
    assert seen.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_the_network_is_deterministic_in_eval_mode_and_not_in_training_mode():
    searched = random_adaptive()
    images = torch.from_numpy(images_for(searched))
    network = searched.pytorch("masked")
    with torch.inference_mode():
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))
