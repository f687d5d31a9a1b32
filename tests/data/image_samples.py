"""Images of the processor's fixture, made again: synthetic ones, one of every mode, photographs that packages bring.

`vl_image_processor.json` says what the released processor made of each (Pillow 13.0.0): a record an image.
"""

import functools
import json
import pathlib
from typing import Any

import numpy as np
import skimage
import sklearn
from PIL import Image

from mm01_jax.config import VisionConfig

PATH = pathlib.Path(__file__).parents[1] / "fixtures" / "vl_image_processor.json"
FOLDERS = {
    "skimage": pathlib.Path(skimage.__file__).parent / "data",
    "sklearn": pathlib.Path(sklearn.__file__).parent / "datasets" / "images",
}
# The released geometry; the tower itself has no part in it.
VISION = VisionConfig(embed_dim=8, num_layers=1, num_heads=1, mlp_dim=8, image_size=336, patch_size=14)


@functools.cache
def records() -> dict[str, dict[str, Any]]:
    """By name, in order."""
    return {record["name"]: record for record in json.loads(PATH.read_text())}


def make(record: dict[str, Any]) -> Image.Image:
    kind, width, height = record["name"].split("_")[0], record["W"], record["H"]
    if kind == "synth":
        return Image.fromarray(synth(width, height))
    if kind == "mode":
        return in_mode(record["name"].split("_")[1], width, height, int(record["source"].rpartition("k=")[2][0]))
    return photograph(record)


def photograph(record: dict[str, Any]) -> Image.Image:
    package, name = record["source"].split(":")
    image = Image.open(FOLDERS[package] / name).convert("RGB")
    if "box" in record:
        image = image.crop(record["box"])
    return image.resize(record["resize"], Image.Resampling.LANCZOS) if "resize" in record else image


def synth(width: int, height: int, k: int = 0) -> np.ndarray:
    """uint8 (height, width, 3): ramps, hard edges where bytes overflow, blocks."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    channels = [
        x * (7 + 2 * c + k) + y * (11 - 3 * c + 2 * k) + x * y // (5 + c + k) + 40 * c * ((x // 16 + y // 16) % 2)
        for c in range(3)
    ]
    return ((np.stack(channels, -1) + 13 * k) % 256).astype(np.uint8)


def in_mode(mode: str, width: int, height: int, k: int = 0) -> Image.Image:
    rgb = synth(width, height, k)
    y, x = np.mgrid[0:height, 0:width]
    alpha = ((x + 2 * y) % 256).astype(np.uint8)
    grey = {
        "L": rgb[..., 0],
        "I;16": rgb[..., 0].astype("<u2") * 257,
        "I": rgb[..., 0].astype(np.int32) * 3 - 100,
        "F": rgb[..., 0].astype(np.float32) * 1.25 - 20.5,
    }
    if mode in grey:
        return Image.frombytes(mode, (width, height), grey[mode].tobytes())
    if mode == "1":
        return Image.fromarray(np.where(rgb[..., 2] > 127, 255, 0).astype(np.uint8)).convert("1")
    if mode.startswith("P"):
        bands = np.dstack([rgb[..., 1], alpha]) if mode == "PA" else rgb[..., 1]
        image = Image.frombytes(mode[: 1 + (mode == "PA")], (width, height), bands.tobytes())
        image.putpalette([value for i in range(256) for value in (i, i * 7 % 256, 255 - i)])
        if mode == "P+transparency":
            image.info["transparency"] = 17
        return image
    bands = rgb if mode in ("YCbCr", "HSV") else np.dstack([rgb[..., 0], alpha] if mode == "LA" else [rgb, alpha])
    return Image.frombytes(mode, (width, height), bands.tobytes())
