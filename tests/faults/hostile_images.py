"""Images that are none, or not what they seem: what `mm01-generate --image` says of each, how long it took, its memory.

python -m tests.faults.hostile_images > tests/faults/hostile_images.md

`refusal` is the same where data are read: there an image may not lie outside its folder.
"""

import atexit
import functools
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

from mm01_jax.data.images.decoding import decode
from mm01_jax.data.images.opening import FORMATS, ImageError, open_image
from tests.command_line import Parser
from tests.data import image_samples
from tests.faults.forked import Ended, Server

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
    "a device": (lambda path: path.symlink_to("/dev/zero"), "outside the data's folder|is a device"),
    "a link out of the folder": (
        lambda path: path.symlink_to("/etc/hostname"),
        "outside the data's folder|is no image",
    ),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links|Symlink loop"),
    "an empty file": (written(b""), "is empty"),
    "a sparse file of 1 TB": (sparse, "bytes; allowed are"),
    "SVG": (written(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "SVG drawing"),
    "SVG behind an XML head": (written(b"<?xml version='1.0'?>\n<svg/>"), "SVG drawing"),
    "HTML": (written(b"<!doctype html><p>not found"), "is no image"),
    "text": (written(b"hello"), "is no image"),
    "PDF": (written(b"%PDF-1.7\n"), "is no image"),
    "HEIC": (written(b"\0\0\0\x18ftypheic" + bytes(40)), "HEIC or AVIF"),
    "AVIF": (written(b"\0\0\0\x18ftypavif" + bytes(40)), "HEIC or AVIF"),
    "zip": (written(b"PK\x03\x04" + bytes(60)), "is no image"),
    "PNG of 50,000 x 50,000": (written(png_header(50_000, 50_000)), "pixels; allowed are"),
    "PNG of 2^31 - 1 pixels a side": (written(png_header(2**31 - 1, 2**31 - 1)), "pixels; allowed are|damaged"),
    "PNG of 9,000 x 9,000": (written(png_header(9_000, 9_000)), "pixels; allowed are"),
    "PNG of 0 x 5": (written(png_header(0, 5)), "has 0 x 5 pixels; allowed is at least 1 x 1"),
    "PNG of 5 x 0": (written(png_header(5, 0)), "has 5 x 0 pixels; allowed is at least 1 x 1"),
    "PNG, its header alone": (written(png_header(30, 30)), "damaged"),
    "animated GIF": (written(animated("gif")), "has several frames"),
    "animated PNG": (written(animated("png")), "has several frames"),
    "animated WebP": (written(animated("webp")), "has several frames"),
    "TIFF of three pages": (written(animated("tiff")), "has several frames"),
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
            "truncated or damaged|header is damaged",
        )
    CASES[f"{_kind}, its first bytes alone"] = (written(_whole[:16]), "truncated or damaged|header is damaged")


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


@functools.cache
def _server() -> Server:
    server = Server("tests.faults.hostile_images", "mm01_jax.inference.__main__", "mm01_jax.inference.pictures")
    server.__enter__()
    atexit.register(server.__exit__)
    return server


def asked_about(path: str) -> int:
    """`mm01-generate` with the image, before a checkpoint is read: the folder holds none."""
    from mm01_jax.inference.__main__ import main as generate

    return generate([f"--checkpoint={pathlib.Path(path).parent}", f"--image={path}", "--prompt=<image>?"])


def typed(name: str, room: pathlib.Path) -> Ended:
    """How a process of `mm01-generate` ended that was given the image."""
    (room / "in").mkdir()
    path = room / "in" / "picture"
    CASES[name][0](path)
    return _server().call("tests.faults.hostile_images:asked_about", str(path), room=room)


def main(argv: list[str] | None = None) -> int:
    Parser("tests.faults.hostile_images", __doc__).parse_args(argv)
    print(f"# Hostile images\n\n{len(CASES)} of them; `python -m tests.faults.hostile_images`.\n")
    print("| image | exit code | what `mm01-generate --image` says |\n| --- | --- | --- |")
    taken, slowest, most = 0, 0.0, 0
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            ended = typed(name, pathlib.Path(folder))
        said = ended.told.strip().replace(f"{folder}/in/", "").replace("|", "/").replace("\n", " ")
        taken += ended.code == 0
        slowest, most = max(slowest, ended.processor), max(most, ended.memory)
        print(f"| {name} | {ended.code} | {said[:200]} |")
    print(f"\nThe slowest took {slowest:.2f} s of the processor, the largest {most / 2**20:.0f} MiB.")
    return 1 if taken else 0


if __name__ == "__main__":
    sys.exit(main())
