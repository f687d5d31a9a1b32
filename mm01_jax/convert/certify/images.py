"""The images of one text as files say them, checked, and their tokens put into its embeddings."""

from typing import NamedTuple

import numpy as np

from mm01_jax.checkpoint import CheckpointError, Unfit
from mm01_jax.config import Config, VisionConfig
from mm01_jax.convert.certify import arrays as array_files
from mm01_jax.convert.certify.vision import num_tiles

SIZES_SHAPE = "[[height, width], ...]"


class Images(NamedTuple):
    """pixels: float32 (tiles, 3, side, side), normalised, all images' tiles, each with its thumbnail first.
    sizes: whole numbers (images, 2), height and width before any resizing. where: what messages call the two: their
    files."""

    pixels: np.ndarray
    sizes: np.ndarray
    where: tuple[str, str] = ("pixels", "image sizes")


def read(pixels: str, sizes: str) -> Images:
    """Two .npy files.

    Raises:
      CheckpointError: not such a file.
    """
    arrays = []
    for path in (pixels, sizes):
        arrays.append(array_files.read(path))
        if not isinstance(arrays[-1], np.ndarray):
            raise CheckpointError(f"{path}: several arrays; allowed: the .npy of one")
    return Images(*arrays, (pixels, sizes))


def check(images: Images, config: Config, tokens_BS: np.ndarray, ids: str = "ids") -> None:
    """Raises Unfit unless the arrays are images that this model sees, in one text. ids: what messages call that."""
    vision, (pixels, sizes, (of_pixels, of_sizes)) = config.vision, images
    if vision is None:
        raise ValueError(f"{of_pixels}: this checkpoint has no vision weights; it takes text alone")
    if len(tokens_BS) != 1:
        raise Unfit(f"{ids}: {len(tokens_BS)} rows; with pixels one text is allowed, (1, time)")
    shape = (3, vision.image_size, vision.image_size)
    if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != shape:
        allowed = f"float32 [tiles, {', '.join(map(str, shape))}]"
        raise Unfit(f"{of_pixels}: got {pixels.dtype}{list(pixels.shape)}; allowed: {allowed}")
    whole = np.issubdtype(sizes.dtype, np.integer)
    if not whole or sizes.ndim != 2 or sizes.shape[1:] != (2,) or not sizes.size or sizes.min() < 1:
        raise Unfit(f"{of_sizes}: got {sizes.dtype}{list(sizes.shape)}; allowed: whole numbers {SIZES_SHAPE}")
    tiles = sum(num_tiles(vision, size) for size in sizes.tolist())
    if tiles != len(pixels):
        raise Unfit(f"{of_pixels}: {len(pixels)} tiles; the {len(sizes)} images of these sizes have {tiles}")


def tokens_of_images(vision: VisionConfig, tokens_BS: np.ndarray) -> np.ndarray:
    """(S,) bool: the places that images take in the one text."""
    return tokens_BS[0] == vision.image_token


def count_problem(is_image_S: np.ndarray, packed: list[np.ndarray]) -> str | None:
    """Why the images' tokens do not fill their places, or None."""
    places, tokens = int(is_image_S.sum()), [len(image) for image in packed]
    if places == sum(tokens):
        return None
    return f"the ids have {places} image tokens; the images take {' + '.join(map(str, tokens))} = {sum(tokens)}"


def merge(embed_BSD: np.ndarray, is_image_S: np.ndarray, packed: list[np.ndarray]) -> np.ndarray:
    """The embeddings with the images' tokens in their places, in order."""
    merged = embed_BSD.copy()
    merged[0, is_image_S] = np.concatenate(packed).astype(embed_BSD.dtype)
    return merged
