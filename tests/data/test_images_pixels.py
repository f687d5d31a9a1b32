"""Pixels are the released processor's to the last bit, and an independent NumPy bicubic's."""

import hashlib
import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from mm01_jax.data.images.__main__ import describe, main
from mm01_jax.data.images.opening import ImageError, open_image
from mm01_jax.data.images.processor import layout_of, make_tiles, normalise
from tests.data import image_samples
from tests.reference import bicubic
from tests.slow import slow_but

RECORDS = image_samples.records()
SMALL = [name for name, record in RECORDS.items() if record["W"] * record["H"] < 350_000 and record.get("tiles", 0) < 8]


def digests(tiles) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(tile).tobytes()).hexdigest() for tile in tiles]


@pytest.mark.parametrize("name", slow_but(SMALL, RECORDS))
def test_tiles_and_pixels_equal_the_released_processor_s(name):
    record = RECORDS[name]
    image = image_samples.make(record)
    if "error" in record:
        with pytest.raises(ImageError, match=f"{name}: .* shrinks to nothing"):
            make_tiles(image, image_samples.VISION, name)
        return
    tiles = make_tiles(image, image_samples.VISION, name)
    assert digests(tiles) == record["u8_sha256"]
    assert digests(normalise(tiles)) == record["f32_sha256"]


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if "error" not in record])
def test_resolution_tiles_map_and_tokens_equal_the_released_processor_s(name):
    record = RECORDS[name]
    layout = layout_of((record["W"], record["H"]), image_samples.VISION, name)
    assert [336 * count for count in layout.grid] == record["best_wh"]
    assert layout.num_tiles == record["tiles"]
    assert list(layout.map_size) == record["map_hw"][::-1]
    assert layout.num_tokens == record["tokens"]


def random_sizes(count: int) -> list[tuple[int, int, int, int]]:
    sizes = np.random.default_rng(0).integers(1, 400, size=(count, 4))
    return [(480, 640, 336, 336), (640, 480, 336, 336), *map(tuple, sizes.tolist())]


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_pillow_resizes_as_the_numpy_reference_rows_or_columns_first(count):
    random, firsts = np.random.default_rng(1), set()
    for width, height, new_width, new_height in random_sizes(count):
        pixels = random.integers(0, 256, size=(height, width, 3)).astype(np.uint8)
        resized = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BICUBIC)
        equal = [np.array_equal(resized, one) for one in bicubic.resize(pixels, new_width, new_height)]
        assert any(equal), (width, height, new_width, new_height)
        firsts.add(tuple(equal))
    assert {(True, False), (False, True)} <= firsts  # this Pillow's choice: some images one way, some the other


def reference_tiles(image: np.ndarray, side: int, grid: tuple[int, int], first: int) -> np.ndarray:
    """Thumbnail and tiles of an RGB image by the reference; `first` is the order of its two passes."""
    height, width = image.shape[:2]
    across, down = grid[0] * side, grid[1] * side
    wide = width / height > across / down
    new_width, new_height = (across, int(across * height / width)) if wide else (int(down * width / height), down)
    canvas = np.zeros((down, across, 3), np.uint8)
    top, left = (down - new_height) // 2, (across - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = bicubic.resize(image, new_width, new_height)[first]
    cut = [canvas[y : y + side, x : x + side] for y in range(0, down, side) for x in range(0, across, side)]
    return np.stack([bicubic.resize(image, side, side)[first], *cut])


@pytest.mark.parametrize("name", ["synth_640x480", "synth_101x103", "photo_chelsea"])
def test_wide_images_are_cut_as_the_numpy_reference_cuts_them(name):
    image = np.asarray(image_samples.make(RECORDS[name]))
    tiles = make_tiles(Image.fromarray(image), image_samples.VISION, name)
    grid = [pixels // 336 for pixels in RECORDS[name]["best_wh"]]
    equal = [np.array_equal(tiles, reference_tiles(image, 336, grid, first)) for first in (0, 1)]
    assert any(equal)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    exact = ((tiles / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    # Two roundings to float32 of numbers below 2.7, and those of mean and std.
    np.testing.assert_allclose(normalise(tiles), exact, rtol=0, atol=4 * 2.7 * 2.0**-24)


def test_describe_prints_what_the_fixture_has(tmp_path, capsys):
    record = RECORDS["synth_336x337"]
    path = tmp_path / "a.png"
    image_samples.make(record).save(path)
    assert main(["--describe", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {"name": str(path)} | {key: record[key] for key in found if key != "name"}
    assert main(["--describe", str(path), str(path)]) == 0
    line = f"{path}: 336 x 337 RGB, canvas 336 x 672, 3 tiles, map 24 x 24, 1,176 tokens\n"
    assert capsys.readouterr().out == 2 * line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "not said"),
        (["--describe"], "not said"),
        (["--describ", "a"], "nearest: --describe"),
        (["--describe", ""], "--describe: got ''; allowed: paths"),
    ],
)
def test_describe_says_in_a_line_what_was_typed_wrong(argv, says, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize("damage", ["cut", "a byte"])
def test_describe_names_the_picture_that_is_damaged(damage, tmp_path, capsys):
    sound, damaged = tmp_path / "a.png", tmp_path / "b.png"
    image_samples.make(RECORDS["synth_101x103"]).save(sound)
    content = bytearray(sound.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content if damage == "a byte" else content[: len(content) // 2])
    assert main(["--describe", str(sound), str(damaged)]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"mm01_jax.data.images: {damaged}: ") and error.count("\n") == 1
    assert error.endswith("the file is truncated or damaged\n")


def test_exif_orientation_is_ignored_as_the_released_processor_does_and_said(tmp_path):
    image = image_samples.make(RECORDS["synth_101x103"])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    found = describe(str(tmp_path / "turned.png"), image_samples.VISION)
    assert found["u8_sha256"] == RECORDS["synth_101x103"]["u8_sha256"]
    assert found["exif_orientation_ignored"] == 6


def test_a_jpeg_of_very_many_scans_is_refused_before_they_are_read():
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 10, 10)).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    assert open_image(whole).size == (64, 64)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match=r"has [23]\d\d scans, each as long to read as a picture; allowed are 100"):
        open_image(whole[:-2] + last * 200 + whole[-2:])


def tiff(tags: list[tuple[int, int]], pixels: bytes, then: int = 0) -> bytes:
    """A TIFF of 16 x 16 grey values; `then` is where the header of its next picture stands."""
    rows = [(256, 16), (257, 16), (258, 8), (262, 1), (277, 1), *tags]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(rows))
    at = struct.pack("<4sI", b"II*\0", 8 + len(pixels))
    return at + pixels + struct.pack("<H", len(rows)) + table + struct.pack("<I", then)


STRIP = [(259, 1), (273, 8), (278, 16), (279, 256)]


def test_pillow_s_warnings_and_errors_are_lines_that_name_the_picture(tmp_path, capfd):
    path = tmp_path / "a.tif"
    size, none = (struct.pack("<HHII", 279, 4, count, 256) for count in (1, 1 << 16))
    path.write_bytes(tiff(STRIP, bytes(256)).replace(size, none))
    assert describe(str(path), image_samples.VISION)["mode"] == "L"  # of its last tag Pillow warns
    path.write_bytes(tiff(STRIP, bytes(256), then=8))  # another picture, without a size
    assert main(["--describe", str(path)]) == 3
    assert capfd.readouterr().err == f"mm01_jax.data.images: {path}: has several frames; save the one that is meant\n"


def test_of_a_picture_of_very_many_frames_two_are_looked_at():
    head = b"GIF89a" + struct.pack("<HH", 4, 4) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    start = time.process_time()
    with pytest.raises(ImageError, match="has several frames"):
        open_image(head + (b"," + struct.pack("<HHHH", 0, 0, 4, 4) + b"\0\2\0") * 300_000 + b";")
    assert time.process_time() - start < 0.5


def test_a_tile_of_a_tiff_is_no_larger_than_a_picture_may_be():
    def tiled(sides: list[int]) -> bytes:
        data = zlib.compress(bytes(256))
        tags = [*zip((322, 323, 322), sides, strict=False), (259, 8), (324, 8), (325, len(data))]
        return tiff(tags, data)

    assert open_image(tiled([16, 16])).size == (16, 16)
    with pytest.raises(ImageError, match=r"take 2,990 MiB decoded \(784,000,000 pixels, L\); allowed: 192 MiB"):
        open_image(tiled([28_000, 28_000]))
    with pytest.raises(ImageError, match="the size of its tiles is none; its header is damaged"):
        open_image(tiled([28_000, 16, 16]))  # of two widths the library takes the first, Pillow the last


@pytest.mark.parametrize(
    ("mode", "kind", "side"), [("RGB", "PNG", 5_500), ("RGBA", "PNG", 4_600), ("RGB", "WEBP", 3_700)]
)
def test_a_picture_takes_much_memory_only_where_its_file_is_large_too(mode, kind, side):
    def file(mode: str, side: int) -> bytes:
        Image.new(mode, (side, side)).save(made := io.BytesIO(), kind)
        return made.getvalue()

    assert open_image(file(mode, side * 9 // 10)).width == side * 9 // 10
    with pytest.raises(ImageError, match=rf"take \d+ MiB decoded \({side**2:,} pixels, .*\); allowed: 192 MiB"):
        open_image(content := file(mode, side))
    content += bytes(side**2 // 5) if kind == "PNG" else b"VP8 " + struct.pack("<I", 1 << 25) + bytes(side**2 // 5)
    assert open_image(content).width == side  # a photograph's bytes


def test_very_many_chunks_and_segments_are_refused_before_they_are_read():
    made = {}
    for kind in ("PNG", "JPEG"):
        Image.new("RGB", (8, 8)).save(file := io.BytesIO(), kind)
        made[kind] = file.getvalue()
    chunk = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    for kind, at, piece in (("PNG", 33, chunk), ("JPEG", 2, b"\xff\xe1\0\2")):
        head, tail = made[kind][:at], made[kind][at:]
        assert open_image(head + piece * 900 + tail).size == (8, 8)
        with pytest.raises(ImageError, match="has more than 1,[0-9]+ (chunks|segments); allowed: one for each KiB"):
            open_image(head + piece * 2000 + tail)
