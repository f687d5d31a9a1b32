"""Laws of what the engine remembers: hits change no bit, are counted exactly, and every miss says why."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from mm01_jax.inference.drill.schedules import Count, run_schedule
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.prefix import Prefix
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines
from tests.slow import slow_but

GRID = engines.SIZES["grid"]
GREEDY = Sampling(temperature=0.0)
NEW = {"max_tokens": 4, "sampling": GREEDY}


def answer(engine, prompt, **options):
    id = engine.submit(Request(prompt=prompt, **{**NEW, **options}))
    engine.run()
    return engine.forget(id)


def tokens(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(engines.VOCAB, size=count).astype(np.int32)


BUDGETS = (
    {"prefix_bytes": 10**9},
    {"prefix_bytes": 20_000},
    {"prefix_bytes": 40_000, "host_bytes": 40_000, "path_states": 2},
    {"prefix_bytes": 10**9, "snapshots": 3},
)


@pytest.mark.parametrize("budget", slow_but(BUDGETS[2:3], BUDGETS), ids=str)
def test_whatever_is_remembered_random_schedules_have_the_bits_of_each_request_alone(budget):
    engine, count, random = engines.engine(poison=True, **budget), Count(), np.random.default_rng(7)
    for _ in range(6):
        run_schedule(engine, engines.cases(), 32, random, count)
    assert (count.equal, count.different) == (192, 0)
    found = engine.statistics()["prefix"]
    assert found["hits"] > 60
    assert found["bytes"] <= budget["prefix_bytes"] and found["host_bytes"] <= budget.get("host_bytes", 0)


@pytest.mark.parametrize(
    "grid, shared, total, requests", slow_but(((8, 197, 290, 12),), ((8, 197, 290, 12), (64, 1500, 2200, 64)))
)
def test_of_tokens_that_requests_share_nearly_all_are_reused_from_the_second_on(grid, shared, total, requests):
    length = -(-(total + 8) // grid) * grid
    engine = engines.engine(grid=grid, max_length=length, prefix_bytes=10**10, keep_logits=False)
    head, reused = tokens(shared, 0), []
    for number in range(requests):
        prompt = np.concatenate([head, tokens(total - shared, 1 + number)])
        reused.append(answer(engine, prompt).cached)
    assert reused == [0] + [shared // grid * grid] * (requests - 1)
    assert sum(reused) >= (0.98 if shared == 1500 else 0.97) * shared * (requests - 1)
    found = engine.statistics()["prefix"]
    assert (found["reused_tokens"], found["asked_tokens"]) == (sum(reused), total * requests)
    assert found["misses"] == {"new tokens": requests}


@pytest.mark.parametrize("lanes", slow_but((3,), (1, 3)))
def test_those_that_come_together_find_what_the_first_of_them_leaves(lanes):
    engine = engines.engine(prefix_bytes=10**10, lanes=lanes)
    head = tokens(35, 0)
    prompts = [np.concatenate([head, tokens(20, 1 + number)]) for number in range(12)]
    cold = [answer(engines.alone(), prompt) for prompt in prompts]
    ids = [engine.submit(Request(prompt=prompt, **NEW)) for prompt in prompts]
    engine.run()
    found = [engine.forget(id) for id in ids]
    assert [one.cached for one in found] == [0] + [32] * 11
    assert [one.tokens for one in found] == [one.tokens for one in cold]
    said = engine.statistics()
    assert said["prefix"]["reused_tokens"] == 32 * 11 and said["prefix"]["lookups"] == 12


@pytest.mark.parametrize("grid, turns, said", slow_but(((8, 5, 20),), ((8, 5, 20), (64, 50, 150))))
def test_a_conversation_is_taken_in_once_answers_included(grid, turns, said):
    answered = said // 2
    length = -(-(turns * (said + answered)) // grid) * grid + grid
    engine = engines.engine(grid=grid, max_length=length, prefix_bytes=10**10, keep_logits=False)
    history, earlier, reused = np.zeros(0, np.int32), 0, 0
    for turn in range(turns):
        prompt = np.concatenate([history, tokens(said, turn)])
        found = answer(engine, prompt, max_tokens=answered)
        assert found.cached == len(history) // grid * grid
        earlier, reused = earlier + len(history), reused + found.cached
        history = np.concatenate([prompt, np.array(found.tokens, np.int32)])
    assert reused >= (0.99 if turns == 50 else 0.9) * earlier


@pytest.mark.parametrize("length", [k * GRID + d for k in (1, 3) for d in (-1, 0, 1)])
def test_a_prompt_asked_again_reuses_all_pieces_that_leave_a_token(length):
    engine, prompt = remembering(), tokens(length, 100 + length)
    first, second = answer(engine, prompt), answer(engine, prompt)
    assert first.cached == 0
    assert second.cached == (length - 1) // GRID * GRID
    assert [x.tobytes() for x in first.logits] == [x.tobytes() for x in second.logits]
    assert second.miss == ("shorter than a piece" if length <= GRID else None)


_ENGINES = {}


def remembering():
    """One engine for these tests, with room for everything."""
    if "one" not in _ENGINES:
        _ENGINES["one"] = engines.engine(prefix_bytes=10**9)
    return _ENGINES["one"]


def test_what_a_prompt_means_besides_its_tokens_is_part_of_the_key():
    engine, prompt = remembering(), tokens(30, 50)
    answer(engine, prompt, content=b"a picture")
    other = answer(engine, prompt, content=b"another")
    assert (other.cached, other.miss) == (0, "other content")
    assert answer(engine, prompt, content=b"a picture").cached == 24


def test_what_is_kept_is_no_part_of_a_slot_that_changes_later():
    engine, prompt = remembering(), tokens(33, 60)
    cold = answer(engine, prompt)
    for seed in range(16):  # every slot gets other tenants
        answer(engine, tokens(40, 200 + seed))
    warm = answer(engine, prompt)
    assert warm.cached == 32
    assert [x.tobytes() for x in cold.logits] == [x.tobytes() for x in warm.logits]


class Payload:
    """A tree of one array of so many bytes."""

    def __new__(cls, count: int):
        return np.zeros(count, np.uint8)


class OnHost(np.ndarray):
    """Such an array, moved there."""


def moved(kind: type):
    """What moves a tree: the same bytes as an array of that kind."""
    return lambda tree: None if tree is None else tree.view(kind)


def tree(**options) -> Prefix:
    return Prefix(2, **{"budget": 10**6, **options})


def put(prefix: Prefix, *ids: int, content: bytes = b"", page: int = 10, state: int = 100) -> None:
    prefix.put(content, np.array(ids, np.int32), lambda _: Payload(page), lambda: Payload(state))


def reach(prefix: Prefix, *ids: int, content: bytes = b"") -> tuple[int, str | None]:
    """(pieces to go on from, why no more) of a prompt."""
    found = prefix.find(content, np.array(ids, np.int32))
    return len(found.pages), found.miss


def test_a_miss_says_why():
    prefix = tree()
    put(prefix, 1, 2, 3, 4, 5, 6)
    assert reach(prefix, 1, 2) == (0, "shorter than a piece")
    assert reach(prefix, 1, 2, 3, 4, 5, 6, 7) == (3, None)
    assert reach(prefix, 1, 2, 3, 4, 5, 6) == (0, "no states kept there")
    assert reach(prefix, 9, 9, 9) == (0, "new tokens")
    assert reach(prefix, 1, 2, 3, 4, 5, 6, 7, 8, 9) == (3, "new tokens")
    assert reach(prefix, 1, 2, 9, content=b"x") == (0, "other content")
    put(prefix, 1, 2)
    assert reach(prefix, 1, 2, 9, 9, 9) == (1, "new tokens")
    prefix.clear("other weights")
    assert reach(prefix, 1, 2, 3, 4, 5) == (0, "other weights")
    assert prefix.bytes == 0
    misses = prefix.statistics()["misses"]
    assert misses.pop("new tokens") == 3 and set(misses.values()) == {1}


def test_the_least_recently_used_goes_first_and_with_it_the_pages_that_lead_nowhere():
    prefix = tree(budget=350)
    put(prefix, 1, 1, 2, 2)  # 120 bytes
    put(prefix, 3, 3, 4, 4)
    reach(prefix, 1, 1, 2, 2, 0)
    put(prefix, 5, 5, 6, 6)  # 360 bytes
    assert reach(prefix, 3, 3, 4, 4, 0) == (0, "evicted")
    assert reach(prefix, 1, 1, 2, 2, 0) == reach(prefix, 5, 5, 6, 6, 0) == (2, None)
    assert prefix.statistics()["pages"] == 4 and prefix.bytes == 240


def test_states_inside_a_path_outlive_the_path_that_parts_from_it():
    prefix = tree(budget=350)
    put(prefix, 1, 1)
    put(prefix, 1, 1, 2, 2)
    put(prefix, 1, 1, 3, 3)  # 330 bytes: a shared page, two of their own, three states
    reach(prefix, 1, 1, 3, 3, 0)
    put(prefix, 9, 9)
    assert reach(prefix, 1, 1, 2, 2, 0) == (1, "evicted")
    assert reach(prefix, 1, 1, 3, 3, 0) == (2, None)


def test_what_goes_to_the_host_is_found_and_comes_back():
    moved = []
    moves = {name: lambda tree, name=name: (moved.append(name), tree)[1] for name in ("to_host", "to_devices")}
    prefix = tree(budget=250, host_budget=130, **moves)
    for first in (1, 3, 5):
        put(prefix, first, first, 2, 2)
    assert (prefix.bytes, prefix.host_bytes) == (250, 110) and set(moved) == {"to_host"}
    assert reach(prefix, 1, 1, 2, 2, 0) == (2, None) and "to_devices" in moved
    assert prefix.bytes <= 250 and prefix.host_bytes <= 130
    put(prefix, 7, 7, 2, 2)
    assert prefix.statistics()["evicted_states"] == 1


def test_a_path_keeps_few_states_ever_wider_apart_from_its_end_on():
    prefix = tree(path_states=4)
    for length in range(2, 66, 2):
        put(prefix, *range(length))
    held = [node.depth for node in prefix._nodes() if node.state is not None]
    held.sort()
    assert len(held) == 4 and held[-1] == 32
    gaps = np.diff([0, *held])
    assert list(gaps) == sorted(gaps, reverse=True) and gaps[-1] <= 4
    put(prefix, 90, 90)
    assert reach(prefix, 90, 90, 1) == (1, None)


def used_at_random(random: np.random.Generator, prefix: Prefix) -> Iterator[None]:
    """After each of 400 uses."""
    for _ in range(400):
        ids = [int(id) for id in random.integers(3, size=2 * random.integers(1, 7))]
        if random.integers(2):
            put(prefix, *ids, page=int(random.integers(1, 30)), state=int(random.integers(1, 300)))
        else:
            reach(prefix, *ids, 0)
        yield


def test_random_use_keeps_the_counts_of_bytes():
    moves = {"to_host": moved(OnHost), "to_devices": moved(np.ndarray)}
    random, prefix = np.random.default_rng(0), tree(budget=2_000, host_budget=700, path_states=3, **moves)
    for _ in used_at_random(random, prefix):
        sizes = {False: 0, True: 0}
        for node in prefix._nodes():
            for payload in [node.page] if node.state is None else [node.page, node.state]:
                sizes[isinstance(payload, OnHost)] += payload.nbytes
            assert node.children or node.state is not None, "a page that leads nowhere"
        assert (prefix.bytes, prefix.host_bytes) == (sizes[False], sizes[True])
        assert prefix.bytes <= 2_000 and prefix.host_bytes <= 700
    assert prefix.statistics()["to_host"] > 10


def test_random_use_without_a_host_drops_what_was_used_longest_ago_the_deepest_of_it_first():
    random, prefix = np.random.default_rng(1), tree(budget=2_000, path_states=3)
    for _ in used_at_random(random, prefix):
        held = [node for node in prefix._nodes() if node.state is not None]
        assert [*prefix._stated] == sorted(held, key=lambda node: (node.used, -node.depth))
        assert prefix.bytes <= 2_000
    assert prefix.counts["evicted_states"] > 10


def test_a_content_whose_last_piece_went_leaves_nothing():
    prefix = tree(budget=350)
    for number in range(50):
        put(prefix, 1, 1, 2, 2, content=number.to_bytes(4, "little"))
    assert len(prefix._roots) == 2


def test_new_weights_forget_what_the_old_ones_left_and_give_the_answers_of_a_new_engine():
    engine, prompt = engines.engine(prefix_bytes=10**9), tokens(33, 91)
    before = answer(engine, prompt)
    other = jax.tree.map(lambda x: x * 1.5, engines.model())
    with pytest.raises(ValueError, match="requests are under way"):
        engine.submit(Request(prompt=prompt, **NEW))
        engine.use(other)
    engine.run()
    engine.use(other)
    found, again = answer(engine, prompt), answer(engine, prompt)
    assert (found.cached, found.miss, again.cached) == (0, "other weights", 32)
    assert found.tokens != before.tokens
    engine.use(engines.model())
    back = answer(engine, prompt)
    assert [x.tobytes() for x in back.logits] == [x.tobytes() for x in before.logits]
    with pytest.raises(ValueError, match="another config"):
        engine.use(engines.model(engines.VARIANT.replace(softmax_alpha=2.5)))
    with pytest.raises(ValueError, match="model: got a int; allowed: TextModel or VLModel"):
        engine.use(3)


@pytest.mark.parametrize("kind", ("lightning", "softmax"))
def test_a_model_whose_layers_are_of_one_kind_remembers_too(kind):
    engine, prompt = engines.engine(engines.VARIANT.replace(period=(kind,)), prefix_bytes=10**9), tokens(33, 92)
    cold, warm = answer(engine, prompt), answer(engine, prompt)
    assert (cold.cached, warm.cached) == (0, 32)
    assert [x.tobytes() for x in warm.logits] == [x.tobytes() for x in cold.logits]
