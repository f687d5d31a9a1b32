"""Entropies of the targets that an evaluation scores."""

import numpy as np
import pytest

from mm01_jax.config import DataConfig
from mm01_jax.data.batch import Batch
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.entropy import entropy
from mm01_jax.data.pipeline import batches


def batch(tokens, targets, weights=None):
    weights = np.ones(len(tokens)) if weights is None else weights
    unread = np.zeros((1, len(tokens)), np.int32)
    return Batch(np.array([tokens], np.int32), np.array([targets], np.int32), unread, unread, np.array([weights]))


def test_a_coin_has_one_bit_and_a_known_previous_token_can_take_it_away():
    fair = entropy([batch([0, 0, 0, 0], [1, 2, 1, 2])])
    assert fair.unigram == pytest.approx(np.log(2), abs=1e-15) and fair.bigram == pytest.approx(np.log(2), abs=1e-15)
    told = entropy([batch([1, 2, 1, 2], [1, 2, 1, 2])])
    assert told.unigram == pytest.approx(np.log(2), abs=1e-15) and told.bigram == pytest.approx(0.0, abs=1e-15)


def test_targets_without_weight_do_not_count():
    weighted = entropy([batch([0, 0, 5, 0], [1, 2, 9, 9], [1.0, 1.0, 0.0, 0.0])])
    assert weighted == entropy([batch([0, 0], [1, 2])]) and weighted.num_targets == 2
    with pytest.raises(ValueError, match="no target"):
        entropy([batch([0], [1], [0.0])])


def test_no_table_of_probabilities_beats_the_bigram_entropy_of_its_own_targets():
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 5, 3000), rng.integers(0, 5, 3000)
    found = entropy([batch(tokens[:1000], targets[:1000]), batch(tokens[1000:], targets[1000:])])
    counts = np.zeros((5, 5))
    np.add.at(counts, (tokens, targets), 1)
    best = counts / counts.sum(axis=1, keepdims=True)
    assert -np.log(best[tokens, targets]).mean() == pytest.approx(found.bigram, abs=1e-12)
    for table in rng.dirichlet(np.ones(5), (100, 5)):
        assert -np.log(0.9 * best + 0.1 * table)[tokens, targets].mean() > found.bigram


def test_held_out_entropies_of_the_standard_library_are_those_of_text():
    dataset = open_dataset(DataConfig(), 256, 257)
    found = entropy(b for _, b in batches(dataset.held_out, 0, lambda step: 8, vocab_size=257))
    assert found.num_targets == dataset.held_out.documents.num_bytes
    assert 1.5 < found.bigram < found.unigram < 4.5
