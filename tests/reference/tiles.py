"""An image's tiles as the original's processor makes them, with Pillow (docs/model.md C.3).

Resize, keeping the ratio, onto black; cut row by row; in front the whole image squeezed into one tile; then /255, minus
mean, over std. Each step is a function, for a mistake to replace.
"""

import numpy as np
from PIL import Image

from tests.reference.vision import best_resolution

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def resize(image: np.ndarray, size) -> np.ndarray:
    """uint8 (height, width, 3) at another (width, height)."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def inner_size(image_size, resolution):
    """The image's size on the canvas: it touches two opposite edges."""
    (width, height), (across, down) = image_size, resolution
    if width / height > across / down:
        return across, int(across * height / width)
    return int(down * width / height), down


def fill() -> int:
    return 0


def offset(space: int) -> int:
    return space // 2


def on_canvas(image: np.ndarray, resolution) -> np.ndarray:
    across, down = resolution
    resized = resize(image, inner_size(image.shape[1::-1], resolution))
    height, width = resized.shape[:2]
    canvas = np.full((down, across, 3), fill(), resized.dtype)
    top, left = offset(down - height), offset(across - width)
    canvas[top : top + height, left : left + width] = resized
    return canvas


def cut(canvas: np.ndarray, side: int) -> list[np.ndarray]:
    """Row by row."""
    height, width = canvas.shape[:2]
    return [canvas[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]


def thumbnail(image: np.ndarray, canvas: np.ndarray, side: int) -> np.ndarray:
    del canvas
    return resize(image, (side, side))


def ordered(small: np.ndarray, tiles: list[np.ndarray]) -> np.ndarray:
    return np.stack([small, *tiles])


def normalised(tiles_TYXC: np.ndarray) -> np.ndarray:
    return (tiles_TYXC / 255.0 - MEAN) / STD


def make_tiles(config, image: np.ndarray) -> np.ndarray:
    """uint8 (height, width, 3) -> (T, 3, side, side) float64, the thumbnail first."""
    canvas = on_canvas(image, best_resolution(config, image.shape[1::-1]))
    tiles = ordered(thumbnail(image, canvas, config.image_size), cut(canvas, config.image_size))
    return normalised(tiles.astype(np.float64)).transpose(0, 3, 1, 2)
