"""Rows of a batch of perplexity: short ones go together."""

import pytest

from mm01_jax.config import MeshConfig
from mm01_jax.evals import perplexity
from tests import small


@pytest.mark.parametrize(("length", "rows"), [(1, 1024), (8, 128), (1000, 3), (2**20, 1)])
def test_rows_of_one_token_are_put_together_and_long_ones_are_as_many_as_in_training(length, rows):
    config = small.config(train__batch_size=3)
    assert perplexity._batch_size(config, MeshConfig(), length) == rows
