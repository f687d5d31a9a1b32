"""The porting mistakes of vision that are known to happen, each as one formula replaced (docs/model.md H).

Those that a model can make of the right pixels; what is wrong in pixels alone shows in the processor's hashes.
"""

import math

import numpy as np

from mm01_jax.convert.certify.forward import sigmoid
from mm01_jax.convert.certify.vision import Vision


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x.dtype.type(1.702) * x)


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x**3)
    return x * (1 + np.tanh(inner)) / 2


class QuickGelu(Vision):
    def gelu(self, x):
        return quick_gelu(x)


class TanhGelu(Vision):
    def gelu(self, x):
        return tanh_gelu(x)


class ProjectorTanhGelu(Vision):
    def projector_gelu(self, x):
        return tanh_gelu(x)


class ProjectorQuickGelu(Vision):
    def projector_gelu(self, x):
        return quick_gelu(x)


class InputOfTheLastBlock(Vision):
    def chosen(self, hidden):
        return hidden[-2]


class PostNorm(Vision):
    def chosen(self, hidden):
        """As a class makes it that has the norm and finds no weights for it."""
        W = hidden[-1].shape[-1]
        return self.layer_norm(hidden[-1], np.ones(W, self.dtype), np.zeros(W, self.dtype))


class ClassKept(Vision):
    def without_class(self, x_TPW):
        return x_TPW[:, :-1]


class ClassPositionLast(Vision):
    def with_positions(self, x_TPW, w):
        table = w["vision/positions"]
        return super().with_positions(x_TPW, {**w, "vision/positions": np.concatenate([table[-1:], table[:-1]])})


class NoInputNorm(Vision):
    def input_norm(self, x_TPW, w):
        return x_TPW


class AcrossTiles(Vision):
    def images(self, pixels, sizes, w):
        """Every image by itself, so that its tiles alone see each other."""
        packed, at = [], 0
        for size in sizes:
            count = 1 + math.prod(self.grid(size))
            packed += super().images(pixels[at : at + count], [size], w)
            at += count
        return packed

    def attention(self, q_TPNH, k_TPNH, v_TPNH):
        one = (x.reshape(1, -1, *x.shape[2:]) for x in (q_TPNH, k_TPNH, v_TPNH))
        return super().attention(*one).reshape(q_TPNH.shape)


class ChannelsLast(Vision):
    def patches(self, tiles_TCYX):
        """(row, column, channel) against weights that lie (channel, row, column)."""
        right, p = super().patches(tiles_TCYX), self.config.patch_size
        return right.reshape(*right.shape[:2], -1, p, p).transpose(0, 1, 3, 4, 2).reshape(right.shape)


class ThumbnailLast(Vision):
    def in_order(self, thumbnail_PD, rows_RD):
        return np.concatenate([rows_RD, thumbnail_PD])


class TilesDownTheColumns(Vision):
    def as_map(self, tiles_TPD, grid):
        order = np.arange(len(tiles_TPD)).reshape(grid[::-1]).T.reshape(-1)
        return super().as_map(tiles_TPD[order], grid)


class SwappedGrid(Vision):
    def as_map(self, tiles_TPD, grid):
        return super().as_map(tiles_TPD, grid[::-1])


class SwappedSize(Vision):
    def unpad(self, map_YXD, size):
        return super().unpad(map_YXD, size[::-1])


class NotInterleaved(Vision):
    def as_map(self, tiles_TPD, grid):
        return tiles_TPD.reshape(grid[0] * self.side, grid[1] * self.side, -1)


class DownTheColumns(Vision):
    def flat(self, map_YXD):
        return super().flat(map_YXD.transpose(1, 0, 2))


class NoUnpad(Vision):
    def unpad(self, map_YXD, size):
        return map_YXD


class UnpadRoundedUp(Vision):
    def length(self, of_image, by, other):
        return -(-of_image * by // other)


class UnpadExactly(Vision):
    def kept(self, whole, new):
        cut = (whole - new) // 2
        return slice(cut, cut + new)


class UnpadAtTheEnd(Vision):
    def kept(self, whole, new):
        return slice(0, whole - (whole - new) // 2 * 2)


class NoNewline(Vision):
    def with_newlines(self, map_YXD, newline_D):
        return map_YXD


class NewlineFirst(Vision):
    def with_newlines(self, map_YXD, newline_D):
        return np.concatenate([self.column(map_YXD, newline_D), map_YXD], axis=1)


class NewlineZero(Vision):
    def with_newlines(self, map_YXD, newline_D):
        return super().with_newlines(map_YXD, np.zeros_like(newline_D))


class ImagesReversed(Vision):
    def arranged(self, packed):
        return packed[::-1]


class OnePositionAnImage(Vision):
    def positions(self, is_image_S):
        same = np.concatenate([[False], is_image_S[1:] & is_image_S[:-1]])
        return np.cumsum(~same) - 1


MISTAKES: dict[str, type[Vision]] = {
    "vision: quick gelu in the tower": QuickGelu,
    "vision: gelu by tanh in the tower": TanhGelu,
    "vision: gelu by tanh in the projector": ProjectorTanhGelu,
    "vision: quick gelu in the projector": ProjectorQuickGelu,
    "vision: features of layer -2": InputOfTheLastBlock,
    "vision: a norm behind the last block": PostNorm,
    "vision: class token kept, last patch dropped": ClassKept,
    "vision: position of the class token last": ClassPositionLast,
    "vision: no norm before the first block": NoInputNorm,
    "vision: attention across tiles": AcrossTiles,
    "vision: patches channels last": ChannelsLast,
    "vision: thumbnail's tokens last": ThumbnailLast,
    "vision: tiles taken down the columns": TilesDownTheColumns,
    "vision: rows and columns of the grid swapped": SwappedGrid,
    "vision: height and width swapped in unpadding": SwappedSize,
    "vision: tiles not interleaved": NotInterleaved,
    "vision: map read down the columns": DownTheColumns,
    "vision: no unpadding, or on the wrong axis": NoUnpad,
    "vision: unpadding rounded up": UnpadRoundedUp,
    "vision: unpadding to exactly the image": UnpadExactly,
    "vision: unpadding at the end alone": UnpadAtTheEnd,
    "vision: no newlines": NoNewline,
    "vision: newline at the start of a row": NewlineFirst,
    "vision: newline zero": NewlineZero,
    "vision: images in reversed order": ImagesReversed,
    "vision: one position for all tokens of an image": OnePositionAnImage,
}
