"""Small engines for tests, compiled quickly, one for each mesh and size in a process."""

import functools

import jax

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.inference import engine_devices
from mm01_jax.inference.drill.cases import Cases
from mm01_jax.inference.engine import Engine
from mm01_jax.model.layers import shardings
from tests import small

VOCAB = 257  # ids of the tokenizer; the table has 320 rows
SIZES = {"num_slots": 8, "max_length": 64, "grid": 8, "pieces": 4, "steps": 4, "keep_logits": True}
VARIANT = small.variant(num_heads=4, num_kv_heads=2)


@functools.cache
def model(variant: small.Variant = VARIANT, **mesh):
    """Weights large enough that answers do not repeat themselves."""
    config = MeshConfig(**mesh)
    with small.one_device():
        weights = jax.tree.map(lambda x: x * 4 if x.ndim > 3 else x, small.model(variant, seed=1))
    on = sharding.make_mesh(config, jax.devices()[: config.size(mesh)])
    return jax.device_put(weights, shardings(weights, on, config.rules))


def engine(variant: small.Variant = VARIANT, mesh: dict | None = None, **options) -> Engine:
    """A new engine, whose programs are compiled without optimising."""
    whole, engine_devices.jit = engine_devices.jit, small.unoptimised
    try:
        return Engine(model(variant, **(mesh or {})), **{"vocab_size": VOCAB, **SIZES, **options})
    finally:
        engine_devices.jit = whole


@functools.cache
def alone() -> Engine:
    """Answers one request after another and remembers nothing."""
    return engine()


@functools.cache
def cases() -> Cases:
    return Cases(alone(), VOCAB, longest=48, count=60, seed=0)
