"""Packed rows whose segment ids come back, and batches that differ in one document alone."""

import numpy as np

from tests import small
from tests.reference.documents import PADDING, document_numbers

HALF = small.MODEL.vocab_size // 2  # ids below are the perturbed document's, ids above everyone else's


def segmentation(random, S: int) -> np.ndarray:
    """Two rows of 3 to 8 stretches with boundaries anywhere, of one token too; of three ids, the third stretch's is the
    first's again; padding at the ends, between and inside documents.
    """
    rows = []
    for _ in range(2):
        cuts = random.choice(np.arange(1, S - 1), size=random.integers(2, 6), replace=False)
        cuts = np.unique(np.append(cuts, cuts[0] + random.integers(2)))
        ids = random.integers(3, size=len(cuts) + 1)
        ids[1], ids[2] = (ids[0] + 1) % 3, ids[0]
        row = ids[np.searchsorted(cuts, np.arange(S), side="right")]
        row = np.where(random.random(S) < random.choice([0.0, 0.15]), -1, row)
        padded = (np.arange(S) < random.choice([0, 0, 3])) | (np.arange(S) >= S - random.choice([0, 0, 7]))
        rows.append(np.where(padded, -1, row))
    return np.stack(rows).astype(np.int32)


def packed(seed: int, S: int):
    """(batch in which one document of row 0 has ids below HALF and no targets, the places of that document)."""
    random = np.random.default_rng(seed)
    segments = segmentation(random, S)
    documents = document_numbers(segments)
    places = np.zeros_like(segments, bool)
    places[0] = documents[0] == random.choice(np.unique(documents[0][documents[0] != PADDING]))
    batch = small.batch(segments, seed=seed)
    tokens = np.where(places, batch.tokens % HALF, batch.tokens % HALF + HALF).astype(np.int32)
    return batch._replace(tokens=tokens, weights=np.where(places, np.float32(0), batch.weights)), places


def perturbed(batch, places, seed: int):
    other = np.random.default_rng(seed + 1000).integers(HALF, size=places.shape).astype(np.int32)
    return batch._replace(tokens=np.where(places, other, batch.tokens))


def assert_nothing_else_moved(places, real, before, after) -> None:
    """before, after: (logits, gradients by path) of a packed batch and the perturbed one."""
    (logits, gradient), (logits_after, gradient_after) = before, after
    np.testing.assert_array_equal(logits[real & ~places], logits_after[real & ~places])
    assert (logits != logits_after)[places].any()
    assert not gradient["embed"][:HALF].any()
    assert gradient["embed"][HALF:].any()
    for path in gradient:
        np.testing.assert_array_equal(gradient[path], gradient_after[path], err_msg=path)
