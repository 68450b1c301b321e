"""Pictures of every kind look as they should, or are refused by name."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from slimc.errors import OptionError
from slimc.files.picture import check_picture, read_picture

RAMP = np.linspace(0, 1, 40 * 30).reshape(40, 30)
EIGHT = np.rint(RAMP * 255).astype(np.uint8)


def read(path: Path, channels: int = 3) -> np.ndarray:
    check_picture(path)
    return np.asarray(read_picture(path, channels)).astype(int)


def assert_grey(found: np.ndarray, expected: np.ndarray = EIGHT, within: int = 1) -> None:
    assert found.shape == (*expected.shape, 3)
    assert np.abs(found - expected[..., None].astype(int)).max() <= within


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_range(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(path)
    assert_grey(read(path))
    assert np.abs(read(path, 1) - EIGHT).max() <= 1


def test_16_bits_of_a_pgm_keep_their_range(tmp_path):
    values = (RAMP * 1000).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n30 40\n1000\n" + values.tobytes())
    assert_grey(read(tmp_path / "a.pgm"))


def test_16_bits_a_colour_keep_their_range(tmp_path):
    values = np.stack([RAMP * 65535] * 3, axis=2).astype(">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 30, 40, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    assert_grey(read(tmp_path / "a.png"))


@pytest.mark.parametrize("bits", [12, 16])
def test_tiffs_of_12_bits_and_with_a_white_zero_are_understood(bits, tmp_path):
    """Pillow writes neither: 12 bits are packed, and the tags say what the values mean."""
    white = 2**bits - 1
    values = np.rint((1 - RAMP) * white).astype(np.uint16)
    if bits == 16:
        data = values.astype("<u2").tobytes()
    else:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = np.stack(
            [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
        ).astype(np.uint8)
        data = packed.tobytes()
    inverted = bits == 16
    tags = [(256, 30), (257, 40), (258, bits), (259, 1), (262, 0 if inverted else 1), (273, 0), (277, 1), (278, 40)]
    tags += [(279, len(data))]
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, offset if tag == 273 else value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(header + data)
    assert_grey(read(tmp_path / "a.tif"), EIGHT if inverted else 255 - EIGHT)


def test_floating_point_from_0_to_1_is_taken_and_other_ranges_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(np.float32)).save(path)
    assert_grey(read(path))
    for values in (RAMP * 255, RAMP - 0.5, np.full((4, 4), np.nan)):
        Image.fromarray(values.astype(np.float32)).save(path)
        with pytest.raises(OptionError, match=r"a.tif has floating point values .* expected 0 to 1"):
            check_picture(path)


def test_32_bit_integers_are_refused(tmp_path):
    Image.fromarray((RAMP * 1000).astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(OptionError, match=r"a.tif has integers of 32 bits"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [*((mode, "png") for mode in ("1", "L", "LA", "P", "RGBA")), *((m, "tif") for m in ("CMYK", "YCbCr", "PA"))],
)
def test_other_modes_look_as_torchvisions_loader_shows_them(mode, suffix, tmp_path):
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    path = tmp_path / f"a.{suffix}"
    colour.convert(mode).save(path)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB")).astype(int)
    assert np.abs(read(path) - expected).max() <= 1


def test_transparency_keeps_its_colours(tmp_path):
    values = np.zeros((4, 4, 4), np.uint8)
    values[..., 0] = 200
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == [200, 0, 0]).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=bytes([255, 0]))
    assert (read(tmp_path / "p.png") == [10, 20, 30]).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_applied(suffix, orientation, tmp_path):
    path = tmp_path / f"a.{suffix}"
    picture = Image.fromarray(EIGHT)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.convert("RGB").save(path, exif=exif, quality=100)
    turned = picture.copy()
    turned.getexif()[0x0112] = orientation
    assert_grey(read(path), np.asarray(ImageOps.exif_transpose(turned)), within=6)


def test_a_rotation_of_16_bits_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert_grey(read(tmp_path / "a.png"), np.rot90(EIGHT, -1))


def test_exif_that_is_damaged_turns_nothing(tmp_path):
    Image.fromarray(EIGHT).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense", quality=100)
    assert_grey(read(tmp_path / "a.jpg"), within=3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
def test_a_truncated_file_is_found(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(path)
    check_picture(path)
    content = path.read_bytes()
    for keep in (0, 20, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:keep])
        with pytest.raises(OptionError, match=rf"a.{suffix} is not a readable image"):
            check_picture(path)


def test_a_damaged_png_is_found(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(OptionError, match="is not a readable image"):
        check_picture(path)


def test_a_decompression_bomb_is_refused_by_name(tmp_path):
    Image.new("1", (12_000, 9_000)).save(tmp_path / "bomb.png")
    for function in (check_picture, read_picture):
        with pytest.raises(OptionError, match=r"bomb.png has more pixels than 89,478,485: a decompression bomb"):
            function(tmp_path / "bomb.png")


def test_other_numbers_of_channels_are_refused(tmp_path):
    Image.fromarray(EIGHT).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match="a network of 4 channels; expected 1 or 3"):
        read_picture(tmp_path / "a.png", 4)


def test_a_link_to_nothing_is_said(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(OptionError, match=r"a.png is not a readable image \(No such file"):
        check_picture(tmp_path / "a.png")
