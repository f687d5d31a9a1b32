"""The pixels that the tower sees: an image cut into normalised tiles, as the released processor does (model.md C.3).

    canvas     the image resized (bicubic, aspect ratio kept) onto a black canvas of the best grid, centred
    tiles      the whole image squeezed into one tile first, then the canvas cut row by row
    pixels     (value / 255 - mean) / std of CLIP, channels first

Resizing happens in the image's own mode, as there, and on 8 bits, so it is Pillow's arithmetic that decides: another
major version of Pillow may differ in the last place (13.0 resizes some tall images vertically first, 12.0 none).
"""

import numpy as np
from PIL import Image

from mm01_jax.config import VisionConfig
from mm01_jax.data.image_grid import ImageLayout, lay_out
from mm01_jax.data.images.opening import ImageError, pillow

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# All that a byte can become, by channel.
_NORMALISED = (np.arange(256, dtype=np.float32)[None, :] / np.float32(255) - _MEAN[:, None]) / _STD[:, None]


def layout_of(size: tuple[int, int], vision: VisionConfig, name: str) -> ImageLayout:
    """Tiles, map and tokens of an image of `size` (width, height).

    Raises:
      ImageError: so long and narrow that nothing is left of its short side.
    """
    layout = lay_out(size, vision.grids, vision.image_size, vision.patch_size)
    if 0 in resized(size, layout, vision.image_size):
        raise ImageError(
            f"{name}: has {size[0]} x {size[1]} pixels, so long and narrow that its short side shrinks to nothing"
        )
    return layout


def resized(size: tuple[int, int], layout: ImageLayout, side: int) -> tuple[int, int]:
    """The largest (width, height) with the image's aspect ratio that its canvas has room for."""
    (width, height), across, down = size, layout.grid[0] * side, layout.grid[1] * side
    if width * down > across * height:
        return across, across * height // width
    return down * width // height, down


def make_tiles(image: Image.Image, vision: VisionConfig, name: str) -> np.ndarray:
    """(tiles, side, side, 3) uint8: thumbnail, then the grid's tiles row by row.

    Raises:
      ImageError: as `layout_of`.
    """
    side, layout = vision.image_size, layout_of(image.size, vision, name)
    columns, rows = layout.grid
    with pillow(name):
        picture = image.resize(resized(image.size, layout, side), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (columns * side, rows * side))
        canvas.paste(picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2))
        thumbnail = image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    cut = np.asarray(canvas).reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return np.concatenate([np.asarray(thumbnail)[None], cut.reshape(-1, side, side, 3)])


def normalise(tiles: np.ndarray) -> np.ndarray:
    """uint8 tiles (n, side, side, 3) -> float32 pixels (n, 3, side, side)."""
    return np.stack([_NORMALISED[channel][tiles[..., channel]] for channel in range(3)], axis=1)
