"""Laws of images in the engine: they change nobody's bits, and what was computed of pixels is found by those alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.data.image_grid import text_table
from mm01_jax.data.images.processor import layout_of
from mm01_jax.inference import engine_devices, engine_saved
from mm01_jax.inference.asked import Shown
from mm01_jax.inference.drill.cases import Cases
from mm01_jax.inference.drill.schedules import Count, run_schedule
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_processes import lead
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.sampling import Sampling
from mm01_jax.model import multimodal
from mm01_jax.model.layers import shardings
from tests import small
from tests.data import conversation_data as data
from tests.slow import slow_but

VOCAB = data.VISION.image_token  # ids of text are below it
SIZES = {"num_slots": 8, "max_length": 96, "grid": 8, "pieces": 4, "steps": 4, "tiles": 8, "keep_logits": True}
GREEDY = Sampling(temperature=0.0)
DRILLS = (
    (None, 2),
    (None, 20),
    ({"data": 2, "sequence": 2}, 4),
    ({"expert": 2, "tensor": 2, "sequence": 2}, 4),
    ({"data": 8}, 4),
)
RANDOM = np.random.default_rng(0)


@functools.cache
def model(**mesh):
    """Weights large enough that images decide what it says."""
    base, config = small.config(model__num_heads=4, model__num_kv_heads=2), MeshConfig(**mesh)
    with small.one_device():
        found = multimodal.build(small.replace(base, vision=data.VISION), rngs=nnx.Rngs(params=3))
        found = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, found)
    on = sharding.make_mesh(config, jax.devices()[: config.size(mesh)])
    return jax.device_put(found, shardings(found, on, config.rules))


def engine(mesh: dict | None = None, **options) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_devices, "jit", small.unoptimised)
        return Engine(model(**(mesh or {})), vocab_size=VOCAB, **SIZES, **options)


@functools.cache
def alone() -> Engine:
    return engine()


def prompt(parts: list, seed: int = 0) -> tuple[np.ndarray, Shown]:
    """Ids of texts (their lengths) and of images (their sizes), and pixels that the seed decides."""
    random, ids, layouts = np.random.default_rng(seed), [], []
    for part in parts:
        if isinstance(part, int):
            ids.append(np.arange(part) * 7 % 200)
        else:
            layouts.append(layout_of(part, data.VISION, "an image"))
            ids.append(np.full(layouts[-1].num_tokens, data.VISION.image_token))
    ids = np.concatenate(ids).astype(np.int32)
    count, side = sum(layout.num_tiles for layout in layouts), data.VISION.image_size
    tiles = random.normal(size=(count, 3, side, side)).astype(np.float32)
    return ids, Shown(tiles, text_table(ids == data.VISION.image_token, layouts))


def asking(parts: list, seed: int = 0, **options) -> Request:
    ids, shows = prompt(parts, seed)
    return Request(prompt=ids, shows=shows, **{"max_tokens": 5, "sampling": GREEDY, **options})


def answer(engine: Engine, request: Request):
    id = engine.submit(request)
    engine.run()
    return engine.forget(id)


def bits(result) -> list[bytes]:
    return [logits.tobytes() for logits in result.logits]


def cases(alone: Engine) -> Cases:
    """Requests of text, and of one or two images each of which comes with two sorts of pixels."""
    found = Cases(alone, VOCAB, longest=48, count=16, seed=0)
    forms = [[3, (20, 20), 9], [17, (10, 30), 4, (40, 15), 6], [(20, 20), 30], [8, (20, 20), 8]]
    for form in forms:
        for seed in (0, 1):
            for request in found.requests[:2]:
                ids, shows = prompt(form, seed)
                found.requests.append(dataclasses.replace(request, prompt=ids, shows=shows))
    return found


def drilled(mesh: dict | None, schedules: int) -> tuple[Count, dict]:
    drill, count, random = engine(mesh, prefix_bytes=10**7, poison=True), Count(), np.random.default_rng(0)
    asked = cases(engine(mesh))
    for _ in range(schedules):
        run_schedule(drill, asked, 32, random, count)
    return count, drill.statistics()


@pytest.mark.parametrize(("mesh", "schedules"), slow_but(DRILLS[:1], DRILLS), ids=str)
def test_random_schedules_with_images_have_the_bits_of_each_request_alone(mesh, schedules):
    count, said = drilled(mesh, schedules)
    assert (count.equal, count.different) == (32 * schedules, 0)
    assert said["prefix"]["hits"] > 0 and said["prefix"]["misses"]["other pixels"] > 0 and said["preempted"] > 0


def test_the_same_pixels_are_found_and_other_pixels_are_not():
    remembers, form = engine(prefix_bytes=10**7), [16, (20, 20), 20]
    first, again, other = (answer(remembers, asking(form, seed)) for seed in (0, 0, 1))
    assert again.cached == 40 and again.miss is None and bits(again) == bits(first)
    assert other.cached == 16, "the text before the image"
    assert other.miss == "other pixels" and bits(other) != bits(first)
    assert bits(other) == bits(answer(alone(), asking(form, 1)))


def test_pixels_that_were_taken_in_before_are_not_looked_at_again():
    remembers, form = engine(prefix_bytes=10**7), [(20, 20), 20]
    tower, looked = remembers.devices._prefill.tower, []
    look = tower._features
    tower._features = lambda *arguments: looked.append(1) or look(*arguments)
    first = answer(remembers, asking(form))
    assert len(looked) == 1
    second = answer(remembers, next_turn(asking(form), first.tokens))
    assert len(looked) == 1 and second.cached >= 24


def next_turn(turn: Request, said: list[int]) -> Request:
    """A prompt of an earlier one, its answer, and nine tokens more."""
    prompt = np.concatenate([turn.prompt, said, np.arange(9)]).astype(np.int32)
    index = np.pad(turn.shows.index, (0, len(prompt) - len(turn.prompt)), constant_values=-1)
    return dataclasses.replace(turn, prompt=prompt, shows=turn.shows._replace(index=index))


def test_a_saved_conversation_with_images_is_found_by_who_shows_the_same(tmp_path):
    remembers, other, turn = engine(prefix_bytes=10**7), engine(prefix_bytes=10**7), asking([16, (20, 20), 20])
    said = answer(remembers, turn).tokens
    talk = np.concatenate([turn.prompt, said])
    assert engine_saved.save(remembers, talk, tmp_path / "talk", shows=turn.shows) == 48
    assert engine_saved.load(other, tmp_path / "talk") == 48
    for seed, cached in ((0, 48), (1, 0)):
        asked = next_turn(asking([16, (20, 20), 20], seed), said)
        found = answer(other, asked)
        assert found.cached == cached and bits(found) == bits(answer(alone(), asked))
    with pytest.raises(ValueError, match="and no images; allowed: as many as the images take"):
        engine_saved.save(remembers, talk, tmp_path / "blind")


def test_led_an_engine_sees_what_it_sees_alone():
    asked, led = [asking([4, (20, 20), 3], seed) for seed in (0, 1)], lead(alone())
    ids = [led.submit(one) for one in asked]
    led.run()
    found = [led.forget(id) for id in ids]
    led.close()
    assert [bits(one) for one in found] == [bits(answer(alone(), one)) for one in asked]
    assert bits(found[0]) != bits(found[1])


def test_images_of_more_tiles_than_a_call_of_the_tower_are_seen_whole():
    """Fourteen tiles in calls of eight; the last of them decides, too."""
    asked = asking([(10, 30), 2, (10, 30), 2, (20, 20), 2, (20, 20), 2, (20, 20), 5])
    assert 8 < len(asked.shows.tiles) <= 16
    found, tiles = answer(alone(), asked), asked.shows.tiles.copy()
    tiles[-1] += 1
    assert bits(answer(alone(), dataclasses.replace(asked, shows=asked.shows._replace(tiles=tiles)))) != bits(found)
    tokens, index = (np.concatenate([x, y]) for x, y in ((asked.prompt, found.tokens), (asked.shows.index, [-1] * 5)))
    positions, segments = np.arange(len(tokens), dtype=np.int32)[None], np.zeros((1, len(tokens)), np.int32)
    with small.one_device():
        row = tokens[None].astype(np.int32), positions, segments
        whole = model()(*row, asked.shows.tiles[None], index[None].astype(np.int32))
    expected = np.argmax(np.asarray(whole)[0, len(asked.prompt) - 1 : -1, :VOCAB], axis=-1)
    assert found.tokens == expected.tolist()


WRONG = {
    "no images": ({"shows": None}, r"prompt: got 10 tokens of images \(id 255\) and no images"),
    "no Shown": ({"shows": (1, 2)}, "shows: got a tuple; allowed: a Shown"),
    "tiles of another type": (
        {"tiles": np.zeros((1, 3, 16, 16))},
        r"shows.tiles: got float64\[1, 3, 16, 16\]; allowed",
    ),
    "tiles of another size": ({"tiles": np.zeros((1, 3, 8, 8), np.float32)}, r"shows.tiles: got float32\[1, 3, 8, 8\]"),
    "a pixel that is none": ({"tiles": np.full((2, 3, 16, 16), np.nan, np.float32)}, "shows.tiles: got numbers that"),
    "a table of another length": ({"index": np.zeros(3, int)}, r"shows.index: got int64\[3\]; allowed: a whole number"),
    "a patch beyond the tiles": ({"index": 99}, "shows.index: got 99; allowed: -1 .text. to 8, the last patch"),
    "an image where text is": ({"at": 0}, "shows.index: got 1 at token 0, which is 0; allowed: an image at the tokens"),
}


@pytest.mark.parametrize("what", WRONG)
def test_images_that_cannot_be_are_refused_by_name(what):
    change, named = WRONG[what]
    asked = asking([4, (20, 20), 3])
    shows = asked.shows
    if "tiles" in change:
        shows = shows._replace(tiles=change["tiles"])
    elif "at" in change:
        shows.index[change["at"]] = 1
    elif isinstance(change.get("index"), int):
        shows.index[4] = change["index"]
    elif "index" in change:
        shows = shows._replace(index=change["index"])
    else:
        shows = change["shows"]
    with pytest.raises(ValueError, match=named):
        alone().submit(dataclasses.replace(asked, shows=shows))


def test_an_engine_that_takes_no_images_says_so():
    told = {"num_slots": 8, "max_length": 64, "grid": 8}
    with pytest.raises(ValueError, match="shows: got images; allowed: none of an engine of tiles=0; nearest: Engine"):
        Engine(model(), **told).submit(asking([4, (20, 20), 3]))
    with small.one_device(), pytest.raises(ValueError, match="tiles: got 3; allowed: 0 of a model without a vision"):
        Engine(small.model(), tiles=3, **told)
    with pytest.raises(
        ValueError, match="tiles: got 3; allowed: 0, or a multiple of the 2 shards of the rows; nearest: 4"
    ):
        Engine(model(data=2), tiles=3, **told)
