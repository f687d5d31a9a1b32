"""Pictures whose captions are true: handwritten digits in a colour, one or two of them, and photographs under a tint.

Digits are scikit-learn's 1,797 of 8 x 8 (those whose number is 0 mod 6 are never trained on), photographs are those
that scikit-learn and scikit-image bring (two are never trained on).
"""

import functools
import io
import pathlib
from typing import NamedTuple

import numpy as np
import skimage
import sklearn
from PIL import Image
from sklearn.datasets import load_digits

COLOURS = {"red": (1.0, 0.15, 0.15), "green": (0.15, 1.0, 0.15), "blue": (0.2, 0.2, 1.0)}
PHOTOGRAPHS = {  # trained on, held out
    False: ("skimage/data/astronaut.png", "skimage/data/coffee.png", "sklearn/datasets/images/china.jpg"),
    True: ("skimage/data/chelsea.png", "sklearn/datasets/images/flower.jpg"),
}
SIDE = 32  # pixels of a picture of one digit, which becomes one tile


class Picture(NamedTuple):
    """An image and what is true of it; `digits` is empty for a photograph."""

    image: Image.Image
    digits: tuple[int, ...]
    colour: str

    @property
    def png(self) -> bytes:
        file = io.BytesIO()
        self.image.save(file, "png")
        return file.getvalue()


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images / 16.0, digits.target


@functools.cache
def _photograph(name: str) -> np.ndarray:
    """Its brightness, 160 pixels wide."""
    package, _, path = name.partition("/")
    root = pathlib.Path({"skimage": skimage, "sklearn": sklearn}[package].__file__).parent
    image = Image.open(root / path).convert("L")
    return np.asarray(image.resize((160, 160 * image.height // image.width))) / 255.0


def digit(random: np.random.Generator, held_out: bool, count: int = 1) -> Picture:
    """`count` digits side by side in one colour: moved, paler or darker, noisy."""
    images, targets = _digits()
    numbers = np.arange(len(targets))
    chosen = random.choice(numbers[(numbers % 6 == 0) == held_out], size=count)
    colour = str(random.choice(list(COLOURS)))
    strokes = np.concatenate([_moved(images[i], random) for i in chosen], axis=1)
    strokes = np.clip(strokes * random.uniform(0.7, 1.0) + random.normal(0.0, 0.03, strokes.shape), 0.0, 1.0)
    background = random.uniform(0.0, 0.25)
    light = background + (1.0 - background) * strokes
    image = _tinted(light, colour, random).resize((SIDE * count, SIDE), Image.Resampling.BICUBIC)
    return Picture(image, tuple(int(targets[i]) for i in chosen), colour)


def photograph(random: np.random.Generator, held_out: bool) -> Picture:
    """A piece of a photograph under a tint."""
    light = _photograph(str(random.choice(PHOTOGRAPHS[held_out])))
    top, left = (int(random.integers(size - 48)) for size in light.shape)
    colour = str(random.choice(list(COLOURS)))
    return Picture(_tinted(0.3 + 0.7 * light[top : top + 48, left : left + 48], colour, random), (), colour)


def _moved(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.roll(np.pad(image, 1), random.integers(-1, 2, size=2), axis=(0, 1))


def _tinted(light: np.ndarray, colour: str, random: np.random.Generator) -> Image.Image:
    tint = np.array(COLOURS[colour]) * random.uniform(0.7, 1.0)
    return Image.fromarray((255 * np.clip(light[..., None] * tint, 0.0, 1.0)).astype(np.uint8))
