"""The JAX VL model with the weights of a fixture, and the fixture's texts and images as one batch."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm01_jax.config import ComputeConfig, Config
from mm01_jax.convert import axes, table
from mm01_jax.convert.torch.settings import read
from mm01_jax.data.image_grid import TEXT, ImageLayout, lay_out, text_table
from mm01_jax.model.multimodal import VLModel
from tests.model import jax_model
from tests.reference import vision_fixture


@functools.cache
def config(name: str = "vl_tiny_a") -> Config:
    """What conversion reads of the fixture's config.json."""
    return read(vision_fixture.plain(name), name).config


def build(config: Config, weights, dtype: str) -> VLModel:
    """The model holding `weights` (released names); every leaf is filled."""
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none")
    parts = (config.model, compute, jax_model.RULES, config.vision)
    empty, values = jax.eval_shape(lambda: VLModel(*parts, rngs=nnx.Rngs(params=0))), {}
    tensors = table.tensors(config.model, config.vision)
    for path, leaf in table.leaves(tensors).items():
        values[path] = np.zeros(leaf.shape, np.result_type(*weights.values()))
    for tensor in tensors:
        name = "language_model." + tensor.name if tensor.leaf.startswith("text/") else tensor.name
        values[tensor.leaf][tensor.index] = axes.rearrange(
            weights[name], tensor.row.torch_axes, tensor.row.our_axes, tensor.sizes
        )
    filled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.replace(jnp.asarray(values.pop(jax_model.leaf_path(path)), dtype)),
        empty,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    assert not values, sorted(values)
    return filled


def layout(index: int, name: str = "vl_tiny_a") -> ImageLayout:
    vision = config(name).vision
    return lay_out(vision_fixture.size(index, name), vision.grids, vision.image_size, vision.patch_size)


class Rows(NamedTuple):
    """Texts padded to one length, in the order of the model's arguments."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    tiles: np.ndarray
    index: np.ndarray


def rows(texts: list[tuple[np.ndarray, list[int]]], pixels, *, length: int, num_tiles: int, name="vl_tiny_a") -> Rows:
    """Rows of (expanded ids, its images), padded to `length` tokens and `num_tiles` tiles; pixels: image -> tiles."""
    vision, shape = config(name).vision, (len(texts), length)
    tokens, segments = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    index = np.full(shape, TEXT, np.int32)
    tiles = np.zeros((len(texts), num_tiles, 3, vision.image_size, vision.image_size), np.float32)
    for row, (ids, images) in enumerate(texts):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 0
        is_image = ids == vision.image_token
        index[row, : len(ids)] = text_table(is_image, [layout(i, name) for i in images])
        of_row = np.concatenate([pixels(i) for i in images]) if images else np.zeros((0, *tiles.shape[2:]))
        tiles[row, : len(of_row)] = of_row
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return Rows(tokens, positions, segments, tiles, index)
