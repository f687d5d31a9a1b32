"""The typical porting mistakes of vision, each as functions of the reference replaced (docs/model.md H).

Forty-six of the published forty-seven: the last, a rounding of newer code, is no mistake (it changes nothing).
"""

import contextlib
import math
import unittest.mock
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.reference import tiles, vision, vision_fixture


class Mistake(NamedTuple):
    """Functions of `module` replaced: name -> the wrong one."""

    module: ModuleType
    wrong: dict[str, Callable]


@contextlib.contextmanager
def made(mistake: Mistake):
    """The reference with the mistake in it."""
    with contextlib.ExitStack() as stack:
        for name, wrong in mistake.wrong.items():
            stack.enter_context(unittest.mock.patch.object(mistake.module, name, wrong))
        yield


# The tower and the projector.


def quick_gelu(x):
    return x / (1.0 + np.exp(-1.702 * x))


def tanh_gelu(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


right_gelu, right_attention, right_map = vision.gelu, vision.attention, vision.as_map


def input_of_the_last_block(config, w, hidden):
    return hidden[-2]


def with_post_norm(config, w, hidden):
    return vision.layer_norm(hidden[-1], *vision_fixture.post_norm(), config.layer_norm_eps)


def class_kept(x_TPD):
    return x_TPD[:, :-1]


def class_position_last(w, x_TPD):
    first = np.broadcast_to(w[f"{vision.TOWER}.embeddings.class_embedding"], (len(x_TPD), 1, x_TPD.shape[-1]))
    table = w[f"{vision.TOWER}.embeddings.position_embedding.weight"]
    return np.concatenate([first, x_TPD], axis=1) + np.concatenate([table[-1:], table[:-1]])


def no_input_norm(config, w, x_TPD):
    return x_TPD


def across_tiles(*heads_TPNH):
    q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in heads_TPNH)
    return right_attention(q, k, v).reshape(heads_TPNH[0].shape)


def channels_last(config, tiles_TCYX):
    T, C = tiles_TCYX.shape[:2]
    n, p = config.side, config.patch_size
    return tiles_TCYX.reshape(T, C, n, p, n, p).transpose(0, 2, 4, 3, 5, 1).reshape(T, n * n, C * p * p)


# Pixels.


def resized_by(filter_):
    def resize(image, size):
        return np.asarray(Image.fromarray(image).resize(size, filter_))

    return resize


def in_float(image, size):
    """No rounding to bytes, no clipping."""
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(one.resize(size, Image.Resampling.BICUBIC)) for one in channels], -1)


def rounded_up(image_size, resolution):
    (width, height), (across, down) = image_size, resolution
    if width / height > across / down:
        return across, min(math.ceil(across * height / width), down)
    return min(math.ceil(down * width / height), across), down


def squeezed_padded(image, canvas, side):
    """The thumbnail keeps its ratio, on black."""
    return tiles.on_canvas(image, (side, side))


def of_the_canvas(image, canvas, side):
    return tiles.resize(canvas, (side, side))


def thumbnail_last(small, cut):
    return np.stack([*cut, small])


def columns_first(canvas, side):
    height, width = canvas.shape[:2]
    return [canvas[y : y + side, x : x + side] for x in range(0, width, side) for y in range(0, height, side)]


right_normalised = tiles.normalised


def with_statistics(mean, std):
    def normalised(tiles_TYXC):
        return (tiles_TYXC / 255.0 - np.array(mean)) / np.array(std)

    return normalised


def padded_after(tiles_TYXC):
    """Padding, marked by a value that no pixel has, becomes the mean colour."""
    return np.where(tiles_TYXC < 0, 0.0, right_normalised(tiles_TYXC))


def marked_canvas(image, resolution):
    resized = tiles.resize(image, tiles.inner_size(image.shape[1::-1], resolution)).astype(np.int64)
    (across, down), (height, width) = resolution, resized.shape[:2]
    canvas = np.full((down, across, 3), -1)
    top, left = (down - height) // 2, (across - width) // 2
    canvas[top : top + height, left : left + width] = resized
    return canvas


# Packing.


def last_tile_is_the_thumbnail(thumbnail_PD, rows_RD):
    return np.concatenate([rows_RD, thumbnail_PD])


def columns_of_tiles(config, features_TPD, grid):
    rows, columns = grid
    order = np.arange(rows * columns).reshape(columns, rows).T.reshape(-1)
    return right_map(config, features_TPD[order], grid)


def swapped_grid(config, size):
    across, down = vision.best_resolution(config, size)
    return across // config.image_size, down // config.image_size


right_unpad = vision.unpad


def swapped_size(map_YXD, size):
    return right_unpad(map_YXD, size[::-1])


def not_interleaved(config, features_TPD, grid):
    rows, columns = grid
    n = config.side
    return features_TPD.reshape(rows * n, columns * n, -1)


def down_the_columns(map_YXD):
    return map_YXD.transpose(1, 0, 2).reshape(-1, map_YXD.shape[-1])


def no_unpad(map_YXD, size):
    return map_YXD


def wrong_axis(map_YXD, size):
    """The crop of rows where columns are padded, and of columns where rows are: nothing is cut."""
    width, height = size
    rows, columns = map_YXD.shape[:2]
    if width * rows > columns * height:
        first, last = vision.kept(columns, min(columns, vision.new_length(width, rows, height)))
        return map_YXD[:, first:last]
    first, last = vision.kept(rows, min(rows, vision.new_length(height, columns, width)))
    return map_YXD[first:last]


def length_rounded_up(of_image, by, other):
    return -(-of_image * by // other)


def exactly(whole, new):
    cut = (whole - new) // 2
    return cut, cut + new


def at_the_end(whole, new):
    return 0, whole - (whole - new) // 2 * 2


def no_newlines(map_YXD, newline_D):
    return map_YXD


def newline_first(map_YXD, newline_D):
    column = np.broadcast_to(newline_D, (len(map_YXD), 1, len(newline_D)))
    return np.concatenate([column, map_YXD], axis=1)


right_newlines = vision.with_newlines


def newline_zero(map_YXD, newline_D):
    return right_newlines(map_YXD, np.zeros_like(newline_D))


right_merge = vision.merge


def reversed_images(config, weights, ids_S, packed):
    return right_merge(config, weights, ids_S, packed[::-1])


def one_position_an_image(config, ids_S):
    """An image's tokens stand where its first does."""
    is_image = ids_S == config.image_token_index
    same = np.concatenate([[False], is_image[1:] & is_image[:-1]])
    return np.cumsum(~same) - 1


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILTERS = {name: getattr(Image.Resampling, name.upper()) for name in ("bilinear", "lanczos", "nearest")}

IN_THE_TOWER = {
    "vision quick_gelu": {"gelu": quick_gelu, "projector_gelu": right_gelu},
    "vision tanh gelu": {"gelu": tanh_gelu, "projector_gelu": right_gelu},
    "projector tanh gelu": {"projector_gelu": tanh_gelu},
    "projector quick_gelu": {"projector_gelu": quick_gelu},
    "feature layer -2": {"last_hidden": input_of_the_last_block},
    "post_layernorm applied": {"last_hidden": with_post_norm},
    "class token kept": {"without_class": class_kept},
    "class position last": {"with_positions": class_position_last},
    "pre_layrnorm skipped": {"input_norm": no_input_norm},
    "attention across tiles": {"attention": across_tiles},
    "patches channels last": {"patches": channels_last},
}
IN_PIXELS = {
    "white padding": {"fill": lambda: 255},
    "grey padding": {"fill": lambda: 127},
    "padding after normalising": {"on_canvas": marked_canvas, "normalised": padded_after},
    "pasted top left": {"offset": lambda space: 0},
    "resized size rounded up": {"inner_size": rounded_up},
    "stretched": {"inner_size": lambda image_size, resolution: resolution},
    **{name: {"resize": resized_by(filter_)} for name, filter_ in FILTERS.items()},
    "bicubic in float": {"resize": in_float},
    "thumbnail keeps its ratio": {"thumbnail": squeezed_padded},
    "thumbnail of the canvas": {"thumbnail": of_the_canvas},
    "thumbnail tile last": {"ordered": thumbnail_last},
    "no /255": {"normalised": lambda x: (x - tiles.MEAN) / tiles.STD},
    "ImageNet mean and std": {"normalised": with_statistics(*IMAGENET)},
    "mean and std 0.5": {"normalised": with_statistics((0.5,) * 3, (0.5,) * 3)},
    "BGR": {"normalised": lambda x: right_normalised(x)[..., ::-1]},
    "tiles transposed": {"normalised": lambda x: right_normalised(x.transpose(0, 2, 1, 3))},
    "tiles cut down the columns": {"cut": columns_first},
}
IN_PACKING = {
    "thumbnail tokens last": {"in_order": last_tile_is_the_thumbnail},
    "tiles taken down the columns": {"as_map": columns_of_tiles},
    "grid swapped": {"tile_grid": swapped_grid},
    "size swapped in unpad": {"unpad": swapped_size},
    "tiles not interleaved": {"as_map": not_interleaved},
    "map flattened down the columns": {"flat": down_the_columns},
    "no unpad": {"unpad": no_unpad},
    "unpad on the wrong axis": {"unpad": wrong_axis},
    "unpad rounded up": {"new_length": length_rounded_up},
    "unpad keeps exactly": {"kept": exactly},
    "unpad at the end": {"kept": at_the_end},
    "no newline": {"with_newlines": no_newlines},
    "newline first": {"with_newlines": newline_first},
    "newline zero": {"with_newlines": newline_zero},
    "images reversed": {"merge": reversed_images},
    "one position an image": {"positions": one_position_an_image},
}
MISTAKES = {name: Mistake(vision, wrong) for name, wrong in (IN_THE_TOWER | IN_PACKING).items()}
MISTAKES |= {name: Mistake(tiles, wrong) for name, wrong in IN_PIXELS.items()}
