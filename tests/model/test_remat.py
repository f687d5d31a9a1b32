"""What a layer keeps for its backward pass and how layers are walked change no gradient; by name, little is kept."""

import contextlib
import dataclasses
import functools
import io
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm01_jax.config import MeshConfig, Rules
from mm01_jax.model import decoder
from mm01_jax.model.decoder import TextModel
from mm01_jax.sharding import make_mesh
from mm01_jax.train.objectives import pretrain
from tests import small
from tests.model.jax_model import leaf_arrays

BATCH = small.batch([[0] * 9 + [1] * 23, [-1] + [3] * 31])
MODEL = dataclasses.replace(small.MODEL, num_periods=2, period=("lightning", "lightning", "softmax"))


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with small.one_device():
        yield


@functools.cache
def gradients(remat: str, unrolled: bool) -> dict[str, np.ndarray]:
    model = small.model(small.Variant(MODEL).replace(remat=remat))
    config = small.config().train

    def objective(model):
        return pretrain.objective(model, BATCH, jnp.sum(BATCH.weights), 1.0, config)[0]

    with mock.patch.object(decoder, "unrolls", lambda config, remat: unrolled):
        return leaf_arrays(jax.jit(jax.grad(objective))(model))


def of_largest(ours: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """The largest difference of a leaf, of that leaf's largest entry."""
    assert ours.keys() == others.keys()
    return max(np.abs(x - others[name]).max() / np.abs(others[name]).max() for name, x in ours.items())


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("remat", ["named", "dots", "full"])
def test_remat_changes_no_gradient(remat, unrolled):
    # The same arithmetic in another order of fusions: a few roundings of float32.
    assert of_largest(gradients(remat, unrolled), gradients("none", unrolled)) < 2**-20


def test_layers_unrolled_have_the_gradients_of_layers_walked():
    assert of_largest(gradients("none", unrolled=True), gradients("none", unrolled=False)) < 2**-20


def kept(remat: str, dtype: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(dtype, shape, why) of all that a layer of each kind keeps, of itself and not of its arguments."""
    model = small.model(small.Variant(MODEL).replace(dtype=dtype))
    x = jnp.zeros((*BATCH.tokens.shape, MODEL.embed_dim), dtype)
    lines = []
    for stack in model.stacks:
        layer = next(decoder._taken_apart(stack, x.dtype))
        told = (jnp.ones(MODEL.num_heads), BATCH.positions, jnp.maximum(BATCH.segments, 0))
        step = functools.partial(decoder._one_layer, "contiguous")
        if remat != "none":
            step = jax.checkpoint(step, policy=decoder.REMAT[remat])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            jax.ad_checkpoint.print_saved_residuals(
                lambda x, w, step=step, told=told: step(told, x, w)[0].sum(), x, layer
            )
        lines += printed.getvalue().splitlines()
    parsed = [re.match(r"(\w+)\[([\d,]*)\] (.*)", line).groups() for line in lines]
    return [
        (kind, tuple(int(n) for n in shape.split(",") if n), why)
        for kind, shape, why in parsed
        if "from the argument" not in why
    ]


def test_by_name_nothing_wide_is_kept_but_in_the_compute_dtype():
    B, S = BATCH.tokens.shape
    tokens = B * S
    wide = [(kind, shape, why) for kind, shape, why in kept("named", "bfloat16") if np.prod(shape) > 4 * tokens]
    assert wide and {kind for kind, _, _ in wide} <= {"bf16"}, wide
    per_token = sum(np.prod(shape) for _, shape, _ in wide) / tokens
    D, N, K, H = MODEL.embed_dim, MODEL.num_heads, MODEL.num_kv_heads, MODEL.head_dim
    experts = MODEL.num_experts_per_token * (2 * MODEL.expert_dim + D)
    # lightning: q, k, v, gate and output; softmax: q, k, v and output; each the stream and its experts'.
    assert per_token <= 5 * N * H + (2 * N + 2 * K) * H + 2 * (D + experts), wide


def test_without_remat_much_more_is_kept():
    """The law above can fail."""
    wide = [kind for kind, shape, _ in kept("none", "bfloat16") if np.prod(shape) > 4 * BATCH.tokens.size]
    assert "f32" in wide


def lines_of_program(periods: int) -> int:
    config = dataclasses.replace(MODEL, num_periods=periods)
    model = jax.eval_shape(lambda: TextModel(config, small.COMPUTE, Rules(), rngs=nnx.Rngs(params=0)))

    def objective(model):
        return pretrain.objective(model, BATCH, jnp.sum(BATCH.weights), 1.0, small.config().train)[0]

    return len(jax.jit(jax.grad(objective)).lower(model).as_text().splitlines())


def test_a_deeper_model_is_no_longer_program():
    assert lines_of_program(8) == lines_of_program(64)


@pytest.mark.parametrize(("periods", "unrolled"), [(10, True), (11, False)])
def test_few_layers_are_unrolled_and_more_walked_on_gpus(monkeypatch, periods, unrolled):
    config = dataclasses.replace(MODEL, num_periods=periods)  # of 3 layers; 32 are the most
    assert not decoder.unrolls(config, "none")  # a CPU
    monkeypatch.setattr(decoder.dispatch, "platform", lambda: "gpu")
    assert decoder.unrolls(config, "none") is unrolled
    assert decoder.unrolls(config, "full") is unrolled


def test_with_full_remat_over_several_devices_one_layer_lives_at_a_time(monkeypatch):
    monkeypatch.setattr(decoder.dispatch, "platform", lambda: "gpu")
    with jax.set_mesh(make_mesh(MeshConfig(sequence=2), jax.devices()[:2])):
        assert decoder.unrolls(MODEL, "named") and not decoder.unrolls(MODEL, "full")
