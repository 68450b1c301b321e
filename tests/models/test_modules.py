"""Our torch modules are timm's: the same state dict gives the same logits."""

import warnings

import pytest
import torch

from slimc.models.vit_slim_network import MaskedBlock, MaskedVisionTransformer, VitSlimConfig

CONFIG = VitSlimConfig(
    image=(12, 16), patch=(4, 4), dim=24, depth=3, heads=4, zeta=(4, 6), hidden=(96,) * 3, classes=7, scale=6**-0.5
)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    with warnings.catch_warnings():
        # timm imports torchvision, whose deprecations are not ours.
        warnings.simplefilter("ignore")
        from timm.models.vision_transformer import VisionTransformer
    torch.manual_seed(0)
    network: torch.nn.Module = VisionTransformer(
        img_size=(12, 16), patch_size=4, embed_dim=24, depth=3, num_heads=4, num_classes=7
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return network.eval()


def test_the_dense_network_is_timms_vision_transformer(theirs):
    ours = MaskedVisionTransformer(CONFIG).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.endswith("zeta") for name in missing)
    for block in ours.blocks:
        assert isinstance(block, MaskedBlock)
        block.attn.patch_mask = torch.ones(1, CONFIG.tokens, 1)
    images = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
