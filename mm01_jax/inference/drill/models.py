"""A model of random weights for a drill, of any width, on any mesh."""

import dataclasses

import jax
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, MeshConfig, ModelConfig, mesh_sizes
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings

SEED = 1
LOUD = 4.0  # what matrices are multiplied by: answers of a model fresh from its initialisation repeat themselves


def random_model(width: int, mesh: str | None, dtype: str = "float32") -> TextModel:
    """Two layers, both mixers, four experts; heads of 128, or a fourth of a small width.

    Raises:
      ValueError: a width that is no multiple of 32.
    """
    if width % 32 or width < 32:
        raise ValueError(f"--random: got {width}; allowed: multiples of 32; nearest: {max(1, round(width / 32)) * 32}")
    heads = max(4, width // 128)
    config = ModelConfig(
        vocab_size=320,
        embed_dim=width,
        num_periods=1,
        period=("lightning", "softmax"),
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=width // heads,
        rotary_dim=width // heads // 2,
        rope_theta=10_000.0,
        num_experts=4,
        num_experts_per_token=2,
        expert_dim=min(width, 128),
        lightning_alpha=1.5,
        softmax_alpha=1.5,
        experts_alpha=1.5,
    )
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none")
    sizes = MeshConfig() if mesh is None else mesh_sizes.parse(mesh, MeshConfig())
    axes = dataclasses.asdict(sizes).keys() - {"rules"}
    placed = sharding.make_mesh(sizes, jax.devices()[: sizes.size(axes)])

    def make(key):
        return TextModel(config, compute, sizes.rules, rngs=nnx.Rngs(key))

    with jax.set_mesh(placed):
        weights = jax.jit(make)(jax.random.key(SEED, impl="rbg"))
        weights = jax.tree.map(lambda x: (x * LOUD).astype(x.dtype) if x.ndim > 3 else x, weights)
        return jax.device_put(weights, shardings(weights, placed, sizes.rules))
