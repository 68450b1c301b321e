"""What a slim file says of its network, and what becomes of it in PyTorch."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from slimc.compiler.load import load_network
from slimc.errors import CheckpointError, MissingError, OptionError
from slimc.files.slim import read_slim
from slimc.models import slim_file
from tests import selecting
from tests.compiler.test_export_slim import original, written


def test_it_says_what_the_checkpoint_said(tmp_path):
    network = original("vitslim-c-headsearch")
    small = load_network(written(network, tmp_path))
    for field in ("system", "sha256", "preprocessing", "settings", "details"):
        assert getattr(small, field) == getattr(network, field), field
    assert small.variants == ("slim",)
    assert small.warnings == ()


def test_options_about_images_apply_and_others_do_not(tmp_path):
    path = written(original("vitslim-a-channel-0.7"), tmp_path)
    small = load_network(path, {"crop_pct": 0.5, "mean": None})
    assert small.preprocessing.crop_pct == 0.5
    assert small.warnings == (f"{path}: --crop-pct overrides what the file says, 0.875",)
    for options, said in (
        ({"budget": 0.5}, "--budget"),
        ({"num_heads": 3}, "--num-heads"),
        ({"masks": "m"}, "--masks"),
    ):
        with pytest.raises(OptionError, match=f"{said}: {path} is slim already"):
            load_network(path, options)
    with pytest.raises(OptionError, match=f"--ema: {path} is slim already"):
        load_network(path, ema=True)


def test_a_system_that_nobody_knows_is_refused(tmp_path):
    path = written(original("vitslim-a-channel-0.7"), tmp_path)
    content = read_slim(path)
    network = load_network(path)
    for changes, said in (
        ({"name": "no_vit"}, "is of 'no_vit', which this slimc does not know"),
        ({"name": "ada_vit"}, "its settings are not AdaViT's"),
    ):
        system = type("Other", (type(network.system),), changes)()
        slim_file.save(replace(network, system=system), path)
        with pytest.raises(CheckpointError, match=said):
            load_network(path)
    assert content.system == "vit_slim"


def test_its_reference_chooses_as_the_checkpoint_does(tmp_path):
    vector = selecting.VECTORS[0]
    small = load_network(written(original(vector.name), tmp_path, verify=False))
    found = small.trace(small.pytorch("masked"), torch.from_numpy(vector.images))
    expected = original(vector.name)
    trace = expected.trace(expected.pytorch("masked"), torch.from_numpy(vector.images))
    for patches, wanted in zip(found.kept, vector.kept, strict=True):
        assert np.array_equal(np.sort(patches.numpy(), 1), wanted)
    assert found.margins is not None
    assert trace.margins is not None
    assert torch.allclose(found.margins, trace.margins, rtol=1e-3)
    assert np.abs(found.logits.numpy() - vector.logits).max() < 1e-4


def test_without_torch_its_reference_says_what_to_install(tmp_path, monkeypatch):
    small = load_network(written(original("vitslim-a-channel-0.7"), tmp_path, verify=False))
    monkeypatch.setitem(sys.modules, "slimc.models.slim_reference", None)
    with pytest.raises(MissingError, match=r"pip install 'slimc\[compile\]'"):
        small.pytorch("masked")
