"""A slim file holds a network exactly, in the same bytes every time, and is believed nothing that it does not prove."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from slimc import ir
from slimc.errors import CheckpointError
from slimc.files.slim import DamagedError, holds, is_slim, read_slim, write_slim
from slimc.files.slim.nodes import AXES, MASKS, NODES, fields_of
from slimc.ir.interpret.model import trace
from tests.files.slim_files import changed, content_of, rich_network, signed, single, whole
from tests.plain_networks import images_of, plain_network, plain_rewritten_networks


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slim")


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def assert_same_node(found: Any, expected: Any, place: str = "model") -> None:
    """Both are the same, number by number and type by type."""
    assert type(found) is type(expected), place
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), place
        assert np.array_equal(found, expected), place
    elif isinstance(expected, tuple):
        assert len(found) == len(expected), place
        for i, (first, second) in enumerate(zip(found, expected, strict=True)):
            assert_same_node(first, second, f"{place}.{i}")
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_same_node(getattr(found, field.name), getattr(expected, field.name), f"{place}.{field.name}")
    else:
        assert found == expected, place


class TestContent:
    @given(plain_rewritten_networks(masks=None), st.booleans())
    def test_any_network_comes_back_as_it_was(self, directory, network, narrow):
        network = single(network) if narrow else network
        path = directory / "any.safetensors"
        write_slim(path, content_of(network))
        assert_same_node(read_slim(path).model, network)

    def test_so_do_gates_selections_and_stems(self, directory):
        random = np.random.default_rng(0)

        def array(*shape: int) -> ir.FloatArray:
            return random.normal(size=shape).astype(np.float32)

        def linear(out: int, into: int) -> ir.Linear:
            return ir.Linear(array(out, into), array(out))

        norm = ir.LayerNorm(array(10), array(10), 1e-6)
        model = rich_network(rotation=None, rows=False, live=False, patches=False, zero_rows=0, gated=False)
        first, second = model.blocks
        assert isinstance(first.attention, ir.Attention)
        assert isinstance(first.mlp, ir.Mlp)
        heads = tuple(replace(head, gate=i % 2) for i, head in enumerate(first.attention.heads))
        units = np.array([-1, 0, 1, 1, 0, -1])
        tokens = ir.TokenGate(first.attention.norm, linear(1, 10), 0.125, 3)  # type: ignore[arg-type]
        gates = ir.Gates(linear(1, 10), None, linear(2, 10), tokens, norm, tokens_gate_mlp=True, off_heads="value")
        block = replace(
            first,
            attention=replace(first.attention, heads=heads),
            mlp=replace(first.mlp, unit_gates=units),
            gates=gates,
        )
        scorer = ir.TokenScorer(norm, linear(5, 10), linear(5, 10), (linear(4, 10), linear(1, 4)))
        last = replace(second, select=ir.SelectTokens(scorer, 2, 1))
        stem = (
            ir.Convolution(
                array(4, 3, 3, 3), array(4), 1, ir.BatchNorm(array(4), array(4), array(4), np.abs(array(4)), 1e-5)
            ),
        )
        patch = replace(model.embedding.patch, weight=array(10, 4, 2, 2))
        embedding = replace(model.embedding, stem=stem, patch=patch)
        model = replace(model, blocks=(block, last), embedding=embedding)
        path = directory / "gates.safetensors"
        write_slim(path, content_of(model))
        assert_same_node(read_slim(path).model, model)

    def test_a_performer_comes_back(self, directory):
        random = np.random.default_rng(0)

        def linear(out: int, into: int) -> ir.Linear:
            return ir.Linear(random.normal(size=(out, into)), random.normal(size=out))

        def norm(width: int) -> ir.LayerNorm:
            return ir.LayerNorm(np.ones(width), np.zeros(width), 1e-5)

        model = plain_network(0)
        performer = ir.Performer(
            norm(27), linear(4, 27), linear(4, 27), linear(4, 27), random.normal(size=(2, 4)), linear(4, 4), norm(4),
            linear(6, 4), linear(4, 6),
        )  # fmt: skip
        stem = (ir.SoftSplit(3, 1, 1, performer),)
        patch = replace(model.embedding.patch, weight=random.normal(size=(10, 4, 2, 2)))
        model = replace(model, embedding=replace(model.embedding, stem=stem, patch=patch))
        path = directory / "performer.safetensors"
        write_slim(path, content_of(model))
        assert_same_node(read_slim(path).model, model)

    def test_what_is_said_of_a_network_comes_back(self, directory):
        model = rich_network()
        path = directory / "facts.safetensors"
        facts = {"dense": model, "heads": [(4, 0, 6), (1,)], "limits": {"capacities": [None, 3]}, "version": "7.0"}
        content = content_of(model, **facts)
        write_slim(path, content)
        found = read_slim(path)
        for name in ("system", "source_sha256", "preprocessing", "settings", "details", "limits", "version"):
            assert getattr(found, name) == getattr(content, name), name
        assert found.heads == ((4, 0, 6), (1,))

    def test_of_the_network_before_shapes_and_indices_are_kept(self, directory):
        model = rich_network()
        path = directory / "dense.safetensors"
        write_slim(path, content_of(model, dense=model, heads=[()] * 2))
        dense = read_slim(path).dense
        assert dense is not None
        assert [array.shape for array in ir.arrays(dense)] == [array.shape for array in ir.arrays(model)]
        assert not any(array.any() for array in ir.arrays(dense))
        assert np.array_equal(np.asarray(dense.embedding.patch.patches), np.asarray(model.embedding.patch.patches))
        names = [name for name in header_of(path) if name.startswith("dense.")]
        assert "dense.embedding.patch.patches" in names
        assert all(header_of(path)[name]["dtype"] == "I64" for name in names)

    def test_a_mask_has_no_place(self, directory):
        for masked in (plain_network(0, masks="binary"), plain_network(0, token_masks=True)):
            with pytest.raises(ValueError, match="mask, which has no place in a slim file"):
                write_slim(directory / "masked.safetensors", content_of(masked))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_no_number_is_not_written(self, directory, value):
        model = rich_network()
        model.embedding.prefix[0, 0] = value
        with pytest.raises(DamagedError, match=r"'embedding.prefix' has a number that is NaN or infinite"):
            write_slim(directory / "nan.safetensors", content_of(model))


class TestForm:
    def test_the_same_network_makes_the_same_bytes(self, directory):
        first, second = directory / "1.safetensors", directory / "2.safetensors"
        assert whole(first) == whole(second)
        write_slim(second, read_slim(first))
        assert first.read_bytes() == second.read_bytes()

    def test_it_is_a_safetensors_file_with_joined_heads(self, directory):
        path = directory / "joined.safetensors"
        model = rich_network()
        write_slim(path, content_of(model))
        arrays = load_file(path)
        attention = model.blocks[0].attention
        assert isinstance(attention, ir.Attention)
        rows = np.concatenate([head.query.weight for head in attention.heads])
        columns = np.concatenate([head.output for head in attention.heads], axis=1)
        assert np.array_equal(arrays["blocks.0.attention.heads.query.weight"], rows)
        assert np.array_equal(arrays["blocks.0.attention.heads.output"], columns)
        network = json.loads(header_of(path)["__metadata__"]["slimc.network"])
        head = network["blocks"][0]["attention"]["heads"][1]
        assert head["query"]["weight"] == "blocks.0.attention.heads.query.weight[4:8]"
        assert head["output"] == "blocks.0.attention.heads.output[:,4:8]"

    def test_numbers_lie_aligned(self, directory):
        path = directory / "aligned.safetensors"
        whole(path)
        assert all(array.flags.aligned for array in ir.arrays(read_slim(path).model))
        sizes = {"I64": 8, "F32": 4}
        entries = {name: entry for name, entry in header_of(path).items() if name != "__metadata__"}
        assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in entries.values())

    def test_equal_rotations_are_kept_once_and_are_one(self, directory):
        model = single(plain_network(0, rotation="shared"))
        blocks = []
        for block in model.blocks:
            assert isinstance(block.attention, ir.Attention)
            first = block.attention.heads[0].rotation
            assert first is not None
            heads = tuple(
                replace(head, rotation=ir.Rotation(first.cos.copy(), first.sin.copy()))
                for head in block.attention.heads
            )
            blocks.append(replace(block, attention=replace(block.attention, heads=heads)))
        path = directory / "rotations.safetensors"
        write_slim(path, content_of(replace(model, blocks=tuple(blocks))))
        assert sorted(name for name in header_of(path) if "rotation" in name) == [
            *("rotations.0.cos", "rotations.0.sin", "rotations.1.cos", "rotations.1.sin"),
        ]
        for block in read_slim(path).model.blocks:
            assert isinstance(block.attention, ir.Attention)
            assert len({id(head.rotation) for head in block.attention.heads}) == 1

    def test_every_array_of_the_ir_has_its_axes_in_the_table(self):
        for name in NODES:
            arrays = {field for field, (hint, _) in fields_of(name).items() if "ndarray" in str(hint)}
            assert arrays == set(AXES.get(name, {})), name
        for name, masks in MASKS.items():
            assert set(masks) <= {field.name for field in dataclasses.fields(NODES[name])}
        nodes = {name for name in ir.__all__ if isinstance(getattr(ir, name), type) and name[0].isupper()}
        nodes = {name for name in nodes if dataclasses.is_dataclass(getattr(ir, name))}
        assert nodes - set(NODES) == {"BlockRows"}

    def test_it_is_read_without_torch(self, directory):
        path = directory / "plain.safetensors"
        whole(path)
        script = f"""
import sys
from pathlib import Path
from slimc.files.slim import read_slim
read_slim(Path({str(path)!r}))
print(*{{"torch", "safetensors", "timm"}} & set(sys.modules))
"""
        outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert outcome.stdout.split() == []

    def test_it_is_compared_with_what_was_written(self, directory):
        path = directory / "held.safetensors"
        model = rich_network(pool="latent")
        write_slim(path, content_of(model))
        assert holds(path, model)
        assert not holds(path, rich_network(1, pool="latent"))
        assert not holds(path, replace(model, blocks=model.blocks[:1]))
        assert not holds(path, ir.to_float64(model))
        broken = bytearray(path.read_bytes())
        broken[-1] ^= 1
        path.write_bytes(broken)
        with pytest.raises(DamagedError, match="its checksum does not match"):
            holds(path, model)

    def test_it_is_told_by_its_content(self, directory):
        path = directory / "any.name"
        content = whole(path)
        assert is_slim(path)
        path.write_bytes(content[:300])
        assert is_slim(path)
        path.write_bytes(b"PK\x03\x04 slimc.format")
        assert not is_slim(path)
        assert not is_slim(directory)


def set_in(*keys: Any, to: Any) -> Any:
    """A change of what stands at `keys` in the header."""

    def change(header: dict[str, Any]) -> None:
        place: Any = header if keys[0] in header else header["__metadata__"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def drop(*keys: Any) -> Any:
    """A change that takes out what stands at `keys`."""

    def change(header: dict[str, Any]) -> None:
        place: Any = header if keys[0] in header else header["__metadata__"]
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


NETWORK, FACTS = "slimc.network", "slimc.facts"
ATTENTION = (NETWORK, "blocks", 0, "attention")
HEAD = (*ATTENTION, "heads", 0)
PREFIX = "embedding.prefix"
# What is wrong, and what is said about it.
WRONG: dict[str, tuple[Any, str]] = {
    "other format": (set_in("__metadata__", "slimc.format", to="2"), "its format is '2', and this slimc knows 1"),
    "no network": (drop("__metadata__", NETWORK), "it has no network"),
    "no facts": (drop("__metadata__", FACTS), "it has no facts"),
    "texts": (set_in("__metadata__", "other", to=3), "its metadata are no texts"),
    "no JSON": (set_in("__metadata__", FACTS, to="{"), r"its header is no JSON \(JSONDecodeError\)"),
    "deep JSON": (set_in("__metadata__", FACTS, to="[" * 100_000), "its header is no JSON"),
    "NaN": (set_in("__metadata__", FACTS, to="[NaN]"), "its header has the number NaN"),
    "twice": (set_in("__metadata__", FACTS, to='{"a":1,"a":2}'), "its header says something twice"),
    "long number": (set_in("__metadata__", FACTS, to="9" * 10_000), "its header is no JSON|its facts"),
    "dtype": (set_in(PREFIX, "dtype", to="BF16"), "'embedding.prefix' is of the type 'BF16', expected I64, F32, F64"),
    "no dtype": (drop(PREFIX, "dtype"), "'embedding.prefix' is described by something else"),
    "shape": (set_in(PREFIX, "shape", to=[1, 11]), "'embedding.prefix' does not lie where it can"),
    "negative shape": (set_in(PREFIX, "shape", to=[-1, -10]), "'embedding.prefix' has no shape"),
    "huge shape": (set_in(PREFIX, "shape", to=[1 << 47, 1 << 47]), "'embedding.prefix' does not lie where it can"),
    "axes": (set_in(PREFIX, "shape", to=[1, 1, 1, 1, 10]), "'embedding.prefix' has no shape"),
    "offsets": (set_in(PREFIX, "data_offsets", to=[0, 1 << 40]), "'embedding.prefix' does not lie where it can"),
    "turned offsets": (set_in(PREFIX, "data_offsets", to=[80, 40]), "'embedding.prefix' does not lie where it can"),
    "one offset": (set_in(PREFIX, "data_offsets", to=[0]), "'embedding.prefix' has no shape or no offsets"),
    "odd offset": (set_in(PREFIX, "data_offsets", to=[1, 41]), "'embedding.prefix' does not lie where it can"),
    "overlap": (set_in(PREFIX, "data_offsets", to=[0, 40]), "does not begin where the array before it ends"),
    "one array less": (drop(PREFIX), "does not begin where the array before it ends"),
    "other node": (set_in(NETWORK, "node", to="Block"), "network is no Model"),
    "no node": (drop(*ATTENTION, "node"), "network.blocks.0.attention is no Attention or Constant"),
    "list for a node": (set_in(*ATTENTION, to=[]), "network.blocks.0.attention is no Attention or Constant"),
    "unknown field": (set_in(*HEAD, "mask", to=PREFIX), "network.blocks.0.attention.heads.0 has 'mask', which is unknown"),
    "no field": (drop(*HEAD, "query"), "network.blocks.0.attention.heads.0.query is missing"),
    "no list": (set_in(NETWORK, "blocks", to=3), "network.blocks is no list"),
    "size of the image": (set_in(NETWORK, "image", to=[6]), "network.image is no list of 2"),
    "truth for a number": (set_in(*ATTENTION, "ghosts", to=True), "network.blocks.0.attention.ghosts is True"),
    "text for a number": (set_in(*ATTENTION, "ghosts", to="3"), "network.blocks.0.attention.ghosts is '3'"),
    "huge number": (set_in(*ATTENTION, "ghosts", to=1 << 40), "network.blocks.0.attention.ghosts is 1099511627776"),
    "infinite number": (set_in(*ATTENTION, "scale", to=1e400), "its header has the number Infinity"),
    "unknown word": (set_in(NETWORK, "blocks", 0, "mlp", "activation", to="elu"), "activation is 'elu'"),
    "no such array": (set_in(*HEAD, "output", to="other[:,0:4]"), "heads.0.output names no array"),
    "numbers for an array": (set_in(*HEAD, "output", to=[10, 4]), "heads.0.output names no array"),
    "indices for weights": (
        set_in(NETWORK, "embedding", "patch", "bias", to="embedding.patch.patches"),
        "network.embedding.patch.bias is an array of another kind",
    ),
    "beyond": (
        set_in(*HEAD, "output", to="blocks.0.attention.heads.output[:,0:99]"),
        "heads.0.output is beyond the end of its array",
    ),
    "backwards": (
        set_in(*HEAD, "output", to="blocks.0.attention.heads.output[:,3:2]"),
        "heads.0.output is beyond the end of its array",
    ),
    "columns of a bias": (
        set_in(*HEAD, "query", "bias", to="blocks.0.attention.heads.query.bias[:,0:4]"),
        "heads.0.query.bias has no columns",
    ),
    "taken twice": (
        set_in(*HEAD, "output", to="blocks.0.attention.heads.output[:,4:8]"),
        "'blocks.0.attention.heads.output' is not taken whole and once",
    ),
    "left over": (drop(*ATTENTION, "output_bias"), "output_bias is missing"),
    "not taken": (set_in(*ATTENTION, "output_bias", to=None), "'blocks.0.attention.output_bias' is not taken whole"),
    "contradiction": (set_in(NETWORK, "image", to=[6, 5]), r"contradicts itself: embedding: patches of 2x2 do not tile"),
    "no image": (set_in(NETWORK, "image", to=[0, 4]), "its network contradicts itself"),
    "huge image": (set_in(NETWORK, "image", to=[1 << 30, 1 << 30]), "its network contradicts itself: image"),
    "many ghosts": (set_in(*ATTENTION, "ghosts", to=1 << 30), "1,073,741,824 rows: more than 1,048,576"),
    "other network before": (set_in("slimc.dense", "image", to=[12, 4]), "contradicts itself|made of another network"),
    "network before with numbers": (
        set_in("slimc.dense", "embedding", "prefix", to=PREFIX), "network.embedding.prefix is no shape of 2 axes",
    ),
    "huge network before": (set_in("slimc.dense", "embedding", "prefix", to=[1, 1 << 30]), "is no shape of 2 axes"),
    "indices of no network": (drop("__metadata__", "slimc.dense"), "it has arrays of a network that it does not have"),
    "fewer facts": (drop(FACTS, "heads"), "its facts are something else than"),
    "other digest": (set_in(FACTS, "source_sha256", to="../../etc/passwd"), "where it came from cannot be read"),
    "list of settings": (set_in(FACTS, "settings", to=[]), "where it came from cannot be read"),
    "preprocessing": (set_in(FACTS, "preprocessing", "crop_pct", to=7), "does not say how images become its inputs"),
    "means": (set_in(FACTS, "preprocessing", to={"mean": [0.5], "std": [0.5]}), "its means are of 1 channels"),
    "heads of other blocks": (set_in(FACTS, "heads", to=[[4]]), "does not say what its heads were"),
    "widths of heads": (set_in(FACTS, "heads", to=[[4], [-1]]), "its heads were of widths that there are not"),
}  # fmt: skip


class TestHostileFiles:
    @pytest.mark.parametrize("what", WRONG)
    def test_what_contradicts_the_format_is_one_line(self, directory, what):
        change, expected = WRONG[what]
        path = directory / "wrong.safetensors"
        path.write_bytes(changed(whole(path), change))
        with pytest.raises(CheckpointError, match=expected) as caught:
            read_slim(path)
        assert str(caught.value).startswith(f"{path}: not a slim file that can be used: ")
        assert "\n" not in str(caught.value)

    def test_what_is_changed_and_unchanged_is_read(self, directory):
        path = directory / "same.safetensors"
        path.write_bytes(changed(whole(path), lambda _: None))
        read_slim(path)

    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_a_number_that_is_none_is_refused(self, directory, value):
        path = directory / "nan.safetensors"
        number = np.float32(value).tobytes()
        path.write_bytes(changed(whole(path), lambda _: None, lambda data: data[:-4] + number))
        with pytest.raises(CheckpointError, match="has a number that is NaN or infinite"):
            read_slim(path)

    def test_an_index_beyond_its_rows_is_refused(self, directory):
        path = directory / "index.safetensors"
        content = whole(path)
        start = header_of(path)["blocks.0.live"]["data_offsets"][0]
        number = np.int64(99).tobytes()
        path.write_bytes(changed(content, lambda _: None, lambda data: data[:start] + number + data[start + 8 :]))
        with pytest.raises(CheckpointError, match=r"blocks\.0\.live: indices outside"):
            read_slim(path)

    def test_bytes_before_within_and_behind_are_noticed(self, directory):
        path = directory / "bytes.safetensors"
        content = whole(path)
        for broken in (content[:4], content[:100], content[:-1], content + b"\0", b"", b"\0" * 16, b"\xff" * 64):
            path.write_bytes(broken)
            with pytest.raises(CheckpointError, match="not a slim file that can be used: "):
                read_slim(path)
        path.write_bytes(changed(content, lambda _: None, lambda data: data + b"\0" * 8))
        with pytest.raises(CheckpointError, match="has 8 bytes behind its arrays"):
            read_slim(path)
        path.write_bytes(signed(b'{"__metadata__":[]}', b""))
        with pytest.raises(CheckpointError, match="its header does not begin as that of a slim file"):
            read_slim(path)

    def test_a_byte_that_another_program_changes_is_noticed(self, directory):
        path = directory / "changed.safetensors"
        content = bytearray(whole(path))
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="its checksum does not match: it is damaged, or something else"):
            read_slim(path)

    def test_there_has_to_be_a_file(self, directory):
        with pytest.raises(CheckpointError, match="no such file"):
            read_slim(directory / "missing.safetensors")
        with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
            read_slim(directory)


def test_what_is_read_can_be_run(directory):
    path = directory / "run.safetensors"
    model = rich_network(pool="avg", outputs=("logits", "features"))
    write_slim(path, content_of(model))
    images = images_of(model)
    found, expected = trace(read_slim(path).model, images).outputs, trace(model, images).outputs
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
