"""What an image becomes, in whole numbers: as many features as placeholders, in the published order."""

import numpy as np
import pytest

from mm01_jax.config import VisionConfig
from mm01_jax.data.image_grid import NEWLINE, TEXT, index_table, lay_out, text_table

RELEASED = VisionConfig(embed_dim=1024, num_layers=24, num_heads=16, mlp_dim=4096, image_size=336, patch_size=14)
# width, height -> tiles with the thumbnail, map (columns, rows), tokens (docs/model.md C.4).
PUBLISHED = {
    **dict.fromkeys([(100, 100), (224, 224), (336, 336)], (2, (24, 24), 1176)),
    (337, 337): (5, (48, 48), 2928),
    (640, 480): (5, (48, 36), 2340),
    (480, 640): (5, (36, 48), 2352),
    (800, 600): (7, (64, 48), 3696),
    (1024, 768): (13, (96, 72), 7560),
    **dict.fromkeys([(1024, 1024), (3000, 3000)], (17, (96, 96), 9888)),
    **dict.fromkeys([(673, 673), (997, 991), (1008, 1008)], (10, (72, 72), 5832)),
    (1920, 1080): (19, (128, 72), 9864),
    (1080, 1920): (19, (72, 128), 9920),
    (2016, 1008): (19, (144, 72), 11016),
    (1008, 2016): (19, (72, 144), 11088),
    (2000, 300): (7, (144, 22), 3766),
    (5, 2000): (7, (0, 144), 720),  # a map without a column: newlines alone
    (2000, 5): (7, (144, 0), 576),
}


def laid_out(width: int, height: int):
    return lay_out((width, height), RELEASED.grids, RELEASED.image_size, RELEASED.patch_size)


@pytest.mark.parametrize("size", PUBLISHED, ids=str)
def test_published_sizes_give_the_published_tiles_maps_and_tokens(size):
    image = laid_out(*size)
    assert (image.num_tiles, image.map_size, image.num_tokens) == PUBLISHED[size]
    assert len(index_table(image, 0)) == image.num_tokens


def test_table_has_the_thumbnail_then_rows_of_the_map_each_ended_by_the_newline():
    """A 2 x 1 grid of tiles with 4 x 4 patches: of its four rows of patches padding takes the first and the last."""
    image = lay_out((80, 21), [(1, 1), (2, 1)], side=28, patch_size=7)
    assert (image.grid, image.map_size, image.num_tiles) == ((2, 1), (8, 2), 3)
    thumbnail = [*range(1, 17)]
    rows = [21, 22, 23, 24, 37, 38, 39, 40, NEWLINE, 25, 26, 27, 28, 41, 42, 43, 44, NEWLINE]
    assert index_table(image, 0).tolist() == [*thumbnail, *rows]
    later = [f + 2 * 16 if f != NEWLINE else NEWLINE for f in [*thumbnail, *rows]]
    assert index_table(image, 2).tolist() == later


def test_a_text_s_table_has_its_images_in_order_and_refuses_another_number_of_tokens():
    images = [lay_out(size, [(1, 1)], side=28, patch_size=14) for size in ((28, 28), (10, 20))]
    counts = [image.num_tokens for image in images]
    is_image = np.array([False, *[True] * counts[0], False, *[True] * counts[1], False])
    table = text_table(is_image, images, first_tile=3)
    assert (table[~is_image] == TEXT).all()
    want = np.concatenate([index_table(images[0], 3), index_table(images[1], 3 + images[0].num_tiles)])
    assert table[is_image].tolist() == want.tolist()
    with pytest.raises(ValueError, match=f"{sum(counts) - 1} image tokens in the text, but its 2 images take"):
        text_table(is_image[:-2], images)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 7 pixels; allowed: at least 1 x 1"):
        laid_out(0, 7)
