"""Laws of the text model's shape: patterns, expert counts, slopes, initialisation. Values: test_model_reference.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm01_jax.config import Rules
from mm01_jax.model import experts as experts_layer
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.lightning import slopes
from mm01_jax.model.tokens import Tokens
from tests import small
from tests.model.jax_model import compiled, leaf_arrays, leaf_path
from tests.slow import slow_but

BATCH = small.batch([[0] * 9 + [1] * 7, [-1] + [3] * 15])
REAL = BATCH.segments >= 0


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with small.one_device():
        yield


@functools.cache
def forward():
    return compiled(lambda model: model(BATCH.tokens, BATCH.positions, BATCH.segments))


def layers(model: TextModel) -> list[dict[str, np.ndarray]]:
    """The weights of each layer in global order, by their path inside a stack."""
    stacks = [leaf_arrays(stack) for stack in model.stacks]
    counts = [count for _, count in model.config.stacks]
    return [
        {path: x[period, layer] for path, x in stack.items()}
        for period in range(model.config.num_periods)
        for stack, count in zip(stacks, counts, strict=True)
        for layer in range(count)
    ]


def restacked(model: TextModel, num_periods: int, period: tuple[str, ...]) -> TextModel:
    """The same layers under another pattern that spells the same sequence of kinds."""
    config = dataclasses.replace(model.config, num_periods=num_periods, period=period)
    new, old, flat = small.model(small.Variant(config, model.compute)), layers(model), leaf_arrays(model)
    starts = np.cumsum([0, *[count for _, count in config.stacks]])

    def fill(path, weight):
        name = leaf_path(path)
        if not name.startswith("stacks/"):
            return weight.replace(jnp.asarray(flat[name]))
        _, stack, inside = name.split("/", 2)
        first, stop = starts[int(stack)], starts[int(stack) + 1]
        stack = [[old[m * len(period) + j][inside] for j in range(first, stop)] for m in range(num_periods)]
        return weight.replace(jnp.asarray(np.array(stack)))

    return jax.tree_util.tree_map_with_path(fill, new, is_leaf=lambda x: isinstance(x, nnx.Variable))


L, T = "lightning", "softmax"
SAME_SEQUENCES = {
    "runs of one and two": ((2, (L, L, T)), (1, (L, L, T, L, L, T))),
    "softmax first": ((2, (T, L)), (1, (T, L, T, L))),
    "pure lightning": ((4, (L,)), (2, (L, L)), (1, (L, L, L, L))),
    "pure softmax": ((3, (T,)), (1, (T, T, T))),
}


@pytest.mark.parametrize("name", slow_but(["runs of one and two", "pure softmax"], SAME_SEQUENCES))
def test_patterns_that_spell_the_same_layers_are_the_same_model(name):
    (num_periods, period), *others = SAME_SEQUENCES[name]
    model = small.model(small.variant(num_periods=num_periods, period=period))
    want = np.asarray(forward()(model))[REAL]
    assert np.isfinite(want).all()
    for other in others:
        got = np.asarray(forward()(restacked(model, *other)))[REAL]
        # The same float32 operations, compiled into other loops.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("chosen", [1, 2, 3, 4])
def test_every_top_k_up_to_all_experts_is_the_renormalised_mixture(chosen):
    config, compute = small.variant(num_experts_per_token=chosen)
    layer = experts_layer.Experts(config, compute, Rules(), rngs=nnx.Rngs(0), stack=(), gain=1.0)
    x = np.random.default_rng(0).standard_normal((2, 5, config.embed_dim)).astype(np.float32)
    documents = jnp.zeros((2, 5), jnp.int32)
    y, stats = jax.jit(lambda x: layer(x, Tokens(None, documents, documents, "contiguous")))(jnp.asarray(x))
    w = {path: array.astype(np.float64) for path, array in leaf_arrays(layer).items()}
    logits = x @ w["router"]
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = np.where(probability >= np.sort(probability, axis=-1)[..., -chosen, None], probability, 0.0)
    hidden = np.einsum("bsd,edf->bsef", x, w["gate"])
    hidden = hidden / (1 + np.exp(-hidden)) * np.einsum("bsd,edf->bsef", x, w["up"])
    every = np.einsum("bsef,efd->bsed", hidden, w["down"])
    want = np.einsum("bse,bsed->bsd", kept / kept.sum(-1, keepdims=True), every)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6 * np.abs(want).max())
    np.testing.assert_array_equal(stats.assigned, (kept > 0).sum(axis=(0, 1)))


def test_a_beta_of_zero_takes_the_sublayers_out():
    model = small.model(small.variant(lightning_beta=0.0, softmax_beta=0.0, experts_beta=0.0))
    h = np.asarray(model.embed[...], np.float64)[BATCH.tokens]
    for _ in range(4):  # two layers of two sub-layers
        h = 1.5 * normed(h)
    want = normed(h) @ np.asarray(model.head[...])
    np.testing.assert_allclose(np.asarray(forward()(model)), want, rtol=0, atol=1e-5 * np.abs(want).max())


def normed(h):
    return h / np.sqrt((h**2).mean(-1, keepdims=True) + small.MODEL.norm_eps)


def test_slopes_of_the_released_model_are_those_of_its_code():
    table = slopes(64, 80)
    assert table.dtype == np.float32
    assert table.shape == (80, 64)
    expected = {  # heads 0, 7, 31, 63 of layers 0, 1, 38, 40, 78
        0: (0.917013, 0.500005, 0.0625006, 0.00390629),
        1: (0.905406, 0.493676, 0.0617095, 0.00385684),
        38: (0.475923, 0.259499, 0.0324373, 0.00202733),
        40: (0.452707, 0.246840, 0.0308551, 0.00192844),
        78: (0.0116168, 0.00633411, 0.000791764, 0.0000494853),
    }
    for layer, values in expected.items():
        np.testing.assert_allclose(table[layer, [0, 7, 31, 63]], values, rtol=2e-6)


def test_slopes_of_other_head_counts_follow_alibi():
    factor = 1 + 1e-5
    np.testing.assert_allclose(slopes(6, 1)[0], factor * 2.0 ** np.array([-2, -4, -6, -8, -1, -3]), rtol=1e-7)
    np.testing.assert_allclose(slopes(3, 1)[0], factor * 2.0 ** np.array([-4, -8, -2]), rtol=1e-7)
    np.testing.assert_allclose(slopes(1, 1)[0], factor * 2.0 ** np.array([-8]), rtol=1e-7)


def test_a_single_layer_keeps_its_whole_slope():
    np.testing.assert_array_equal(slopes(4, 1)[0], slopes(4, 2)[0])


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_slopes_enter_as_float32_whatever_the_dtypes(param_dtype):
    config, compute = small.variant(dtype="bfloat16", param_dtype=param_dtype)
    model = jax.eval_shape(lambda: TextModel(config, compute, Rules(), rngs=nnx.Rngs(0)))
    assert {x.dtype.name for x in jax.tree.leaves(model)} == {param_dtype}
    jaxpr = jax.make_jaxpr(lambda m: m(BATCH.tokens, BATCH.positions, BATCH.segments))(model)
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    tables = [x.aval for x in scan.invars if x.aval.shape == (1, 1, config.num_heads)]
    assert {aval.dtype.name for aval in tables} == {"float32"}
    assert len(tables) == 2


def test_initial_weights_are_xavier_with_deepnorm_s_gain_on_value_out_and_experts():
    D, N, K, H, E, F = 64, 8, 4, 16, 4, 96
    variant = small.variant(
        embed_dim=D, num_heads=N, num_kv_heads=K, head_dim=H, expert_dim=F, num_periods=3, period=(L, L, T)
    )
    model = leaf_arrays(small.model(variant))
    gain = (8 * 9) ** -0.25
    V = variant.config.vocab_size
    expected = {  # name: fan in, fan out, gain
        "embed": (V, D, 1.0),
        "head": (D, V, 1.0),
        "stacks/0/mixer/output_gate": (D, N * H, 1.0),
        "stacks/1/mixer/query": (D, N * H, 1.0),
        "stacks/1/mixer/key": (D, K * H, 1.0),
        "stacks/1/mixer/value": (D, K * H, gain),
    }
    for stack in (0, 1):
        expected[f"stacks/{stack}/mixer/out"] = (N * H, D, gain)
        expected[f"stacks/{stack}/experts/router"] = (D, E, 1.0)
        for name in ("gate", "up", "down"):
            expected[f"stacks/{stack}/experts/{name}"] = (D, F, gain)
    qkv = model.pop("stacks/0/mixer/qkv")
    for part, name in enumerate("qkv"):
        model[name], expected[name] = qkv[..., part, :], (D, N * H, gain if name == "v" else 1.0)
    for path, weight in model.items():
        if path.endswith("norm"):
            assert (weight == 1.0).all()
            continue
        fan_in, fan_out, factor = expected.pop(path)
        want = factor * np.sqrt(2 / (fan_in + fan_out))
        error = 5 / np.sqrt(2 * weight.size)  # five standard errors of a standard deviation
        assert abs(weight.std() / want - 1) < error, path
        assert abs(weight.mean()) < 5 * want / np.sqrt(weight.size), path
    assert not expected
    assert variant.config.num_experts == E
