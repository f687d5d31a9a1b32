"""Pixels of images. What a decoder may take without end, or end with, it takes in a process of its own.

In this one are decoded PNG, JPEG of Huffman's code and BMP whose pixels are plain: their time is in proportion to what
`opening.py` bounds. All others are decoded there (`serve`), with a bounded time of the processor and bounded memory.
"""

import contextlib
import json
import sys
from collections.abc import Iterator

from PIL import Image

from mm01_jax.data.apart import Ended, Pool, Process
from mm01_jax.data.images.opening import cost_of, open_image, pillow
from mm01_jax.data.images.pieces import ImageError, is_huffman
from mm01_jax.data.tokenizer_process import confine, stay
from mm01_jax.files import parse_json

# Seconds of the processor. Measured are at most a third: of noise in WebP or LZMA 0.1 s a megapixel of 2 MiB.
_SECONDS, _A_MEGAPIXEL, _A_MIB, _MOST_SECONDS = 2.0, 0.06, 0.06, 7.0
_WALL_SECONDS = 120.0  # of a machine that is busy with other things
_MEMORY, _TIMES = 96 << 20, 3  # bytes of memory, and so many for each of the file; and one and a half of `cost_of`
_BAND = 1 << 22  # bytes of pixels that are told at a time
_EXIF_ORIENTATION = 0x0112
_POOL = Pool(["-c", "from mm01_jax.data.images.decoding import serve; serve()"], {})


def decode(image: Image.Image, name: str) -> Image.Image:
    """The image, of `open_image`, with its pixels in memory.

    Raises:
      ImageError: it is truncated or damaged.
    """
    content = getattr(image, "content", None)  # of an image that another has opened it is not known
    return _here(image, name) if content is None or _is_plain(image, content) else _apart(image, content, name)


def check_whole(content: bytes, name: str) -> None:
    """Whether a file is sound to its end, with as little decoding as tells so.

    PNG has checksums; a JPEG is decoded at an eighth of its size, which reads all of it; others are decoded.

    Raises:
      ImageError: as `open_image` and `decode`.
    """
    with open_image(content, name) as image, pillow(name):
        if not _is_plain(image, content):
            _apart(image, content, name, only_check=True)
        elif image.format == "PNG":
            image.verify()
        else:
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()


def orientation(image: Image.Image, name: str) -> int | None:
    """What EXIF says of a decoded image: of a PNG it lies behind the pixels; errors as of `decode`."""
    with pillow(name):
        return image.getexif().get(_EXIF_ORIENTATION)


def _is_plain(image: Image.Image, content: bytes) -> bool:
    if image.format in ("JPEG", "MPO"):
        return is_huffman(content)
    return image.format == "PNG" or (image.format == "BMP" and all(tile[0] == "raw" for tile in image.tile))


def _here(image: Image.Image, name: str) -> Image.Image:
    with pillow(name):
        colours = len(image.palette.palette) // 3 if image.format == "PNG" and image.mode == "P" else 256
        image.load()
        if colours < 256 and (last := image.getextrema()[1]) >= colours:
            raise ImageError(f"{name}: has a pixel of colour {last}; its palette has {colours}")
    return image


def _apart(image: Image.Image, content: bytes, name: str, only_check: bool = False) -> Image.Image:
    """The image as the process decodes it; without its pixels where it is only to be checked."""
    seconds = _SECONDS + _A_MEGAPIXEL * image.width * image.height / 1e6 + _A_MIB * len(content) / 2**20
    memory = _MEMORY + _TIMES * len(content) + cost_of(image, content, name) * 3 // 2
    head = {"name": name, "only_check": only_check}
    with pillow(name):
        try:
            with _POOL.asked(head, content, seconds=min(seconds, _MOST_SECONDS), memory=memory) as process:
                return _heard(process, only_check)
        except Ended as error:
            raise ImageError(f"{name}: decoding it {error}") from None


def _heard(process: Process, only_check: bool) -> Image.Image:
    found, palette = process.hear(_WALL_SECONDS)
    if "error" in found:
        raise ImageError(found["error"])
    made = Image.new(found["mode"], found["width_height"])
    if palette:
        made.putpalette(palette)
    if found["orientation"] is not None:
        made.getexif()[_EXIF_ORIENTATION] = found["orientation"]
    top = made.height if only_check else 0
    while top < made.height:
        band, pixels = process.hear(_WALL_SECONDS)
        made.paste(Image.frombytes(made.mode, (made.width, band["rows"]), pixels), (0, top))
        top += band["rows"]
    return made


def serve() -> None:
    """What the process does: decodes images until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        request = parse_json(line)
        stay(request["bytes"])
        confine(request["seconds"])
        try:
            for head, content in _answer(requests.read(request["size"]), request):
                answers.write(json.dumps(head | {"size": len(content)}).encode() + b"\n")
                answers.write(content)
        except ImageError as error:
            memory = f"{request['name']}: decoding it takes more than {request['bytes'] >> 20:,} MiB of memory"
            said = memory if isinstance(error.__cause__, MemoryError) else str(error)
            answers.write(json.dumps({"error": said, "size": 0}).encode() + b"\n")
        answers.flush()


def _answer(content: bytes, request: dict) -> Iterator[tuple[dict, bytes]]:
    """What the image is, then its rows, some after the other."""
    name = request["name"]
    with open_image(content, name) as image, pillow(name):
        image.load()
        turned = None
        with contextlib.suppress(Exception):  # it says nothing of the pixels
            turned = image.getexif().get(_EXIF_ORIENTATION)
        palette = bytes(image.getpalette("RGB")) if image.mode == "P" else b""
        turned = turned if isinstance(turned, int) else None
        yield {"mode": image.mode, "width_height": image.size, "orientation": turned}, palette
        rows = max(1, _BAND // (4 * image.width))
        for top in () if request["only_check"] else range(0, image.height, rows):
            bottom = min(image.height, top + rows)
            yield {"rows": bottom - top}, image.crop((0, top, image.width, bottom)).tobytes()
