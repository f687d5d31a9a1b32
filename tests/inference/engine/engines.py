"""Small engines for tests, compiled quickly, one for each mesh and size in a process."""

import functools

import jax

from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.inference import engine_devices
from mm01_jax.inference.drill.cases import Cases
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.model.layers import shardings
from tests import small

VOCAB = 257  # ids of the tokenizer; the table has 320 rows
SIZES = {"num_slots": 8, "max_length": 64, "grid": 8, "pieces": 4, "steps": 4, "keep_logits": True}
_COMPILED: dict = {}
VARIANT = small.variant(num_heads=4, num_kv_heads=2)


@functools.cache
def model(variant: small.Variant = VARIANT, **mesh):
    """Weights large enough that answers do not repeat themselves."""
    config = MeshConfig(**mesh)
    with small.one_device():
        weights = jax.tree.map(lambda x: x * 4 if x.ndim > 3 else x, small.model(variant, seed=1))
    on = sharding.make_mesh(config, jax.devices()[: config.size(mesh)])
    return jax.device_put(weights, shardings(weights, on, config.rules))


def engine(variant: small.Variant = VARIANT, mesh: dict | None = None, fresh: bool = False, **options) -> Engine:
    """A new engine, whose programs are compiled without optimising; if not `fresh`, once for each model and sizes."""

    def traced_anew(function, **options):
        """What jax has traced it keeps for whoever asks for the same: a function of its own is another."""
        return small.unoptimised(functools.wraps(function)(lambda *given, **told: function(*given, **told)), **options)

    on, options = model(variant, **(mesh or {})), {"vocab_size": VOCAB, **SIZES, **options}
    sizes = {name: value for name, value in options.items() if name in Sizes.__dataclass_fields__}
    key = variant, frozenset((mesh or {}).items()), frozenset(sizes.items()), options["vocab_size"]
    whole, engine_devices.jit = engine_devices.jit, traced_anew if fresh else small.unoptimised
    try:
        found = Engine(on, **{"like": None if fresh else _COMPILED.get(key), **options})
    finally:
        engine_devices.jit = whole
    if not fresh:
        _COMPILED.setdefault(key, found)
    return found


@functools.cache
def alone() -> Engine:
    """Answers one request after another and remembers nothing."""
    return engine()


@functools.cache
def cases() -> Cases:
    return Cases(alone(), VOCAB, longest=48, count=60, seed=0)
