"""Where pictures are decoded: what may take long, grow or end its process does so in another, with the same pixels."""

import concurrent.futures
import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mm01_jax.data.images import decoding, opening
from mm01_jax.data.images.__main__ import main
from mm01_jax.data.images.decoding import check_whole, decode, orientation
from mm01_jax.data.images.opening import ImageError, open_image
from mm01_jax.data.images.pieces import is_huffman
from mm01_jax.data.images.processor import make_tiles
from tests.data import image_samples

MODES = ("1", "L", "P", "RGB", "RGBA", "LA")
SAVED = [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}), ("WEBP", {"lossless": True})]
EACH = [(mode, *one) for mode in MODES for one in SAVED] + [("CMYK", *one) for one in SAVED[:2]]


def saved(image: Image.Image, kind: str, **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def sample(mode: str, width: int = 61, height: int = 43) -> Image.Image:
    whole = Image.fromarray(image_samples.synth(width, height))
    return whole if mode == "RGB" else image_samples.in_mode(mode, width, height)


@pytest.mark.parametrize(("mode", "kind", "options"), EACH)
def test_pixels_of_the_process_are_pillow_s(mode, kind, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(sample(mode), kind, exif=exif, **options)
    wanted = Image.open(io.BytesIO(content))
    wanted.load()
    found = decode(open_image(content), "a")
    assert (found.mode, found.size, found.tobytes()) == (wanted.mode, wanted.size, wanted.tobytes())
    tiles = [make_tiles(image, image_samples.VISION, "a") for image in (found, wanted)]
    np.testing.assert_array_equal(*tiles)
    assert orientation(found, "a") == wanted.getexif().get(0x0112)
    check_whole(content, "a")


def test_a_picture_of_many_bands_is_whole_and_threads_have_a_process_each(monkeypatch):
    monkeypatch.setattr(decoding, "_POOL", type(decoding._POOL)(decoding._POOL._program, {}))
    pictures = [sample("RGB", 1500, 900 + n) for n in range(4)]
    files = [saved(picture, "TIFF") for picture in pictures]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda content: decode(open_image(content), "a"), files))
    assert [one.tobytes() for one in found] == [one.tobytes() for one in pictures]
    assert 1 < len(decoding._POOL._idle) <= 4


def slow_bmp() -> bytes:
    """Four million runs of a pixel each, which Pillow reads one by one."""
    head = struct.pack("<IiiHHIIiiII", 40, 4000, 2000, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + head + bytes(1024) + b"\1\5" * 8_000_000


def tiff(data: bytes, compression: int, side: int = 100, tile: int = 0) -> bytes:
    """A TIFF of grey values; of tiles that are all the same bytes, where they have a side."""
    n = (side // tile) ** 2 if tile else 1
    tags = [(256, 1, side), (257, 1, side), (258, 1, 8), (259, 1, compression), (262, 1, 1), (277, 1, 1)]
    tags += [(322, 1, tile), (323, 1, tile)] if tile else [(278, 1, side)]
    places = (324, 325) if tile else (273, 279)
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    for tag, value in zip(places, (at + 8 * n * (n > 1), len(data)), strict=True):
        tags.append((tag, n, value if n == 1 else at + 4 * n * (tag == 325)))
    table = b"".join(struct.pack("<HHII", tag, 4, *rest) for tag, *rest in sorted(tags))
    lists = struct.pack(f"<{n}I", *[at + 8 * n] * n) + struct.pack(f"<{n}I", *[len(data)] * n) if n > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4) + lists + data


def slow_tiff() -> bytes:
    """729 tiles that are the same JPEG of ninety scans."""
    whole = saved(Image.effect_noise((256, 256), 90), "JPEG", progressive=True, quality=60)
    return tiff(whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * 85 + b"\xff\xd9", 7, 6912, 256)


@pytest.mark.parametrize("made", [slow_bmp, slow_tiff])
def test_a_picture_that_takes_long_to_decode_is_refused_and_the_next_is_read(made, monkeypatch):
    monkeypatch.setattr(decoding, "_MOST_SECONDS", 0.5)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for check in (lambda image: decode(image, "a.x"), lambda image: check_whole(image.content, "a.x")):
        with pytest.raises(ImageError, match=r"^a\.x: decoding it takes too long$"):
            check(open_image(made(), "a.x"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 6  # alone they take 8 s and 20 s
    assert decode(open_image(saved(sample("L"), "GIF")), "b.gif").size == (61, 43)


def test_a_picture_that_takes_much_memory_to_decode_is_refused(monkeypatch):
    content = saved(Image.new("RGB", (4000, 3000)), "TIFF", compression="tiff_lzw")
    assert decode(open_image(content), "a.tif").size == (4000, 3000)
    monkeypatch.setattr(decoding, "_MEMORY", -80 << 20)
    with pytest.raises(ImageError, match=r"^a\.tif: decoding it takes more than \d+ MiB of memory$"):
        decode(open_image(content, "a.tif"), "a.tif")


def test_a_process_that_has_ended_while_nothing_was_asked_is_replaced():
    content = saved(sample("L"), "GIF")
    decode(open_image(content), "a.gif")
    for process in decoding._POOL._idle:
        process._process.kill()
        process._process.wait()
    assert decode(open_image(content), "a.gif").size == (61, 43)


@pytest.mark.parametrize(("data", "compression"), [(bytes(range(250)), 5), (zlib.compress(bytes(4000)), 8)])
def test_what_libtiff_says_on_stderr_is_one_line_of_ours(data, compression, tmp_path, capfd):
    (path := tmp_path / "a.tif").write_bytes(tiff(data, compression))
    assert main(["--describe", str(path)]) == 3
    error = capfd.readouterr().err
    assert error.startswith(f"mm01_jax.data.images: {path}: ") and error.count("\n") == 1


def test_a_jpeg_is_decoded_here_where_every_reader_finds_huffman_s_code_in_it():
    for options in ({}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(99)}):
        assert is_huffman(saved(sample("RGB"), "JPEG", **options))
    whole = saved(sample("RGB"), "JPEG")
    at = whole.index(b"\xff\xc0")
    size = 2 + int.from_bytes(whole[at + 2 : at + 4])
    frame, other = whole[at : at + size], b"\xff\xc9" + whole[at + 2 : at + size]
    hidden = b"\xff\xd0" + struct.pack(">H", 2 + len(other) + 4) + other + b"\xff\xfe" + struct.pack(">H", 2 + size)
    for more in (other, frame + other, hidden + frame, b"junk" + frame, b""):
        assert not is_huffman(whole[:at] + more + whole[at + size :])
    assert is_huffman(whole[:at] + b"\xff\xff" + whole[at:])


def test_scans_of_a_jpeg_are_bounded_with_its_pixels():
    whole = saved(sample("L"), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    size = whole.index(b"\xff\xc2") + 5
    large = whole[:size] + struct.pack(">HH", 7000, 7000) + whole[size + 4 : -2]
    assert open_image(large + last * 20 + b"\xff\xd9").size == (7000, 7000)
    with pytest.raises(ImageError, match=r"has 3\d scans, .*; allowed are 27 of 7000 x 7000 pixels$"):
        open_image(large + last * 25 + b"\xff\xd9")


def test_a_picture_that_is_mostly_holes_is_refused_unread(tmp_path, monkeypatch):
    (path := tmp_path / "a.bmp").write_bytes(saved(sample("RGB"), "BMP"))
    os.truncate(path, 200 << 20)
    monkeypatch.setattr(opening.Door, "read", None)
    with pytest.raises(ImageError, match=r"a\.bmp: is mostly holes: .* of its 209,715,200 are not on the disk"):
        open_image(path)


def test_a_name_that_moves_the_cursor_is_said_escaped(tmp_path, capsys):
    path = tmp_path / "\x1b[2J.png"
    sample("RGB").save(path)
    assert main(["--describe", str(path), str(path.with_name("\x1bnone.png"))]) == 3
    assert main(["--describe", str(path)]) == 0
    said = capsys.readouterr()
    assert "\\x1b[2J.png: 61 x 43" in said.out and "\x1b" not in said.out + said.err
