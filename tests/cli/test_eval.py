"""``slimc eval``: accuracy from models and checkpoints, on several back ends, and one line where something does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

import slimc as library
from tests.artefacts import VECTORS
from tests.command_line import slimc
from tests.digits import IMAGES, write_digits
from tests.onnx_files import with_features


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits", every=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "slim.onnx"
    assert slimc("export", VECTORS["digits"], "-o", path, *IMAGES, "-q").code == 0
    return path


def evaluated(*given: str | Path) -> dict[str, Any]:
    outcome = slimc("eval", *given, "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_digits_from_the_checkpoint_and_the_model(backend, digits, model):
    found = evaluated(VECTORS["digits"], model, "--data", digits, *IMAGES, "--backend", backend, "--threads", "2")
    assert [network["right"] for network in found["networks"]] == [349, 348, 348, 348]
    assert [network["variant"] for network in found["networks"]] == ["dense", "masked", "slim", "slim"]
    assert all(network["backend"].startswith(backend) for network in found["networks"])
    assert (found["images"], found["classes"]) == (360, 10)
    by_pair = {(change["first"], change["second"]): change for change in found["changes"]}
    names = [network["name"] for network in found["networks"]]
    assert len(by_pair) == 6
    assert by_pair[names[1], names[2]]["changed"] == 0
    dense = by_pair[names[0], names[1]]
    assert dense["gained"] - dense["lost"] == 348 - 349
    assert dense["changed"] == len(dense["images"]) > 0
    changed = dense["images"][0]
    assert Path(changed["file"]).parent.name == changed["label"]
    assert changed["first"] != changed["second"]


def test_several_back_ends_side_by_side(few, model):
    found = evaluated(model, "--data", few, "--backend", "onnxruntime", "--backend", "openvino")
    assert [network["backend"].split()[0] for network in found["networks"]] == ["onnxruntime", "openvino"]
    assert [network["right"] for network in found["networks"]] == [28, 28]
    assert found["networks"][0]["loss"] == pytest.approx(found["networks"][1]["loss"], rel=1e-4)


def test_people_read_a_table_and_what_changed(few, model):
    outcome = slimc("eval", VECTORS["digits"], "--data", few, *IMAGES, "--threads", "1")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "30 images of 10 classes, onnxruntime" in outcome.stdout
    assert "retrained dense" in outcome.stdout
    assert "retrained masked -> retrained slim: 0 of 30 answers changed" in outcome.stdout
    assert slimc("eval", model, "--data", few, "--quiet").stdout == ""


def test_what_a_checkpoint_does_not_say_is_said_once(few):
    outcome = slimc("eval", VECTORS["digits"], "--data", few, "--limit", "2")
    assert outcome.stderr.count("does not say how images were normalised") == 1


def test_images_may_be_prepared_otherwise_than_a_model_says(few, model):
    plain = evaluated(model, "--data", few)["networks"][0]
    other = evaluated(model, "--data", few, "--mean", "0.9", "0.9", "0.9")["networks"][0]
    assert (plain["preprocessing"]["mean"], other["preprocessing"]["mean"]) == ([0.5] * 3, [0.9] * 3)
    assert other["preprocessing"]["std"] == [0.5] * 3
    assert other["loss"] > plain["loss"]


def test_a_model_of_somebody_else_needs_to_be_told(few, model, tmp_path):
    content = onnx.load(model)
    del content.metadata_props[:]
    onnx.save(content, tmp_path / "other.onnx")
    refused = slimc("eval", tmp_path / "other.onnx", "--data", few)
    assert (refused.code, "give --mean and --std" in refused.stderr) == (2, True)
    assert evaluated(tmp_path / "other.onnx", "--data", few, *IMAGES)["networks"][0]["right"] == 28


def test_a_limit_and_a_class_map(few, model, tmp_path):
    (tmp_path / "map.txt").write_text("".join(f"{i}\n" for i in (1, 0, *range(2, 10))))
    found = evaluated(model, "--data", few, "--limit", "10", "--class-map", tmp_path / "map.txt")
    assert found["images"] == 10
    assert found["networks"][0]["right"] < 10
    assert {entry["path"] for entry in found["inputs"]} == {str(model), str(tmp_path / "map.txt")}


def test_half_precision_of_a_checkpoint(few):
    found = evaluated(VECTORS["digits"], "--data", few, *IMAGES, "--fp16", "--threads", "1", "--batch-size", "4")
    assert {(network["precision"], network["batch_size"]) for network in found["networks"]} == {("fp16", 4)}
    assert all(abs(network["right"] - 28) <= 1 for network in found["networks"])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["--data", "{few}/0"], "has no class folders and no labels.csv"),
        (["--data", "{few}", "--limit", "0"], "--limit: 0"),
        (["--data", "{few}/none"], "is not a directory"),
        (["--data", "{few}", "--batch-size", "2"], "is compiled already"),
        (["--data", "{few}", "--std", "0", "1", "1"], "--std"),
        (["--data", "{few}", "--backend", "abacus"], "--backend: 'abacus' is unknown"),
        ([], "--data"),
    ],
)
def test_what_does_not_fit_is_one_line(given, match, few, model):
    outcome = slimc("eval", model, *(text.format(few=few) for text in given))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert match in outcome.stderr


def test_another_number_of_classes_is_refused(model, few, tmp_path):
    data = write_digits(tmp_path / "digits", every=12)
    for path in (data / "9").iterdir():
        path.unlink()
    (data / "9").rmdir()
    outcome = slimc("eval", model, "--data", data)
    assert (outcome.code, "has 9 class folders, but the network has 10 outputs" in outcome.stderr) == (2, True)


def test_all_damaged_images_are_named(model, tmp_path):
    data = write_digits(tmp_path / "digits", every=12)
    damaged = sorted(data.rglob("*.png"))[::10]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:30])
    outcome = slimc("eval", model, "--data", data)
    assert outcome.code == 2
    assert f"{len(damaged)} of 30 images cannot be used" in outcome.stderr
    assert all(path.name in outcome.stderr for path in damaged)


def test_export_tells_the_accuracy_on_class_folders(few, tmp_path):
    given = ["export", VECTORS["digits"], "-o", tmp_path / "m.onnx", *IMAGES, "--data"]
    outcome = slimc(*given, few)
    assert "accuracy on 30 labelled images: top-1 93.33%" in outcome.stdout
    assert "no statement about labels" not in outcome.stdout
    found = json.loads(slimc(*given, few, "--json").stdout)["accuracy"]
    assert (found["images"], found["onnx"]["right"], found["pytorch"]["right"]) == (30, 28, 28)
    assert found["onnx"]["loss"] == pytest.approx(found["pytorch"]["loss"], rel=1e-4)
    assert json.loads(slimc(*given, few / "3", "--json").stdout)["accuracy"] is None


def test_the_library_gives_the_same(few, model):
    report = library.accuracy(model, few, threads=1)
    assert (len(report.data), report.warnings, report.changes) == (30, (), ())
    assert report.networks[0].scores.summary()["right"] == 28


@pytest.fixture(scope="module")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives logits and features."""
    copy = tmp_path_factory.mktemp("both") / "m.onnx"
    shutil.copyfile(model, copy)
    return with_features(copy)


class TestNeighbours:
    def test_answers_by_features_and_by_logits(self, both, digits, few):
        found = evaluated(both, both, "--data", few, "--knn", "5", "--data-train", digits, "--threads", "1")
        assert found["knn"] == {
            "k": 5, "temperature": 0.07, "data_train": str(digits), "images": 360, "features": [64, 64],
        }  # fmt: skip
        assert (found["images"], found["classes"], found["changes"][0]["changed"]) == (30, 10, 0)
        assert found["networks"][0]["right"] >= 28, "the images are among their neighbours"
        assert found["networks"][0]["loss"] is None
        by_logits = evaluated(both, "--data", few, "--threads", "1")
        assert (by_logits["networks"][0]["right"], by_logits["knn"]) == (28, None)

    def test_people_are_told_how_it_was_measured(self, both, digits, few):
        outcome = slimc("eval", both, "--data", few, "--knn", "5", "--data-train", digits)
        assert outcome.code == 0, outcome.stderr
        assert "by the 5 nearest of 360 images, in cosine similarity of 64 features" in outcome.stdout
        assert "a vote is exp(similarity / 0.07); 0.1 MB of features held" in outcome.stdout

    def test_the_library_gives_the_same(self, both, digits, few):
        report = library.accuracy(both, few, knn=5, data_train=digits, threads=1)
        assert report.neighbours is not None
        assert report.networks[0].scores.right.sum() >= 28

    def test_classes_are_those_of_the_training_images(self, both, few, tmp_path):
        data = write_digits(tmp_path / "digits", every=12)
        (data / "3").rename(data / "three")
        outcome = slimc("eval", both, "--data", data, "--knn", "1", "--data-train", few)
        assert (outcome.code, "labels that are none of the 10 classes: three" in outcome.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("given", "match"),
        [
            (["{both}", "--knn", "5"], "--knn: needs --data-train DIR"),
            (["{both}", "--data-train", "{few}"], "--data-train: holds neighbours; give --knn K too"),
            (["{both}", "--knn", "0", "--data-train", "{few}"], "--knn: 0 neighbours cannot vote"),
            (["{both}", "--knn", "31", "--data-train", "{few}"], "--knn: 31 neighbours of 30 images"),
            (["{both}", "--knn", "1", "--data-train", "{few}/none"], "--data-train: {few}/none is not a directory"),
            (["{both}", "--knn", "1", "--data-train", "{few}/3"], "--data-train: {few}/3 has no class folders"),
            (
                ["{both}", "--knn", "1", "--data-train", "{few}", "--class-map", "m.txt"],
                "--class-map: says which output",
            ),
            (["{model}", "--knn", "1", "--data-train", "{few}"], "has no features, but logits [1, 10]"),
            (["{checkpoint}", "--knn", "1", "--data-train", "{few}"], "--knn: ViT-Slim networks give logits only"),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, given, match, both, model, few):
        names = {"both": both, "model": model, "few": few, "checkpoint": VECTORS["digits"]}
        outcome = slimc("eval", "--data", few, *(text.format(**names) for text in given))
        assert (outcome.code, outcome.stdout) == (2, "")
        assert outcome.stderr.startswith("error: ")
        assert outcome.stderr.count("\n") == 1
        assert match.format(**names) in outcome.stderr

    def test_a_model_of_features_only_says_how_it_can_be_asked(self, both, few, tmp_path):
        content = onnx.load(both)
        del content.graph.output[0]
        onnx.save(content, tmp_path / "f.onnx")
        outcome = slimc("eval", tmp_path / "f.onnx", "--data", few)
        assert outcome.code == 2
        assert "has features, but no logits; give --knn K and --data-train DIR" in outcome.stderr
