"""Logits and lightning states of any checkpoint on given token ids, in float32, as an npz that `certify` reads; of a
VL checkpoint with images, their tokens too."""

import pathlib

import numpy as np

from mm01_jax.checkpoint import Unfit
from mm01_jax.convert.certify import arrays as array_files
from mm01_jax.convert.certify import images as pictures
from mm01_jax.convert.certify.forward import Forward
from mm01_jax.convert.certify.images import Images
from mm01_jax.convert.certify.vision import Vision, weights_of
from mm01_jax.convert.certify.walk import Weights, walk
from mm01_jax.convert.sources import check_buffers, open_source
from mm01_jax.files import written


def compute(source, tokens_BS: np.ndarray, images: Images | None = None, where: str = "ids") -> dict[str, np.ndarray]:
    """`ids` (B, S), `logits` (B, S, V), `state_<layer>` (B, N, H key, H value) of each lightning layer; all float32.

    Args:
      source: a directory of either kind, or an opened source.
      images: of a VL checkpoint and one text, in whose ids the image token stands as often as the images take tokens;
        `packed` (their tokens, D), in order, comes beside the others.
      where: what messages call the ids: the file that they were read from.

    Raises:
      CheckpointError: a damaged source, or weights that are not finite.
      Unfit: ids outside the vocabulary, images that do not fit them.
    """
    source = open_source(source, check_finite=True) if isinstance(source, str | pathlib.Path) else source
    check_buffers(source)
    check_ids(tokens_BS, source.config.model.vocab_size, where)
    arrays, place = {"ids": tokens_BS}, None
    if images is not None:
        pictures.check(images, source.config, tokens_BS, where)
        packed = Vision(source.config.vision).images(images.pixels, images.sizes.tolist(), weights_of(source))
        is_image = pictures.tokens_of_images(source.config.vision, tokens_BS)
        if problem := pictures.count_problem(is_image, packed):
            raise Unfit(f"{images.where[0]}: {problem}")
        arrays["packed"] = np.concatenate(packed)
        place = lambda _, embed: pictures.merge(embed, is_image, packed)  # noqa: E731
    for kind, layer, _, array in walk(Weights(source), tokens_BS, {"": Forward(source.config.model)}, place):
        if kind == "state":
            arrays[f"state_{layer}"] = array
        elif kind == "logits":
            arrays["logits"] = array
    return arrays


def check_ids(tokens_BS: np.ndarray, vocab_size: int, where: str = "ids") -> None:
    """Raises Unfit, with `where` in front, unless `tokens_BS` are (batch, time) whole numbers of the vocabulary."""
    if tokens_BS.ndim != 2 or tokens_BS.size == 0 or not np.issubdtype(tokens_BS.dtype, np.integer):
        raise Unfit(f"{where}: got {tokens_BS.dtype}{list(tokens_BS.shape)}; allowed: whole numbers (batch, time)")
    if tokens_BS.min() < 0 or tokens_BS.max() >= vocab_size:
        got = f"{tokens_BS.min()} to {tokens_BS.max()}"
        raise Unfit(f"{where}: got {got}; allowed: 0 to {vocab_size - 1}")


def read_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, or {"ids": ...} of an .npy; pickled objects are refused.

    Raises:
      CheckpointError: not such a file.
    """
    found = array_files.read(path)
    return {"ids": found} if isinstance(found, np.ndarray) else found


def save(path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz under a temporary name, then renames it."""
    with written(path) as file:
        np.savez(file, **arrays)
