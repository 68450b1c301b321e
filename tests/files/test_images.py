"""Folders of images: all are found, all damaged ones are named, and inputs are what timm's evaluation makes of them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slimc.errors import OptionError
from slimc.files.images import (
    StreamedImages,
    check_images,
    image_files,
    load_images,
    only,
    pixels,
    readable_images,
    seeded_images,
)
from slimc.ir.preprocessing import INTERPOLATIONS, Preprocessing

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0)


def save(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("image", [(56, 56), (32, 64), (64, 48)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
def test_inputs_are_timms(interpolation, image, crop_pct, tmp_path):
    data = pytest.importorskip("timm.data")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = data.create_transform((3, *image), mean=mean, std=std, crop_pct=crop_pct, interpolation=interpolation)
    preprocessing = Preprocessing(mean, std, crop_pct, interpolation)
    for seed, size in enumerate([(60, 80), (91, 57), (56, 56), (64, 64), (20, 31), (300, 301), (32, 64), (9, 200)]):
        path = save(tmp_path / f"{seed}.png", size, seed)
        with Image.open(path) as picture:
            expected = transform(picture.convert("RGB")).numpy()
        found = load_images([path], image, preprocessing)[0]
        assert np.abs((found - expected) * np.array(std)[:, None, None]).max() <= 1 / 255 + 1e-6, size


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3, 60_000)])
def test_extreme_aspects_are_cropped_before_they_are_enlarged(size, tmp_path):
    path = save(tmp_path / "long.png", size)
    script = f"""
from pathlib import Path
from slimc.files.images import load_images
from slimc.ir.preprocessing import Preprocessing
import resource
load_images([Path({str(save(tmp_path / "usual.png"))!r})], (224, 224), Preprocessing())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_images([Path({str(path)!r})], (224, 224), Preprocessing())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # kB; enlarged they are 2 GB


def test_a_long_image_is_what_its_middle_is(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 2000)[:, None, None], 4, axis=1).repeat(3, axis=2).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = pixels(load_images([tmp_path / "a.png"], (32, 32), HALF), HALF)[0]
    assert np.abs(found - 0.5).max() < 0.01


def test_folders_behind_links_are_looked_into_and_loops_are_not(tmp_path):
    real = tmp_path / "elsewhere"
    save(real / "deep" / "a.PNG")
    save(real / "b.webp")
    (real / "notes.txt").write_text("no image")
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(real)
    (data / "again").symlink_to(real / "deep")
    (real / "deep" / "back").symlink_to(data)
    (data / "c.jpeg").symlink_to(save(tmp_path / "c.jpeg"))
    names = [str(path.relative_to(data)) for path in image_files(data)]
    assert names == ["again/a.PNG", "c.jpeg", "linked/b.webp", "linked/deep/a.PNG"]


def test_every_suffix_of_torchvisions_folders_is_found(tmp_path):
    folder = pytest.importorskip("torchvision.datasets.folder")
    for suffix in folder.IMG_EXTENSIONS:
        (tmp_path / f"a{suffix}").write_bytes(b"")
    assert len(image_files(tmp_path)) == len(folder.IMG_EXTENSIONS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(OptionError, match="closed cannot be read: Permission denied"):
        image_files(tmp_path)


def test_all_damaged_images_are_named(tmp_path):
    files = [save(tmp_path / f"{i}.png", seed=i) for i in range(6)]
    told: list[tuple[int, int]] = []
    check_images(files, lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)
    files[1].write_bytes(b"no image")
    files[4].write_bytes(files[4].read_bytes()[:50])
    with pytest.raises(OptionError) as caught:
        readable_images(tmp_path)
    assert str(caught.value).startswith("--data: 2 of 6 images cannot be used: ")
    assert "1.png is not a readable image" in str(caught.value)
    assert "4.png is not a readable image" in str(caught.value)


def test_one_channel_is_grey(tmp_path):
    path = save(tmp_path / "a.png", (9, 9))
    found = load_images([path], (9, 9), Preprocessing((0.0,), (1.0,), 1.0), channels=1)
    with Image.open(path) as picture:
        np.testing.assert_allclose(found[0, 0], np.asarray(picture.convert("L")) / 255.0, rtol=0, atol=1e-6)
    with pytest.raises(OptionError, match=r"--data: .*a.png cannot be given to a network of 2 channels"):
        load_images([path], (9, 9), Preprocessing((0.0,), (1.0,)), channels=2)


class TestStreamed:
    @pytest.fixture
    def streamed(self, tmp_path: Path) -> StreamedImages:
        files = tuple(save(tmp_path / f"{i}.png", (9, 7), i) for i in range(5))
        return StreamedImages(seeded_images(3, (6, 6), 0), files, HALF)

    def test_it_reads_like_the_array_of_all(self, streamed):
        everything = np.concatenate([streamed.held, load_images(streamed.files, (6, 6), HALF)])
        assert (len(streamed), streamed.shape, streamed.ndim) == (8, everything.shape, 4)
        for rows in (slice(None), slice(2, 5), slice(6, 20), np.array([7, 0, 7, 3]), np.array([], int)):
            np.testing.assert_array_equal(streamed[rows], everything[rows])

    def test_a_part_of_it_reads_nothing(self, streamed):
        everything = streamed[:]
        for path in streamed.files[1:]:
            path.unlink()
        rows = np.array([1, 3])
        part = only(streamed, rows)
        np.testing.assert_array_equal(part[:], everything[rows])
        np.testing.assert_array_equal(only(everything, rows), everything[rows])

    def test_an_image_that_went_away_is_said(self, streamed):
        streamed.files[2].unlink()
        with pytest.raises(OptionError, match=r"--data: .*2.png is not a readable image"):
            _ = streamed[5:6]


def test_memory_does_not_grow_by_the_images(tmp_path):
    """40 images of 448 pixels are 96 MB as inputs."""
    from slimc.compiler.export import export_network
    from slimc.compiler.load import load_network
    from slimc.compiler.options import CompileOptions
    from tests.artefacts import VECTORS

    content = torch.load(VECTORS["channel"], map_location="cpu", weights_only=False)
    content["args"].input_size = 448
    dim = content["model"]["patch_embed.proj.weight"].shape[0]
    generator = torch.Generator().manual_seed(0)
    content["model"]["patch_embed.proj.weight"] = torch.randn(dim, 3, 32, 32, generator=generator) * 0.02
    content["model"] = {key: value.clone() for key, value in content["model"].items()}
    shape = content["model"]["pos_embed"].shape[1]
    if shape - 1 != (448 // 32) ** 2:
        pytest.skip("the vector has another grid")
    torch.save(content, tmp_path / "c.pth")
    network = load_network(tmp_path / "c.pth")
    first = save(tmp_path / "few" / "0.bmp", (448, 448))
    for i in range(40):
        (tmp_path / "many").mkdir(exist_ok=True)
        (tmp_path / "many" / f"{i}.bmp").symlink_to(first)
    export_network(network, tmp_path / "m.onnx", CompileOptions(data=tmp_path / "few"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    export_network(network, tmp_path / "m.onnx", CompileOptions(data=tmp_path / "many"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB
