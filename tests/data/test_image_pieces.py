"""What a picture is made of: refused are very many pieces, and what is no sound PNG, before Pillow takes them."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from mm01_jax.data.images.decoding import decode, orientation
from mm01_jax.data.images.opening import ImageError, open_image


def gif(blocks: bytes, behind: bytes = b"") -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)).save(file := io.BytesIO(), "GIF")
    whole = file.getvalue()
    at = 13 + (3 << (whole[10] & 7) + 1)
    return whole[:at] + blocks + whole[at:-1] + behind + b";"


COMMENT = b"!\xfe\x01x\0"


@pytest.mark.parametrize(
    "made",
    [
        gif(COMMENT * 400_000),
        gif(b"!\xfe" + b"\1x" * 400_000 + b"\0"),
        gif(b"", COMMENT * 400_000),
        gif(bytes(400_000)),
    ],
    ids=["comments", "blocks of one comment", "comments behind the pixels", "nothing"],
)
def test_very_many_blocks_of_a_gif_are_refused_before_they_are_kept(made):
    start = time.process_time()
    with pytest.raises(
        ImageError, match="very many blocks that are very small; allowed: 10,000 reads and one for each 16"
    ):
        open_image(made)
    assert time.process_time() - start < 1


def test_a_gif_of_large_blocks_may_have_many():
    long = b"!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0"
    for made in (gif(long), gif(b"", long), gif(COMMENT * 900)):
        assert decode(open_image(made), "a.gif").size == (200, 200)


def tiff(*more: tuple[int, int, int, int], big: bool = False) -> bytes:
    """16 x 16 grey values, and tags of (number, type, count, value or place)."""
    at = 16 if big else 8
    one = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, at), (277, 1), (278, 16), (279, 256)]
    rows = sorted([*((tag, 4, 1, value) for tag, value in one if tag not in {row[0] for row in more}), *more])
    table = b"".join(struct.pack("<HHQQ" if big else "<HHII", *row) for row in rows)
    head = struct.pack("<4sHHQ", b"II+\0", 8, 0, at + 256) if big else struct.pack("<4sI", b"II*\0", at + 256)
    return head + bytes(256) + struct.pack("<Q" if big else "<H", len(rows)) + table + bytes(8 + (1 << 19))


@pytest.mark.parametrize("big", [False, True])
def test_a_tag_of_very_many_values_is_refused_before_they_are_read(big):
    assert open_image(tiff((700, 7, 100_000, 8), big=big)).size == (16, 16)  # bytes stay bytes
    assert open_image(tiff((60_000, 4, 65_536, 8), big=big)).size == (16, 16)
    with pytest.raises(ImageError, match=r"^an image: has a tag of 65,537 values; allowed are 65,536$"):
        open_image(tiff((60_000, 4, 65_537, 8), big=big))


def test_a_bigtiff_that_two_readers_read_differently_is_refused():
    with pytest.raises(ImageError, match="it is a BigTIFF of highest bytes first; its header is damaged"):
        open_image(b"MM\0+" + tiff()[4:])
    with pytest.raises(ImageError, match=r"it has 16,777,\d+ tags; allowed are 65,536"):
        open_image((whole := tiff(big=True))[:275] + b"\1" + whole[276:])


def test_words_of_python_s_own_are_no_cause():
    with pytest.raises(ImageError, match=r"^a.tif: the file is truncated or damaged$"):
        orientation(decode(open_image(tiff((700, 4, 4, 8))), "a.tif"), "a.tif")  # Pillow: got 'tuple'


def test_a_bmp_of_a_negative_width_is_called_so():
    Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "BMP")
    whole = file.getvalue()
    with pytest.raises(ImageError, match=r"^an image: has a width of -8 pixels; allowed is at least 1$"):
        open_image(whole[:18] + struct.pack("<i", -8) + whole[22:])


def png(*chunks: tuple[bytes, bytes], colours: int = 2) -> bytes:
    """A PNG of 2 x 2 pixels: 0, 1, 2 and 3."""
    head = (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, colours, 0, 0, 0))
    parts = [struct.pack(">I", len(data)) + kind + data for kind, data in (head, *chunks)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + struct.pack(">I", zlib.crc32(part[4:])) for part in parts)


NUMBERS = (b"IDAT", zlib.compress(b"\0\0\1\0\2\3"))
COLOURS = (b"IDAT", zlib.compress((b"\0" + bytes(6)) * 2))
END = (b"IEND", b"")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (png(NUMBERS, END, colours=3), "its pixels are numbers of colours and its palette is missing"),
        (png(NUMBERS, (b"PLTE", bytes(12)), END, colours=3), "and its palette is missing"),
        (png((b"PLTE", bytes(9)), NUMBERS, END, colours=3), "has a pixel of colour 3; its palette has 3"),
        (png((b"ABcD", b"x"), COLOURS, END), "has a chunk b'ABcD', which is none of PNG's"),
        (png(COLOURS), "has no chunk IEND at its end; the file is truncated or damaged"),
    ],
)
def test_what_is_no_sound_png_is_refused(made, says):
    with pytest.raises(ImageError, match=f"^a.png: .*{says}"):
        decode(open_image(made, "a.png"), "a.png")


def test_a_png_may_have_what_may_be_passed_over_and_unused_colours():
    for made in (png((b"abCd", b"x"), COLOURS, END), png((b"PLTE", bytes(12)), NUMBERS, END, colours=3)):
        assert decode(open_image(made + b"behind"), "a.png").size == (2, 2)


def beside(kind: str, nbytes: int) -> bytes:
    """A picture of 8 x 8 with so many bytes beside its pixels."""
    image, file = Image.new("RGB", (8, 8)), io.BytesIO()
    if kind == "PNG":
        image.save(file, kind)
        chunk = b"prVt" + bytes(nbytes - 13)  # and IHDR's
        whole = struct.pack(">I", nbytes - 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return file.getvalue()[:33] + whole + file.getvalue()[33:]
    if kind == "JPEG":
        image.save(file, kind)
        short, rest = divmod(nbytes, 65_000)
        parts = [
            b"\xff\xe1" + struct.pack(">H", size) + b"Exif\0\0" + bytes(size - 8) for size in [65_000] * short + [rest]
        ]
        return b"\xff\xd8" + b"".join(parts) + file.getvalue()[2:]
    image.save(file, kind, icc_profile=bytes(nbytes))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_what_stands_beside_the_pixels_is_bounded_before_it_is_kept(kind):
    start = time.process_time()
    assert open_image(beside(kind, 1_000_000)).size == (8, 8)
    with pytest.raises(ImageError, match=r"has 2\d,\d+,\d+ bytes beside its pixels .*; allowed are 16,777,216: save"):
        open_image(beside(kind, 20_000_000))
    assert time.process_time() - start < 1
