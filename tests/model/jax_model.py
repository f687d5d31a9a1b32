"""The JAX model with given released weights, and its arithmetic in float64.

The model's own dtypes are bfloat16 and float32. Its layers promote, so a float64 config runs them in float64; only the
kernel operations are float32 by contract, and `float64_operations` puts plain float64 ones in their place.
"""

import contextlib
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, MeshConfig, ModelConfig, Rules
from mm01_jax.model.decoder import TextModel
from tests.reference.config import LIGHTNING, ReferenceConfig
from tests.reference.leaves import leaves

RULES = Rules()


def one_device():
    """A mesh of one device, as the model's context."""
    return jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


def model_config(reference: ReferenceConfig, period: int) -> ModelConfig:
    kinds = tuple("lightning" if kind == LIGHTNING else "softmax" for kind in reference.attn_type_list)
    assert kinds == kinds[:period] * (len(kinds) // period)
    return ModelConfig(
        vocab_size=reference.vocab_size,
        embed_dim=reference.hidden_size,
        num_periods=len(kinds) // period,
        period=kinds[:period],
        num_heads=reference.num_attention_heads,
        num_kv_heads=reference.num_key_value_heads,
        head_dim=reference.head_dim,
        rotary_dim=reference.rotary_dim,
        rope_theta=reference.rope_theta,
        num_experts=reference.num_local_experts,
        num_experts_per_token=reference.num_experts_per_tok,
        expert_dim=reference.intermediate_size,
        norm_eps=reference.rms_norm_eps,
        lightning_norm_eps=reference.lightning_norm_eps,
        lightning_alpha=reference.layernorm_linear_attention_alpha,
        lightning_beta=reference.layernorm_linear_attention_beta,
        softmax_alpha=reference.layernorm_full_attention_alpha,
        softmax_beta=reference.layernorm_full_attention_beta,
        experts_alpha=reference.layernorm_mlp_alpha,
        experts_beta=reference.layernorm_mlp_beta,
        routing="dropless" if reference.capacity_factor is None else "capacity",
        capacity_factor=reference.capacity_factor or 1.0,
    )


def build(reference: ReferenceConfig, period: int, weights, dtype: str) -> TextModel:
    """The model holding `weights` (released names). Every leaf must be named, and filled to its exact shape."""
    config, compute = model_config(reference, period), ComputeConfig(dtype=dtype, param_dtype=dtype)
    empty = jax.eval_shape(lambda: TextModel(config, compute, RULES, rngs=nnx.Rngs(params=0)))
    values = {path: leaf.stack(weights) for path, leaf in leaves(reference, period).items()}
    filled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _fill(values.pop(leaf_path(path)), leaf, dtype), empty, is_leaf=_is_weight
    )
    assert not values, sorted(values)
    return filled


def _fill(value, weight, dtype: str):
    assert value.shape == weight.shape, (value.shape, weight.shape)
    return weight.replace(jnp.asarray(value, dtype))


def _is_weight(node) -> bool:
    return isinstance(node, nnx.Variable)


def leaf_path(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_arrays(tree) -> dict[str, np.ndarray]:
    """Path -> array of a model, or of a gradient shaped like one."""
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_weight)
    return {leaf_path(path): np.asarray(weight[...]) for path, weight in flat}


def layer_of(model: TextModel, stack: int, period: int, index: int):
    """One layer, out of its stack."""
    return jax.tree.map(lambda x: x[period, index], model.stacks[stack])


def lightning_states(model: TextModel, cache) -> list[np.ndarray]:
    """States (B, N, H, H) of the lightning layers in global order."""
    stacks = [
        states for (kind, _), states in zip(model.config.stacks, cache.stacks, strict=True) if kind == "lightning"
    ]
    return [
        np.asarray(state) for period in range(model.config.num_periods) for stack in stacks for state in stack[period]
    ]


def compiled(function):
    """`jax.jit` that compiles in half the time: what runs here runs once, for milliseconds."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": "0"})


@contextlib.contextmanager
def float64_operations():
    """float64 arithmetic everywhere, the kernel operations replaced by their definitions."""
    operations = {
        "mm01_jax.parallel.lightning.kernels.lightning_attention": lightning_attention,
        "mm01_jax.parallel.lightning.kernels.lightning_attention_step": lightning_attention_step,
        "mm01_jax.parallel.lightning.kernels.lightning_state": lightning_state,
        "mm01_jax.parallel.experts.layer.expert_ffn": expert_ffn,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        # Counts stay float32 and meet float64 values; float32 itself is tested under strict promotion.
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        for name, operation in operations.items():
            stack.enter_context(unittest.mock.patch(name, operation))
        yield


def lightning_attention(q, k, v, slope_N, state_BNHH=None, *, segment_ids):
    """The recurrence, token by token."""
    B, _, N, H = q.shape
    start = jnp.zeros((B, N, H, H), q.dtype) if state_BNHH is None else state_BNHH.astype(q.dtype)
    start += 0 * (q[:, 0, :, :, None] * v[:, 0, :, None, :])  # varies over the mesh as the arguments do
    open_id = jnp.full_like(segment_ids[:, 0], -1) + 0 * segment_ids[:, 0]

    def token(carry, x):
        state, open_id = carry
        q, k, v, ids = x
        fresh = (ids >= 0) & (open_id >= 0) & (ids != open_id)
        state = jnp.where(fresh[:, None, None, None], 0.0, state)
        out, state = lightning_attention_step(q, k, v, slope_N, state, active_B=ids >= 0)
        return (state, jnp.where(ids >= 0, ids, open_id)), out

    xs = [jnp.swapaxes(x, 0, 1) for x in (q, k, v, segment_ids)]
    (state, _), out = jax.lax.scan(token, (start, open_id), xs)
    return jnp.swapaxes(out, 0, 1), state


def lightning_state(k, v, slope_N, *, segment_ids, reverse=False):
    """What the recurrence leaves of nothing; in reverse the gradient of the state before it, of q and the output's."""
    if not reverse:
        return lightning_attention(k, k, v, slope_N, segment_ids=segment_ids)[1]

    def read(state_BNHH):
        return lightning_attention(k, 0 * k, 0 * v, slope_N, state_BNHH, segment_ids=segment_ids)[0]

    start = 0 * (k[:, 0, :, :, None] * v[:, 0, :, None, :])
    return jax.vjp(read, start)[1](v)[0]


def lightning_attention_step(q, k, v, slope_N, state_BNHH, *, active_B):
    old = state_BNHH.astype(q.dtype)
    decay = jnp.exp(-slope_N.astype(q.dtype))[None, :, None, None]
    new = decay * old + k[..., :, None] * v[..., None, :]
    active = active_B[:, None, None, None]
    out = jnp.einsum("bnk,bnkv->bnv", q, new)
    return jnp.where(active[..., 0], out, 0.0), jnp.where(active, new, old)


def expert_ffn(x_RD, weights, group_sizes_E, weight_R=None, *, layer=None, capacity: int, multiple: int = 1):
    """Each row through its own expert's SwiGLU, times its factor."""
    del capacity, multiple
    weights = weights if layer is None else [stack[layer] for stack in weights]
    ends_E = jnp.cumsum(group_sizes_E)
    expert_R = jnp.sum(jnp.arange(len(x_RD))[:, None] >= ends_E[None, :], axis=1)
    present_R = expert_R < len(ends_E)
    gate, up, down = (weight[jnp.where(present_R, expert_R, 0)] for weight in weights)
    inner_RF = jax.nn.silu(jnp.einsum("rd,rdf->rf", x_RD, gate)) * jnp.einsum("rd,rdf->rf", x_RD, up)
    inner_RF = inner_RF if weight_R is None else weight_R.astype(inner_RF.dtype)[:, None] * inner_RF
    return jnp.where(present_R[:, None], jnp.einsum("rf,rfd->rd", inner_RF, down), 0.0)
