"""What images may and may not change: text alone, neighbours, the order and padding of tiles; all of it exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm01_jax.config import MeshConfig, VisionConfig
from mm01_jax.data.image_grid import TEXT, lay_out, text_table
from mm01_jax.inference.scoring import token_loss
from mm01_jax.model.multimodal import VLModel, embeddings
from tests import small
from tests.model.jax_model import leaf_arrays

VISION = VisionConfig(
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=24,
    image_size=8,
    patch_size=4,
    grids=((1, 1), (2, 1)),
    image_token=300,
)
# Two rows of documents, each (words before, the image's size or None, words after).
DOCUMENTS = (((3, (8, 8), 2), (2, (16, 8), 1), (5, None, 0)), ((4, None, 0), (1, (20, 9), 6), (2, (5, 5), 3)))
SIZE, TILES = 48, 6
LAYOUTS = {
    size: lay_out(size, VISION.grids, VISION.image_size, VISION.patch_size)
    for row in DOCUMENTS
    for _, size, _ in row
    if size
}


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with small.one_device():
        yield


@functools.cache
def model() -> VLModel:
    make = small.unoptimised(
        lambda key: VLModel(small.MODEL, small.COMPUTE, MeshConfig().rules, VISION, rngs=nnx.Rngs(key))
    )
    return make(jax.random.key(0))


@functools.cache
def batch(tiles: int = TILES):
    """Random words, and noise for every real tile; zeros are the padding tiles."""
    random = np.random.default_rng(0)
    segments, index = np.full((2, SIZE), -1, np.int32), np.full((2, SIZE), TEXT, np.int32)
    pixels = np.zeros((2, tiles, 3, 8, 8), np.float32)
    for row, documents in enumerate(DOCUMENTS):
        at, tile = 0, 0
        for number, (before, size, after) in enumerate(documents):
            count = LAYOUTS[size].num_tokens if size else 0
            stop = at + before + count + after
            segments[row, at:stop] = number
            if size:
                own = np.zeros(stop - at, bool)
                own[before : before + count] = True
                index[row, at:stop] = text_table(own, [LAYOUTS[size]], tile)
                new = LAYOUTS[size].num_tiles
                pixels[row, tile : tile + new] = random.standard_normal((new, 3, 8, 8))
                tile += new
            at = stop
        assert at <= SIZE and tile <= tiles
    found = small.batch(segments, vocab_size=300)
    found.tokens[index != TEXT] = VISION.image_token
    return found._replace(tiles=pixels, image_index=index)


def places(row: int, number: int) -> np.ndarray:
    return np.flatnonzero(batch().segments[row] == number)


def tiles_of(row: int, number: int) -> slice:
    """The tiles of a document's image."""
    counts = [LAYOUTS[size].num_tiles if size else 0 for _, size, _ in DOCUMENTS[row]]
    return slice(sum(counts[:number]), sum(counts[: number + 1]))


def loss(weights, tiles, batch):
    x = embeddings(weights, batch.tokens, tiles, batch.image_index)
    hidden, _, stats = weights.forward(x, batch.positions, batch.segments)
    return token_loss(weights, hidden, batch, 32), (x, weights.logits(hidden), stats.assigned)


differentiated = small.unoptimised(jax.grad(loss, argnums=(0, 1), has_aux=True))


def evaluated(batch):
    """(embeddings, logits, assignments of each expert, gradients of the tiles, gradients of the weights)."""
    (weights, tiles), (x, logits, assigned) = differentiated(model(), batch.tiles, batch)
    return *map(np.asarray, (x, logits, assigned, tiles)), leaf_arrays(weights)


def test_a_batch_of_text_through_the_vl_model_equals_the_text_model_to_the_bit():
    text = batch()._replace(tiles=None, image_index=None)
    by_text, by_vl = (small.unoptimised(jax.grad(loss, has_aux=True))(m, None, text) for m in (model().text, model()))
    for one, other in zip(jax.tree.leaves(by_text[1]), jax.tree.leaves(by_vl[1]), strict=True):
        np.testing.assert_array_equal(one, other)
    gradients = leaf_arrays(by_vl[0])
    for path, want in leaf_arrays(by_text[0]).items():
        np.testing.assert_array_equal(gradients.pop(f"text/{path}"), want)
    assert gradients and not any(gradient.any() for gradient in gradients.values())


def test_tiles_that_no_token_asks_for_leave_the_embeddings_as_they_are_and_get_no_gradient():
    unused = batch()._replace(image_index=np.full_like(batch().image_index, TEXT))
    x, _, _, tiles, gradients = evaluated(unused)
    np.testing.assert_array_equal(x, np.asarray(jax.jit(model().text.embed_tokens)(unused.tokens)))
    assert not tiles.any()
    for path, gradient in gradients.items():
        assert gradient.any() == path.startswith("text/"), path


def test_tokens_of_images_give_the_embedding_table_no_gradient():
    assert not evaluated(batch())[4]["text/embed"][VISION.image_token].any()


@pytest.mark.parametrize(("row", "number"), [(0, 0), (0, 1), (1, 1), (1, 2)])
def test_another_image_moves_its_own_document_alone(row, number):
    changed = batch().tiles.copy()
    changed[row, tiles_of(row, number)] += 1.0
    before, after = evaluated(batch()), evaluated(batch()._replace(tiles=changed))
    own = places(row, number)
    first = own[batch().image_index[row, own] != TEXT][0]
    moved = np.argwhere((before[1] != after[1]).any(axis=-1))
    assert set(map(tuple, moved)) <= {(row, at) for at in own if at >= first} and len(moved) > 4
    # And the gradients of all other documents' tiles stay, to the bit.
    apart = (before[3] != after[3]).any(axis=(2, 3, 4))
    apart[row, tiles_of(row, number)] = False
    assert not apart.any()


@pytest.mark.parametrize(("row", "number"), [(0, 1), (1, 1)])
def test_a_document_s_loss_has_no_gradient_in_another_document_s_tiles(row, number):
    weights = np.zeros_like(batch().weights)
    weights[row, places(row, number)] = batch().weights[row, places(row, number)]
    tiles = evaluated(batch()._replace(weights=weights))[3].copy()
    own = tiles_of(row, number)
    assert all(tile.any() for tile in tiles[row, own])
    tiles[row, own] = 0
    assert not tiles.any()


def test_packed_documents_with_images_equal_each_alone_to_the_bit():
    before = evaluated(batch())[1]
    for row in range(2):
        for number in range(3):
            own = places(row, number)
            segments = np.full_like(batch().segments, -1)
            segments[row, own] = 0
            index = np.full_like(batch().image_index, TEXT)
            index[row, own] = batch().image_index[row, own]
            tiles = np.zeros_like(batch().tiles)
            tiles[row, tiles_of(row, number)] = batch().tiles[row, tiles_of(row, number)]
            alone = evaluated(batch()._replace(segments=segments, image_index=index, tiles=tiles))[1]
            np.testing.assert_array_equal(alone[row, own], before[row, own])


def test_the_order_of_tiles_in_a_row_changes_nothing():
    order = np.random.default_rng(1).permutation(TILES)
    index, patches = batch().image_index, VISION.num_patches
    tile, patch = np.divmod(index - 1, patches)
    moved = np.where(index > 0, 1 + np.argsort(order)[tile] * patches + patch, index).astype(np.int32)
    before = evaluated(batch())
    after = evaluated(batch()._replace(tiles=batch().tiles[:, order], image_index=moved))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[3], before[3][:, order])


def test_padding_tiles_change_nothing_whatever_they_hold():
    """Neither logits, nor how many tokens any expert gets, nor a gradient."""
    before = evaluated(batch())
    noise = batch().tiles.copy()
    padding = ~noise.any(axis=(2, 3, 4))
    assert padding.sum() == 2
    noise[padding] = 7.0
    after = evaluated(batch()._replace(tiles=noise))
    for one, other in zip(before[:4], after[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.array_equal(before[4][path], after[4][path]) for path in before[4])


@pytest.mark.slow
def test_another_bucket_of_tiles_is_another_order_of_sums_at_most():
    before, more = evaluated(batch()), evaluated(batch(2 * TILES))
    np.testing.assert_array_equal(more[2], before[2])
    np.testing.assert_allclose(more[1], before[1], rtol=0, atol=1e-5 * np.abs(before[1]).max())


def test_index_tables_name_every_feature_of_the_tower():
    """A feature that stands nowhere gets no gradient; all that stand somewhere do."""
    used = np.unique(batch().image_index[0])
    features = model().features(jnp.asarray(batch().tiles))

    def total(features):
        x = model().place(batch().tokens, features, batch().image_index)
        return jnp.sum(x * x)

    gradient = np.asarray(jax.jit(jax.grad(total))(features))[0].reshape(-1, small.MODEL.embed_dim)
    assert (np.flatnonzero(gradient.any(axis=-1)) + 1).tolist() == used[used > 0].tolist()
