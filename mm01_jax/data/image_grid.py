"""How an image becomes tokens, in whole numbers: which tiles it is cut into, which features stand where in its text.

    grid   of the allowed grids (columns, rows) of square tiles the one that keeps the most pixels of the image
    tiles  the whole image squeezed into one tile (the thumbnail) first, then the grid's, row by row
    map    the grid's patches side by side, without the rows or columns of patches that only padding covers
    tokens the thumbnail's patches, then row by row those of the map, each row ended by the newline

docs/model.md C.3, C.4. A size is (width, height) in pixels; a tile has `side` pixels and `patches` patches along each
side. No pixel is touched here (`data/images.py` makes them) and no library but NumPy is imported.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

TEXT, NEWLINE = -1, 0  # values of an index table; from 1 on features count


@dataclasses.dataclass(frozen=True)
class ImageLayout:
    """What one image becomes.

    grid: (columns, rows) of tiles. map_size: (columns, rows) of patches that are kept. cut: of the grid's patches the
    first column and the first row that are kept. patches: along a side of a tile.
    """

    grid: tuple[int, int]
    map_size: tuple[int, int]
    cut: tuple[int, int]
    patches: int

    @property
    def num_tiles(self) -> int:
        """The grid's, and the thumbnail."""
        return 1 + self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        columns, rows = self.map_size
        return self.patches**2 + rows * (columns + 1)


def best_grid(size: tuple[int, int], grids: Sequence[tuple[int, int]], side: int) -> tuple[int, int]:
    """The grid that keeps the most of the image's pixels, then wastes the fewest; the first in `grids` of equals.

    The scale is a float64, as in the released code: at exact fits its rounding decides by a pixel, and with float32
    4,916 sizes up to 4096 x 4096 get another grid.
    """
    width, height = size

    def rank(grid: tuple[int, int]) -> tuple[int, int]:
        across, down = grid[0] * side, grid[1] * side
        scale = min(across / width, down / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return -kept, across * down - kept

    return min(grids, key=rank)


def lay_out(size: tuple[int, int], grids: Sequence[tuple[int, int]], side: int, patch_size: int) -> ImageLayout:
    """What an image of `size` becomes.

    Raises:
      ValueError: a size that is not above zero.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels; allowed: at least 1 x 1")
    columns, rows = grid = best_grid(size, grids, side)
    patches = side // patch_size
    across, down = columns * patches, rows * patches
    # width / height against across / down without a quotient: floats have cut one patch too many here.
    if width * down > across * height:
        above = (down - height * across // width) // 2
        return ImageLayout(grid, (across, down - 2 * above), (0, above), patches)
    left = (across - width * down // height) // 2
    return ImageLayout(grid, (across - 2 * left, down), (left, 0), patches)


def index_table(image: ImageLayout, first_tile: int) -> np.ndarray:
    """(num_tokens,) int32: which feature stands at each of an image's tokens.

    Feature 1 + t * patches^2 + y * patches + x is the patch in row y, column x of tile t of the text's row of the
    batch; NEWLINE is the newline. first_tile: the image's thumbnail among that row's tiles.
    """
    P, (columns, rows), (left, above) = image.patches, image.map_size, image.cut
    thumbnail = first_tile * P**2 + np.arange(P**2)
    y, x = above + np.arange(rows)[:, None], left + np.arange(columns)[None, :]
    tile = first_tile + 1 + (y // P) * image.grid[0] + x // P
    kept = np.full((rows, columns + 1), NEWLINE - 1)
    kept[:, :columns] = tile * P**2 + (y % P) * P + x % P
    return (1 + np.concatenate([thumbnail, kept.reshape(-1)])).astype(np.int32)


def text_table(is_image: np.ndarray, images: Sequence[ImageLayout], first_tile: int = 0) -> np.ndarray:
    """(S,) int32 index table of one document: TEXT, or the feature at that token.

    Args:
      is_image: (S,) bool, tokens that images take, those of `images` in order.
      first_tile: the first image's thumbnail among the tiles of the row.

    Raises:
      ValueError: `is_image` marks more or fewer tokens than the images take.
    """
    needed, marked = sum(image.num_tokens for image in images), int(np.count_nonzero(is_image))
    if needed != marked:
        raise ValueError(f"{marked} image tokens in the text, but its {len(images)} images take {needed}")
    tables = [np.zeros(0, np.int32)]
    for image in images:
        tables.append(index_table(image, first_tile))
        first_tile += image.num_tiles
    table = np.full(is_image.shape, TEXT, np.int32)
    table[is_image] = np.concatenate(tables)
    return table


def bucket(num_tiles: int) -> int:
    """The shape that so many tiles get, a power of two: few shapes are few programs, whatever the images are."""
    return 0 if num_tiles == 0 else 1 << (num_tiles - 1).bit_length()
