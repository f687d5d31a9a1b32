"""A mixer that the project does not have, from a file of its own, enters by one line in the table and nothing else.

A run's config file names it too (`MixerKind`), and conversion wants its row: `test_the_three_places_…` compares them.
"""

import dataclasses
import functools
import importlib.util
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm01_jax import sharding
from mm01_jax.checkpoint import Checkpoints, leaf_paths, leaf_stacks
from mm01_jax.config import MeshConfig, MixerKind
from mm01_jax.convert import table
from mm01_jax.inference import steps
from mm01_jax.model import flops
from mm01_jax.model.abstract import abstract_model
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import MIXERS, cache_specs, empty_cache
from mm01_jax.train import step
from tests import small

WINDOW = 5  # tokens that a token of the mixer below sees, itself included
SOURCE = '''
"""Softmax attention over a sliding window: each token sees the last WINDOW tokens of its document."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mm01_jax import sharding
from mm01_jax.model.layers import cast_and_gather, einsum, param, xavier

WINDOW = 5


class Keys(NamedTuple):
    """(M, n, B, T, N, H) each; a token's slot is its position."""

    keys: jax.Array
    values: jax.Array


class Window(nnx.Module):
    def __init__(self, config, compute, rules, *, rngs, stack, gain):
        D, N, H = config.embed_dim, config.num_heads, config.head_dim
        make = lambda init: param(rngs, (D, N, H), ("embed", "heads", "head_dim"), init, stack=stack, compute=compute)
        self.query, self.key, self.value = make(xavier(D, N * H)), make(xavier(D, N * H)), make(xavier(D, N * H, gain))
        out = ("heads", "head_dim", "embed")
        self.out = param(rngs, (N, H, D), out, xavier(N * H, D, gain), stack=stack, compute=compute)
        self.rules = rules

    def __call__(self, x_BSD, tokens, cache):
        weights = [cast_and_gather(w, x_BSD.dtype, self.rules) for w in (self.query, self.key, self.value)]
        query, key, value = (einsum("bsd,dnh->bsnh", x_BSD, weight) for weight in weights)
        positions, documents = tokens.positions_BS, tokens.documents_BS
        key_positions, key_documents = positions, documents
        if cache is not None:
            slots = jnp.where(documents >= 0, positions, cache.arrays.keys.shape[3])  # padding is dropped
            rows = jnp.arange(slots.shape[0])[:, None]
            put = lambda old, new: old.at[rows, slots].set(new.astype(old.dtype), mode="drop")
            cache = cache.put(Keys(*map(put, cache.take(), (key, value))))
            key, value = cache.take()
            key_positions = jnp.broadcast_to(jnp.arange(key.shape[1])[None, :], key.shape[:2])
            key_documents = jnp.zeros_like(key_positions)
        ago = positions[:, :, None] - key_positions[:, None, :]
        seen = (ago >= 0) & (ago < WINDOW) & (documents[:, :, None] == key_documents[:, None, :])
        scores = einsum("bsnh,btnh->bnst", query, key, jnp.float32) / jnp.float32(query.shape[-1] ** 0.5)
        shares = jax.nn.softmax(jnp.where(seen[:, None], scores, jnp.float32(-1e30)), axis=-1)
        shares = jnp.where(seen[:, None], shares, jnp.float32(0)).astype(value.dtype)
        out = einsum("bnst,btnh->bsnh", shares, value)
        return einsum("bsnh,nhd->bsd", out, cast_and_gather(self.out, x_BSD.dtype, self.rules)), cache

    @staticmethod
    def residual(config):
        return config.softmax_alpha, config.softmax_beta

    @staticmethod
    def flops(config, num_keys):
        return 4.0 * config.num_heads * config.head_dim * min(num_keys, WINDOW)

    @staticmethod
    def kept(config):
        return 4 * config.num_heads * config.head_dim

    @staticmethod
    def empty_cache(config, compute, stack, batch_size, max_length):
        shape = (*stack, batch_size, max_length, config.num_heads, config.head_dim)
        return Keys(jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype))

    @staticmethod
    def cache_spec(rules):
        keys = sharding.spec(rules, None, None, "batch", None, "heads", None)
        return Keys(keys, keys)
'''
PERIOD = ("lightning", "window", "window")
CONFIG = small.config(train__batch_size=4, train__balance_loss="none", model__num_periods=2, model__period=PERIOD)
SEGMENTS = [[0] * 20 + [1] * 12, [0] * 31 + [-1], [3] * 5 + [4] * 27, [-1] * 10 + [1] * 22]


@pytest.fixture(scope="module", autouse=True)
def window(tmp_path_factory):
    """The class, in the table of mixers."""
    file = tmp_path_factory.mktemp("mixer") / "window.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("window", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.WINDOW == WINDOW
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXERS, "window", module.Window)
        yield module.Window


def mesh_of(**sizes: int):
    config = MeshConfig(**sizes)
    return jax.set_mesh(sharding.make_mesh(config, jax.devices()[: math.prod(sizes.values())]))


def model(**mesh: int) -> TextModel:
    """Random weights, the same on every mesh; inside `mesh_of`."""
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(**mesh))
    place = jax.tree.map(lambda x: x.sharding, abstract_model(config, jax.sharding.get_mesh()))
    make = lambda key: TextModel(config.model, config.compute, config.mesh.rules, rngs=nnx.Rngs(key))  # noqa: E731
    return jax.device_put(small.unoptimised(make)(jax.random.key(0)), place)


def logits(found: TextModel, batch=None) -> np.ndarray:
    batch = batch or small.batch(SEGMENTS)
    run = small.unoptimised(lambda model: model(batch.tokens, batch.positions, batch.segments))
    return np.asarray(run(found))


def test_the_model_has_its_weights_and_each_token_sees_the_window_of_its_document():
    with small.one_device():
        found, batch = model(), small.batch(SEGMENTS)
        assert [type(stack.mixer).__name__ for stack in found.stacks] == ["Lightning", "Window"]
        assert found.stacks[1].mixer.query.shape == (2, 2, 16, 2, 8)
        alone = dataclasses.replace(CONFIG.model, num_periods=1, period=("window",))
        found = small.model(small.Variant(alone, CONFIG.compute))
        before = logits(found, batch)
        tokens = batch.tokens.copy()
        tokens[2, 9] = (tokens[2, 9] + 1) % small.MODEL.vocab_size  # the fifth token of a document
        moved = np.argwhere((logits(found, batch._replace(tokens=tokens)) != before).any(axis=-1))
        assert moved.tolist() == [[2, place] for place in range(9, 9 + WINDOW)]


def test_it_trains_a_step_and_a_checkpoint_of_it_saves_and_restores(tmp_path):
    with small.one_device():
        mesh = jax.sharding.get_mesh()
        abstract = step.abstract_state(CONFIG, mesh)
        placed = jax.tree.map(lambda x: x.sharding, abstract)
        make = small.unoptimised(functools.partial(step.init_state, CONFIG), out_shardings=placed)
        train = small.unoptimised(functools.partial(step.train_step, config=CONFIG), out_shardings=(placed, None))
        batch, state = small.batch(SEGMENTS), make(jax.random.key(0))
        state, first = train(state, batch)
        for _ in range(3):
            state, metrics = train(state, batch)
        assert metrics["refused"] == 0.0 and metrics["loss"] < first["loss"]
        stacks = dict(zip(leaf_paths(state), leaf_stacks(state), strict=True))
        assert stacks["model/stacks/1/mixer/query"] == stacks["opt_state/1/nu/stacks/1/mixer/out"] == 2
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(4, state, {"config": {}})
            checkpoints.wait()
            restored = checkpoints.restore_latest(abstract).state
        assert [x.tobytes() for x in map(np.asarray, jax.tree.leaves(restored))] == [
            x.tobytes() for x in map(np.asarray, jax.tree.leaves(state))
        ]


def test_prefill_and_decode_equal_the_whole_forward():
    with small.one_device():
        found, length, prompt = model(), 24, 13
        tokens = np.random.default_rng(1).integers(320, size=(2, length)).astype(np.int32)
        positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
        batch = small.batch(np.zeros((2, length), int))._replace(tokens=tokens, positions=positions)
        want = logits(found, batch)
        cache = jax.jit(lambda: empty_cache(found.config, found.compute, found.rules, 2, length))()
        assert jax.tree.map(jnp.shape, cache.stacks[1]) == ((2, 2, 2, 24, 2, 8),) * 2
        count = np.full(2, prompt, np.int32)
        hidden, cache = steps.prefill(found, cache, jnp.asarray(tokens[:, :16]), jnp.asarray(count))
        got = [np.asarray(found.logits(hidden[:, None])[:, 0])]
        decode = small.unoptimised(steps.decode_step)
        for at in range(prompt, length):
            one, cache = decode(found, cache, jnp.asarray(tokens[:, at]), jnp.ones(2, bool))
            got.append(np.asarray(one))
        assert np.asarray(cache.lengths).tolist() == [length, length]
        # float32 sums in another order through six layers, as in tests/inference/test_generation.py.
        np.testing.assert_allclose(np.stack(got, 1), want[:, prompt - 1 :], rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_two_devices_compute_what_one_does_and_share_its_weights_and_its_cache(axis):
    with small.one_device():
        want = logits(model())
    with mesh_of(**{axis: 2}):
        found = model(**{axis: 2})
        query = found.stacks[1].mixer.query[...]
        assert query.sharding.shard_shape(query.shape) == ((2, 2, 8, 2, 8) if axis == "data" else (2, 2, 16, 1, 8))
        cache = jax.jit(lambda: empty_cache(found.config, found.compute, found.rules, 4, 8))()
        specs = cache_specs(found.config, found.rules)
        for array, spec in zip(cache.stacks[1], specs.stacks[1], strict=True):
            assert array.sharding.is_equivalent_to(jax.NamedSharding(jax.sharding.get_mesh(), spec), array.ndim)
            assert array.sharding.shard_shape(array.shape) == (2, 2, *((2, 8, 2) if axis == "data" else (4, 8, 1)), 8)
        np.testing.assert_allclose(logits(found), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_its_flops_are_what_it_says(window):
    known = dataclasses.replace(CONFIG.model, period=("lightning",) * 3)
    S, N, H = 1024, CONFIG.model.num_heads, CONFIG.model.head_dim
    mixing = {  # of a token in one period, forward
        "window": 4 * N * H**2 + 2 * 4 * N * H * WINDOW,
        "lightning": 3 * 4 * N * H**2,
    }
    weights = {"window": flops.active_weights(CONFIG.model), "lightning": flops.active_weights(known)}
    # A lightning layer has an output gate beside its q, k, v and out.
    assert weights["lightning"] - weights["window"] == 2 * 2 * CONFIG.model.embed_dim * N * H
    for name, config in (("window", CONFIG.model), ("lightning", known)):
        want = 3 * (2 * weights[name] + 2 * mixing[name])
        assert flops.train_flops_per_token(config, S) == want


def test_the_three_places_that_name_mixers_name_the_same():
    assert set(typing.get_args(MixerKind)) == MIXERS.keys() - {"window"} == table.MIXERS.keys()
