"""Laws of the choice between gathered keys and a ring."""

import dataclasses

import pytest

from configs import bench_1b, text_01_1m
from mm01_jax.parallel.softmax.choice import MOST_HELD, choose, costs
from mm01_jax.plan.memory import sequence_keys


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize("shards", [2, 4, 64])
def test_ring_sends_more_and_never_holds_more(shards, item, remat):
    found = costs(1000, item, shards, remat)
    assert found["ring"].sent > found["gather"].sent
    assert found["ring"].held <= found["gather"].held


def test_two_shards_of_float32_keys_cost_what_the_table_says():
    found = costs(100, 4, 2, "none")
    assert dataclasses.astuple(found["gather"]) == (100 + 100, 2 * 200)
    assert dataclasses.astuple(found["ring"]) == (100 + 100 + 200, 2 * 200)


def test_keys_are_gathered_until_they_fill_the_memory_set_aside():
    own = MOST_HELD // (8 * 3)  # bfloat16, and float32 gradients: three times their bytes, of eight shards
    assert choose(own, 2, 8, "full") == "gather"
    assert choose(own + 1, 2, 8, "full") == "ring"
    assert choose(own + 1, 2, 4, "full") == "gather"  # half the shards hold half as much
    assert choose(MOST_HELD, 2, 8, "full") == "ring"


def test_a_million_tokens_go_round_and_eight_thousand_are_gathered():
    assert choose(*sequence_keys(text_01_1m.get_config()), "full") == "ring"
    small = bench_1b.get_config()
    small = dataclasses.replace(small, mesh=dataclasses.replace(small.mesh, sequence=2))
    assert choose(*sequence_keys(small), "full") == "gather"
