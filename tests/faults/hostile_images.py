"""Images that are none, or not what they seem, through `open_image` and `decode`: what is said, how long it took.

python -m tests.faults.hostile_images > tests/faults/hostile_images.md
"""

import io
import os
import pathlib
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable

from PIL import Image

from mm01_jax.data.images.opening import FORMATS, ImageError, decode, open_image
from tests.command_line import Parser
from tests.data import image_samples

Make = Callable[[pathlib.Path], object]


def saved(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    image_samples.in_mode(mode, 60, 40).save(file, kind, **options) if mode != "RGB" else Image.fromarray(
        image_samples.synth(60, 40)
    ).save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 1 << 20) + b"IDAT" + zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + data


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(image_samples.synth(20, 20, k)) for k in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def sparse(path: pathlib.Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def written(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


CASES: dict[str, tuple[Make, str]] = {
    "nothing there": (lambda path: None, "No such file"),
    "a directory": (lambda path: path.mkdir(), "is a directory"),
    "a FIFO": (lambda path: os.mkfifo(path), "is a FIFO"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "outside the data's folder"),
    "a link out of the folder": (lambda path: path.symlink_to("/etc/hostname"), "outside the data's folder"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links|Symlink loop"),
    "an empty file": (written(b""), "is empty"),
    "a sparse file of 1 TB": (sparse, "bytes; allowed are"),
    "SVG": (written(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "SVG drawing"),
    "SVG behind an XML head": (written(b"<?xml version='1.0'?>\n<svg/>"), "SVG drawing"),
    "HTML": (written(b"<!doctype html><p>not found"), "no image that is read"),
    "text": (written(b"hello"), "no image that is read"),
    "PDF": (written(b"%PDF-1.7\n"), "no image that is read"),
    "HEIC": (written(b"\0\0\0\x18ftypheic" + bytes(40)), "HEIC or AVIF"),
    "AVIF": (written(b"\0\0\0\x18ftypavif" + bytes(40)), "HEIC or AVIF|no image that is read"),
    "zip": (written(b"PK\x03\x04" + bytes(60)), "no image that is read"),
    "PNG of 50,000 x 50,000": (written(png_header(50_000, 50_000)), "pixels; allowed are"),
    "PNG of 2^31 - 1 pixels a side": (written(png_header(2**31 - 1, 2**31 - 1)), "pixels; allowed are|damaged"),
    "PNG of 9,000 x 9,000": (written(png_header(9_000, 9_000)), "pixels; allowed are"),
    "PNG of 0 x 5": (written(png_header(0, 5)), "damaged|at least 1 x 1|no image that is read"),
    "PNG of 5 x 0": (written(png_header(5, 0)), "damaged|at least 1 x 1|no image that is read"),
    "PNG, its header alone": (written(png_header(30, 30)), "damaged"),
    "animated GIF": (written(animated("gif")), "has 3 frames"),
    "animated PNG": (written(animated("png")), "has 3 frames"),
    "animated WebP": (written(animated("webp")), "has 3 frames"),
    "TIFF of three pages": (written(animated("tiff")), "has 3 frames"),
    "16-bit grey PNG": (written(saved("png", "I;16")), "more than 8 bits"),
    "16-bit grey TIFF": (written(saved("tiff", "I;16")), "more than 8 bits"),
    "32-bit grey TIFF": (written(saved("tiff", "I")), "more than 8 bits"),
    "float TIFF": (written(saved("tiff", "F")), "more than 8 bits"),
}
for _kind in FORMATS:
    _whole = saved(_kind.lower())
    for _share in (0.1, 0.5, 0.8, 0.95):
        CASES[f"{_kind} cut at {_share:.0%}"] = (
            written(_whole[: int(len(_whole) * _share)]),
            "truncated or damaged|header is damaged|no image that is read",
        )
    CASES[f"{_kind}, its first bytes alone"] = (written(_whole[:16]), "damaged|no image that is read|truncated")


def refusal(name: str, folder: pathlib.Path) -> tuple[str, float]:
    """(what was said, "" when it was taken; seconds)."""
    path = folder / "picture"
    CASES[name][0](path)
    start = time.perf_counter()
    try:
        decode(open_image(path, "picture", folder), "picture")
    except ImageError as error:
        return str(error), time.perf_counter() - start
    return "", time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    Parser("tests.faults.hostile_images", __doc__).parse_args(argv)
    print(f"# Hostile images\n\n{len(CASES)} of them; `python -m tests.faults.hostile_images`.\n")
    print("| image | what is said |\n| --- | --- |")
    taken, slowest = 0, 0.0
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            said, seconds = refusal(name, pathlib.Path(folder))
        taken, slowest = taken + (not said), max(slowest, seconds)
        print(f"| {name} | {said.replace('|', '/')[:160] or 'TAKEN'} |")
    print(f"\nThe slowest took {slowest:.2f} s.")
    return 1 if taken else 0


if __name__ == "__main__":
    sys.exit(main())
