"""Image files as Pillow images; what is no sound still picture is refused by name, from its header where it can be.

Read are PNG, JPEG, WebP, BMP, GIF and TIFF. A picture is taken as the released processor takes it: in its own mode (it
is resized in that mode), its EXIF orientation ignored, alpha dropped. Three kinds are refused instead, because that
processor destroys them: 16-bit grey (all white there), 32-bit grey (cut off at 255), palettes with alpha (all black).
"""

import io
import os
import pathlib
import stat
import threading
import warnings

from PIL import Image, UnidentifiedImageError

from mm01_jax.data.text import DataError
from mm01_jax.files import Door
from mm01_jax.values import nearest_words

Source = str | os.PathLike | bytes | Image.Image  # a path, the bytes of a file, or an image that is open already
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 1 << 28  # of a file
MAX_PIXELS = 1 << 26  # 8192 x 8192; decoded, three bytes a pixel
MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "CMYK", "YCbCr", "HSV")
_SCAN, _MOST_SCANS = b"\xff\xda", 100  # of a progressive JPEG, which has some ten
EXIF_ORIENTATION = 0x0112
_LOCK = threading.Lock()  # warnings are filtered for the whole process


class ImageError(DataError):
    """An image that cannot be used; the message begins with its name."""


def open_image(source: Source, name: str | None = None, root: pathlib.Path | None = None) -> Image.Image:
    """The image, its header read and checked, its pixels not decoded.

    Args:
      name: what messages call it; the path itself where it is one.
      root: a folder that the file must lie in, links followed.

    Raises:
      ImageError: what is wrong with it.
    """
    name = name or ("an image" if isinstance(source, bytes | Image.Image) else os.fspath(source))
    image = source if isinstance(source, Image.Image) else _identify(content_of(source, name, root), name)
    _check_header(image, name)
    return image


def decode(image: Image.Image, name: str) -> Image.Image:
    """The image with its pixels in memory.

    Raises:
      ImageError: it is truncated or damaged.
    """
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever the damage leads them to
        raise ImageError(f"{name}: {_why(error)}; the file is truncated or damaged") from error
    return image


def check_whole(content: bytes, name: str) -> None:
    """Whether a file is sound to its end, with as little decoding as tells so.

    PNG has checksums; a JPEG is decoded at an eighth of its size, which reads all of it; others are decoded.

    Raises:
      ImageError: as `open_image` and `decode`.
    """
    with open_image(content, name) as image:
        if image.format == "PNG":
            try:
                image.verify()
            except Exception as error:
                raise ImageError(f"{name}: {_why(error)}; the file is truncated or damaged") from error
        else:
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
            decode(image, name)


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
        return Door(ImageError).read(real, most=MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        meant = nearest_words(path) if root is None and isinstance(error, FileNotFoundError) else ""
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}{meant}") from error


def _identify(content: bytes, name: str) -> Image.Image:
    try:
        # Between its two limits Pillow warns and goes on; here the one limit is `MAX_PIXELS`, below both.
        with _LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_what_it_is(content[:1024])}") from error
    except Image.DecompressionBombError as error:
        pixels = f"more than {2 * Image.MAX_IMAGE_PIXELS:,}"
        raise ImageError(f"{name}: has {pixels} pixels; allowed are {MAX_PIXELS:,}") from error
    except Exception as error:  # as in `decode`
        raise ImageError(f"{name}: {_why(error)}; its header is damaged") from error
    if image.format in ("JPEG", "MPO") and (scans := content.count(_SCAN)) > _MOST_SCANS:
        raise ImageError(f"{name}: has {scans:,} scans, each as long to read as a picture; allowed are {_MOST_SCANS}")
    return image


def _what_it_is(head: bytes) -> str:
    """What a file is that Pillow finds no image in."""
    read = f"read are {', '.join(FORMATS)}"
    if not head:
        return f"is empty (0 bytes); {read}"
    if b"<svg" in head.lower():
        return f"is an SVG drawing, which has no pixels: render it to PNG first; {read}"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return f"is a HEIC or AVIF image; {read}"
    if head[:8] == _BEGINS["PNG"] and head[12:16] == b"IHDR" and len(head) >= 24:
        width, height = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
        if width == 0 or height == 0:  # an image without pixels is none to Pillow
            return _without_pixels(width, height)
    kind = next((kind for kind, begins in _BEGINS.items() if head.startswith(begins)), None)
    if kind:
        return f"begins as a {kind}; its header is damaged"
    return f"is no image (it begins with {head[:8]!r}); {read}"


_BEGINS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "GIF": b"GIF8", "BMP": b"BM", "TIFF": b"II*\0"}


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
        raise ImageError(f"{name}: has {image.n_frames} frames; save the one that is meant")


_DEEP = "more than 8 bits a value"
_PROBLEM = {"PA": "a palette with alpha", "La": "premultiplied alpha", "RGBa": "premultiplied alpha"}


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
