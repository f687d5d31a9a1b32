"""Packed documents do not see each other: exactly, wherever the boundaries are, and whatever ids they have."""

import functools

import jax
import numpy as np
import pytest

from mm01_jax.inference.scoring import token_loss
from mm01_jax.model.mixers import empty_cache
from pallas_kernels.lightning_attention import xla as lightning_xla
from pallas_kernels.softmax_attention import xla as softmax_xla
from tests import small
from tests.model import packings
from tests.model.jax_model import compiled, leaf_arrays
from tests.reference.documents import document_numbers

S, CHUNK = 40, 16  # two whole chunks and a part of one
LOSS_CHUNK = 32  # tokens whose logits are held at a time
# Head counts that are no powers of two, both mixers, every kind of residual.
MODEL = small.variant(num_heads=6, num_kv_heads=3, head_dim=4, num_experts_per_token=3, softmax_beta=0.5)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    with pytest.MonkeyPatch.context() as patch, small.one_device():
        patch.setattr(lightning_xla, "CHUNK", CHUNK)
        patch.setattr(softmax_xla, "QUERY_BLOCK", CHUNK)
        yield


@functools.cache
def weights():
    return small.model(MODEL)


@functools.cache
def differentiated():
    """(model, batch) -> logits of all tokens, gradients of the mean loss over `batch.weights`."""

    def loss(model, batch):
        hidden, _, _ = model.forward(model.embed_tokens(batch.tokens), batch.positions, batch.segments)
        return token_loss(model, hidden, batch, LOSS_CHUNK), model.logits(hidden)

    return compiled(jax.grad(loss, has_aux=True))


def evaluated(batch):
    """(logits, gradients by path)."""
    gradient, logits = differentiated()(weights(), batch)
    return np.asarray(logits), leaf_arrays(gradient)


def assert_no_leak(seed: int):
    batch, places = packings.packed(seed, S)
    before, after = evaluated(batch), evaluated(packings.perturbed(batch, places, seed))
    packings.assert_nothing_else_moved(places, batch.segments >= 0, before, after)


def assert_packed_equals_one_by_one(seed: int):
    """Each document alone at the start of a row: its logits, and the sum of all gradients."""
    batch = small.batch(packings.segmentation(np.random.default_rng(seed), S), seed=seed)
    documents = document_numbers(batch.segments)
    gradient, logits = differentiated()(weights(), batch)
    total = dict.fromkeys(leaf_arrays(gradient), 0.0)
    for row, document in [(r, d) for r in range(2) for d in set(documents[r].tolist()) - {-1}]:
        (places,) = np.nonzero(documents[row] == document)
        alone = jax.tree.map(lambda x: np.zeros((2, S), x.dtype), batch)
        alone.segments[...] = -1
        for array, whole in zip(*map(jax.tree.leaves, (alone, batch)), strict=True):
            array[0, : len(places)] = whole[row, places]
        part, logits_alone = differentiated()(weights(), alone)
        total = {path: total[path] + x for path, x in leaf_arrays(part).items()}
        want = np.asarray(logits_alone)[0, : len(places)]
        # float32 sums in another order through two layers, as in tests/model/test_model_reference.py.
        np.testing.assert_allclose(np.asarray(logits)[row, places], want, rtol=0, atol=1e-5 * np.abs(want).max())
    for path, whole in leaf_arrays(gradient).items():
        np.testing.assert_allclose(whole, total[path], rtol=0, atol=1e-5 * np.abs(whole).max(), err_msg=path)


@pytest.mark.parametrize("seed", range(8))
def test_perturbing_one_document_changes_logits_and_gradients_of_the_others_by_exactly_zero(seed):
    assert_no_leak(seed)


@pytest.mark.parametrize("seed", range(3))
def test_packed_documents_equal_one_by_one(seed):
    assert_packed_equals_one_by_one(seed)


def test_a_cache_goes_on_with_the_first_document_whatever_its_segment_id():
    tokens = small.batch(np.zeros((1, 12), np.int32)).tokens
    at = np.arange(12, dtype=np.int32)[None]
    real = at % 5 != 4

    @compiled
    def second_half(model, segments):
        cache = empty_cache(*MODEL, model.rules, 1, 12)
        for part in (slice(6), slice(6, None)):
            hidden, cache, _ = model.forward(model.embed_tokens(tokens[:, part]), at[:, part], segments[:, part], cache)
        return hidden, cache

    zero, seven = (second_half(weights(), np.where(real, i, -1).astype(np.int32)) for i in (0, 7))
    jax.tree.map(np.testing.assert_array_equal, zero, seven)
    assert np.asarray(zero[0]).any()


@pytest.mark.slow
def test_no_leak_and_equal_to_one_by_one_in_200_more_packings():
    for seed in range(100, 300):
        assert_no_leak(seed)
        assert_packed_equals_one_by_one(seed)
