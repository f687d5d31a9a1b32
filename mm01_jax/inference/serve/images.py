"""Images of a conversation: what a client may send, and the prompt and the pixels that become of it.

An image is a data URI, or a file of the one folder that the server was given: nothing is fetched. Its header is read
when the request is; its pixels when there is room for the answer.
"""

import base64
import binascii
import os
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mm01_jax.config import VisionConfig
from mm01_jax.data.conversations import render
from mm01_jax.data.image_grid import text_table
from mm01_jax.data.images.decoding import decode
from mm01_jax.data.images.opening import MAX_PIXELS, ImageError, open_image
from mm01_jax.data.images.processor import layout_of, make_tiles
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.serve import fields, unused
from mm01_jax.inference.serve.errors import Refused, wrong
from mm01_jax.inference.serve.fields import Field

MOST_IMAGES, MOST_PIXELS = 256, 4 * MAX_PIXELS  # of a request
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


class Image(NamedTuple):
    """name: of the field. source: its bytes, or where its file lies. size: (width, height)."""

    name: str
    source: bytes | str
    size: tuple[int, int]


class Pictures(NamedTuple):
    """What the image tokens of a prompt show. index: for each token (data/image_grid.py)."""

    images: Sequence[Image]
    index: np.ndarray
    vision: VisionConfig

    def shown(self) -> dict[str, Any]:
        """As the engine's process reads it (`engine_loop`).

        Raises:
          Refused: an image that is damaged.
        """
        tiles = [self._tiles(image) for image in self.images]
        return {"tiles": base64.b64encode(np.concatenate(tiles).tobytes()).decode(), "index": self.index.tolist()}

    def _tiles(self, image: Image) -> np.ndarray:
        try:
            opened = open_image(image.source, image.name)
            if opened.size != image.size:
                raise ImageError(f"{image.name}: the file was another a moment ago")
            return make_tiles(decode(opened, image.name), self.vision, image.name)
        except ImageError as error:
            raise Refused(str(error), image.name, code="invalid_image") from None


class Images:
    """What a server takes of images: in which sizes its model sees them, and where files may lie; None: no files."""

    def __init__(self, vision: VisionConfig, folder: str | None):
        self._vision, self._folder = vision, None if folder is None else pathlib.Path(folder).resolve()

    def part(self, name: str, value: Any) -> dict[str, Any]:
        """A part of a message as /v1/chat/completions has it."""
        known = {"type": Field(fields.one_of("image_url"), required=True), "image_url": Field(self._url, required=True)}
        return {"type": "image", "image": fields.read(value, unused.OF_A_PART | known, name)["image_url"]}

    def flat_part(self, name: str, value: Any) -> dict[str, Any]:
        """As `part`, of /v1/responses."""
        known = {
            "type": Field(fields.one_of("input_image"), required=True),
            "image_url": Field(self._image, required=True),
            "detail": _DETAIL,
        }
        return {"type": "image", "image": fields.read(value, unused.OF_A_PART | known, name)["image_url"]}

    def _url(self, name: str, value: Any) -> Image:
        return fields.read(value, {"url": Field(self._image, required=True), "detail": _DETAIL}, name)["url"]

    def _image(self, name: str, value: Any) -> Image:
        source = self._source(name, fields.text(name, value))
        try:
            size = open_image(source, name).size
            layout_of(size, self._vision, name)
        except ImageError as error:
            raise Refused(str(error), name, code="invalid_image") from None
        return Image(name, source, size)

    def _source(self, name: str, url: str) -> bytes | str:
        if begin := _DATA.match(url):
            try:
                return base64.b64decode(url[begin.end() :], validate=True)
            except (binascii.Error, ValueError) as error:
                raise Refused(f"{name}: no base64 ({error})", name, code="invalid_image") from None
        files = "; a file only where mm01-serve was given --images=DIR"
        if self._folder is not None:
            if url.startswith("file://"):
                return self._file(name, url)
            files = ", or file:// and a path of the server's folder of images"
        allowed = f"data:image/TYPE;base64,...{files}"
        raise wrong(name, f"{url[:37]}..." if len(url) > 40 else url, allowed, code="invalid_image")

    def _file(self, name: str, url: str) -> str:
        """Where a file lies. Whatever lies elsewhere, be it there or not, is refused alike."""
        try:
            parts = urllib.parse.urlsplit(url)
            path = os.path.realpath(urllib.parse.unquote(parts.path, errors="strict"))
        except ValueError:  # a host that is none, a name that is no UTF-8, a NUL
            path, parts = "", urllib.parse.urlsplit("file:///")
        if parts.netloc not in ("", "localhost") or not pathlib.Path(path).is_relative_to(self._folder):
            message = f"{name}: no file of the server's folder of images"
            raise Refused(message, name, code="invalid_image")
        return path

    def ask(
        self, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, tools: Sequence[dict], name: str
    ) -> tuple[list[int], Pictures]:
        """The prompt of a conversation in MiniMax-VL-01's template, and what it shows.

        Args:
          name: of the field that has the messages.

        Raises:
          Refused: too many images, or too large ones; ValueError: as `conversations.render`.
        """
        images = images_of(messages)
        if len(images) > MOST_IMAGES:
            raise Refused(f"{name}: got {len(images):,} images; allowed: {MOST_IMAGES}", name)
        if (pixels := sum(image.size[0] * image.size[1] for image in images)) > MOST_PIXELS:
            raise Refused(f"{name}: its images have {pixels:,} pixels; allowed: {MOST_PIXELS:,} altogether", name)
        layouts = [layout_of(image.size, self._vision, image.name) for image in images]
        tokens = [layout.num_tokens for layout in layouts]
        ids = render(messages, tokenizer, tokens, tools=tools, generate=True).ids
        table = text_table(ids == self._vision.image_token, layouts)
        return ids.tolist(), Pictures(images, table, self._vision)


_DETAIL = Field(fields.one_of("auto", "high"))  # an image is always seen as the released processor cuts it


def images_of(messages: Sequence[Mapping[str, Any]]) -> list[Image]:
    """All images of a conversation, in order."""
    contents = [message.get("content") for message in messages]
    return [part["image"] for content in contents if isinstance(content, list) for part in content if "image" in part]
