"""Law of the few likeliest: what a sort of all would give, equal ones in the same order."""

import jax
import numpy as np
import pytest

from mm01_jax.inference.likeliest import LEAST, WIDTH, likeliest

TOP = 5


@pytest.mark.parametrize("decimals", (8, 1, 0))  # the fewer, the more are equal
@pytest.mark.parametrize("count", (LEAST * WIDTH * TOP, 3001))
def test_the_few_likeliest_are_those_of_a_sort_of_all_also_where_many_are_equal(decimals, count):
    random = np.random.default_rng(decimals)
    x = np.round(random.normal(size=(16, count)), decimals).astype(np.float32) + 0.0  # no zero below zero
    x[:4, random.permutation(count)[TOP - 2 :]] = -np.inf  # fewer than are asked for may be chosen
    found = jax.jit(likeliest, static_argnums=1)(x, TOP)
    for row, best, place in zip(x, *map(np.asarray, found), strict=True):
        expected = np.argsort(-row, kind="stable")[:TOP]
        assert place.tolist() == expected.tolist() and best.tolist() == row[expected].tolist()
