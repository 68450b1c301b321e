"""References hold every output under its name, and those of logits are what they were."""

import numpy as np
import pytest

from slimc.errors import ModelFileError
from slimc.files.reference import Reference, read_reference, write_reference

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
LOGITS = np.zeros((2, 5), np.float32)
FACTS = {"source_sha256": "0", "variant": "slim"}


def test_outputs_come_back_by_name_whatever_their_layout(tmp_path):
    outputs = {
        "tokens:nchw": np.random.default_rng(1).standard_normal((2, 6, 2, 3)).astype(np.float32),
        "blocks.5": np.ones((2, 4, 6), np.float32),
        "logits": LOGITS,
        "features": np.ones((2, 6), np.float32),
    }
    write_reference(tmp_path / "r.npz", Reference(IMAGES, outputs, FACTS))
    found = read_reference(tmp_path / "r.npz")
    assert set(found.outputs) == set(outputs)
    for name, values in outputs.items():
        np.testing.assert_array_equal(found.outputs[name], values)
    np.testing.assert_array_equal(found.logits, LOGITS)
    with np.load(tmp_path / "r.npz") as content:
        assert content.files == [
            "images",
            "logits",
            "facts",
            "output:tokens:nchw",
            "output:blocks.5",
            "output:features",
        ]


def test_logits_alone_are_stored_as_ever(tmp_path):
    write_reference(tmp_path / "r.npz", Reference(IMAGES, {"logits": LOGITS}, FACTS))
    facts = np.array('{"source_sha256": "0", "variant": "slim"}')
    np.savez(tmp_path / "before.npz", images=IMAGES, logits=LOGITS, facts=facts)
    assert (tmp_path / "r.npz").read_bytes() == (tmp_path / "before.npz").read_bytes()


def test_there_need_be_no_logits(tmp_path):
    write_reference(tmp_path / "r.npz", Reference(IMAGES, {"features": LOGITS}, FACTS))
    assert set(read_reference(tmp_path / "r.npz").outputs) == {"features"}


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ({}, r"outputs \[\]"),
        ({"features": np.zeros((2, 5, 1), np.float32)}, "features"),
        ({"tokens": np.zeros((2, 5), np.float32)}, "tokens"),
        ({"tokens": np.zeros((3, 5, 1), np.float32)}, "tokens"),
        ({"logits": np.zeros((2, 5))}, "shapes"),
    ],
)
def test_what_is_no_reference_is_refused(outputs, match, tmp_path):
    write_reference(tmp_path / "r.npz", Reference(IMAGES, outputs, FACTS))
    with pytest.raises(ModelFileError, match=f"not a reference that slimc wrote .*{match}"):
        read_reference(tmp_path / "r.npz")
