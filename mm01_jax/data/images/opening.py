"""Image files as Pillow images; what is no sound still picture is refused by name, from its header where it can be.

Read are PNG, JPEG, WebP, BMP, GIF and TIFF. A picture is taken as the released processor takes it: in its own mode (it
is resized in that mode), its EXIF orientation ignored, alpha dropped. Three kinds are refused instead, because that
processor destroys them: 16-bit grey (all white there), 32-bit grey (cut off at 255), palettes with alpha (all black).
"""

import contextlib
import logging
import math
import os
import pathlib
import stat
import warnings
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from mm01_jax import holes
from mm01_jax.data.images.pieces import BEGINS, SCAN, ImageError, check_png, opened, tags
from mm01_jax.files import Door, shown
from mm01_jax.values import nearest_words

Source = str | os.PathLike | bytes | Image.Image  # a path, the bytes of a file, or an image that is open already
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 1 << 28  # of a file
MAX_PIXELS = 1 << 26  # 8192 x 8192; decoded, three bytes a pixel
_MEMORY, _FOR_A_BYTE = 192 << 20, 100  # bytes that decoding and resizing may take, or so many for each of the file
# Bytes a pixel, measured: a copy is made for alpha; WebP has two canvases of its own; all else has four channels.
_COSTS = {"1": 4, "L": 4, "P": 4, "LA": 10, "RGBA": 10}
_PLAIN, _WEBP = 7, 17
MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "CMYK", "YCbCr", "HSV")
_MOST_SCANS = 100  # of a progressive JPEG, which has some ten; of four colours 18
_MOST_SCANNED = 20 * MAX_PIXELS  # by all of them together
_TILE = (322, 323)  # a TIFF's tags of a tile's width and length
# Of others the words are Python's own, of its types.
_SAY_WHAT_IS_WRONG = (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError)
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # as its warnings in `pillow`


def open_image(source: Source, name: str | None = None, root: pathlib.Path | None = None) -> Image.Image:
    """The image, its header read and checked, its pixels not decoded.

    Args:
      name: what messages call it; the path itself where it is one.
      root: a folder that the file must lie in, links followed.

    Raises:
      ImageError: what is wrong with it.
    """
    name = name or ("an image" if isinstance(source, bytes | Image.Image) else shown(os.fspath(source)))
    if isinstance(source, Image.Image):
        with pillow(name, "its header is damaged"):
            _check_header(source, name)
        return source
    image = _identify(content := content_of(source, name, root), name)
    image.content = content  # for `decoding.py`
    with pillow(name, "its header is damaged"):
        _check_header(image, name)
        _check_cost(image, content, name)
        if image.format == "PNG":
            check_png(content, name)
            if image.mode == "P" and image.palette is None:
                raise ImageError(f"{name}: its pixels are numbers of colours and its palette is missing")
    return image


@contextlib.contextmanager
def pillow(name: str, wrong: str = "the file is truncated or damaged") -> Iterator[None]:
    """A context of all that Pillow does with a stranger's file: it warns of nothing, and what it raises is ImageError.

    Its warnings stay off: what is put back at the end, as it was, would be what another thread has changed meanwhile.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # its decoders raise whatever the damage leads them to
        said = f"{_why(error)}; {wrong}" if isinstance(error, _SAY_WHAT_IS_WRONG) else wrong
        raise ImageError(f"{name}: {said}") from error


def content_of(source: str | os.PathLike | bytes, name: str, root: pathlib.Path | None = None) -> bytes:
    """The file's bytes; what is no regular file is never opened (a FIFO would wait for a writer).

    Args and errors as of `open_image`.
    """
    if isinstance(source, bytes):
        return source
    path = pathlib.Path(source)
    try:
        status = path.stat()
        real = path.resolve(strict=True)
        if root is not None and not real.is_relative_to(root.resolve()):
            raise ImageError(f"{name}: lies outside the data's folder {root}, at {real}")
        if not stat.S_ISREG(kind := status.st_mode):
            words = "a directory" if stat.S_ISDIR(kind) else "a FIFO" if stat.S_ISFIFO(kind) else "a device or a socket"
            raise ImageError(f"{name}: is {words}, not a file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{name}: has {status.st_size:,} bytes; allowed are {MAX_BYTES:,}")
        with Door(ImageError).open(real, most=MAX_BYTES) as file:
            holes.refuse(file)
        return Door(ImageError).read(real, most=MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        meant = nearest_words(path) if root is None and isinstance(error, FileNotFoundError) else ""
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}{meant}") from error


def _identify(content: bytes, name: str) -> Image.Image:
    with pillow(name, "its header is damaged"):
        try:
            # Between its two limits Pillow warns and goes on; here the one limit is `MAX_PIXELS`, below both.
            image = Image.open(opened(content, name), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError(f"{name}: {_what_it_is(content[:1024])}") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name}: {_too_large(content[:22])}") from error
    most = min(_MOST_SCANS, _MOST_SCANNED // max(1, image.width * image.height))
    if image.format in ("JPEG", "MPO") and (scans := content.count(SCAN)) > most:
        what = f"has {scans:,} scans, each as long to read as a picture"
        raise ImageError(f"{name}: {what}; allowed are {most} of {image.width} x {image.height} pixels")
    return image


def _check_cost(image: Image.Image, content: bytes, name: str) -> None:
    """A picture may take much memory where its file is large, too: a photograph's is, one that is made to be is not."""
    if (cost := cost_of(image, content, name)) > (most := max(_MEMORY, _FOR_A_BYTE * len(content))):
        pixels = cost // _each(image)
        what = f"its {len(content):,} bytes take {cost >> 20:,} MiB decoded ({pixels:,} pixels, {image.mode})"
        raise ImageError(
            f"{name}: {what}; allowed: {most >> 20:,} MiB. A smaller one says as much: it is resized anyway"
        )


def cost_of(image: Image.Image, content: bytes, name: str) -> int:
    """Bytes of memory that decoding and resizing it take; errors as of `open_image`."""
    tile = _tile_pixels(image, content, name) if image.format == "TIFF" else 0
    return max(image.width * image.height, tile) * _each(image)


def _each(image: Image.Image) -> int:
    return _WEBP if image.format == "WEBP" else _COSTS.get(image.mode, _PLAIN)


def _tile_pixels(image: Image.Image, content: bytes, name: str) -> int:
    """Of a tile of a TIFF, 0 where it has none: its strips are as wide as the image, and end with it.

    Of a size that is there twice, or of another type, the library that unpacks the tile may take what Pillow does not.
    """
    with pillow(name, "its header is damaged"):
        found = [(tag, kind, values) for tag, kind, values in tags(content) if tag in _TILE]
        if not found:
            return 0
        if sorted(tag for tag, _, _ in found) != [*_TILE] or any(k not in (3, 4) or n != 1 for _, k, n in found):
            raise ValueError("the size of its tiles is none")
        return math.prod(image.tag_v2[tag] for tag in _TILE)


def _what_it_is(head: bytes) -> str:
    """What a file is that Pillow finds no image in."""
    read = f"read are {', '.join(FORMATS)}"
    if not head:
        return f"is empty (0 bytes); {read}"
    if b"<svg" in head.lower():
        return f"is an SVG drawing, which has no pixels: render it to PNG first; {read}"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return f"is a HEIC or AVIF image; {read}"
    if head[:8] == BEGINS["PNG"] and head[12:16] == b"IHDR" and len(head) >= 24:
        width, height = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
        if width == 0 or height == 0:  # an image without pixels is none to Pillow
            return _without_pixels(width, height)
    kind = next((kind for kind, begins in BEGINS.items() if head.startswith(begins)), None)
    if kind:
        return f"begins as a {kind}; its header is damaged"
    return f"is no image (it begins with {head[:8]!r}); {read}"


def _too_large(head: bytes) -> str:
    """What a file has whose size is beyond Pillow's own limit; to Pillow the width of a BMP has no sign."""
    if (
        head.startswith(BEGINS["BMP"])
        and head[14] > 12
        and (width := int.from_bytes(head[18:], "little", signed=True)) < 0
    ):
        return f"has a width of {width:,} pixels; allowed is at least 1"
    return f"has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; allowed are {MAX_PIXELS:,}"


def _without_pixels(width: int, height: int) -> str:
    return f"has {width} x {height} pixels; allowed is at least 1 x 1"


def _check_header(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {_without_pixels(width, height)}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: has {width} x {height} pixels; allowed are {MAX_PIXELS:,} altogether")
    if image.mode not in MODES:
        raise ImageError(f"{name}: has mode {image.mode!r} ({_PROBLEM.get(image.mode, _DEEP)}); save it as 8-bit RGB")
    # A JPEG of several pictures (MPO, as phones write it) begins with the photograph itself.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(f"{name}: has several frames; save the one that is meant")  # to count them all are read


_DEEP = "more than 8 bits a value"
_PROBLEM = {"PA": "a palette with alpha", "La": "premultiplied alpha", "RGBa": "premultiplied alpha"}


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
