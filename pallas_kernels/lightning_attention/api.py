"""Lightning attention, the public operation (MiniMax-01, arXiv 2501.08313, section 2.2; decay as in the released code).

For each head, with decay exp(-slope) and a state S of (H keys, H values):

    S_t = exp(-slope) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

Letters: B batch, S sequence, N heads, H head dim. This file checks arguments, chooses an implementation and owns the
only gradient rule; its residuals are the inputs.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import xla
from pallas_kernels.rows_of_vmap import rows_of_vmap
from pallas_kernels.varying import vary_alike

OPERATION = dispatch.Operation(
    "lightning_attention",
    {name: f"pallas_kernels.lightning_attention.{name}" for name in ("tpu", "gpu", "xla")},
)
SLOPE, STATE = 3, 4  # places of the one argument without a batch axis, and of the one that may be None for zeros


def lightning_attention(
    q_BSNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array | None = None,
    *,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Output and outgoing state of a sequence.

    Args:
      q_BSNH, k_BSNH, v_BSNH: (B, S, N, H), all bfloat16 or all float32. The query is not scaled.
      slope_N: (N,) float32, >= 0; a head's state decays by exp(-slope) per token. It gets no gradient.
      state_BNHH: (B, N, H key, H value) float32, the state before the first token; None is zero.
      segment_ids: (B, S) int32, any: where a document begins (`pallas_kernels/documents.py`) the state is reset; the
        incoming state continues into the first document. A negative id is padding: it writes nothing, decays nothing,
        its output and gradients are 0. None is one document without padding.
      implementation: "tpu", "gpu", "xla", or None for the first of these that can.

    Returns:
      out (B, S, N, H) in q's dtype; state (B, N, H, H) float32 after the last token that is not padding.

    Raises:
      ValueError: a shape or dtype is not as above, or `implementation` is no name of one.
      Unsupported: the named implementation cannot take these arguments on this device.
    """
    _check_sequence(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids)
    arguments = vary_alike(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids)
    return _attend(dispatch.choose(OPERATION, implementation, *arguments), *arguments)


def lightning_attention_joined(
    qkv_BSN3H: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array | None = None,
    *,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_attention` of q, k, v (B, S, N, 3, H) as one product gives them; it promises no gradient."""
    if qkv_BSN3H.ndim != 5 or qkv_BSN3H.shape[3] != 3:
        raise ValueError(f"qkv must be (B, S, N, 3, H), got {qkv_BSN3H.shape}")
    parts = (qkv_BSN3H[:, :, :, part] for part in range(3))
    arguments = (*parts, slope_N, state_BNHH, segment_ids)
    _check_sequence(*arguments)
    qkv_BSN3H, *arguments = vary_alike(qkv_BSN3H, *arguments)
    module = OPERATION.module(dispatch.choose(OPERATION, implementation, *arguments))
    if hasattr(module, "forward_joined"):
        return module.forward_joined(qkv_BSN3H, *arguments[SLOPE:])
    return module.forward(*arguments)


def lightning_state(
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    slope_N: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """The state (B, N, H, H) float32 that a sequence leaves of nothing; it promises no gradient.

    With `reverse`, of q and the output's gradient in the places of k and v: the gradient of the state that enters, by
    the output alone. Both are what sequences that follow each other on other devices need to know of one.

    Raises: as `lightning_attention`.
    """
    _check_sequence(k_BSNH, k_BSNH, v_BSNH, slope_N, None, segment_ids)
    k, v, *arguments = vary_alike(k_BSNH, v_BSNH, slope_N, segment_ids)
    module = OPERATION.module(dispatch.choose(OPERATION, implementation, k, k, v, slope_N, None, segment_ids))
    return getattr(module, "state", xla.state)(k, v, *arguments, reverse=reverse)


def lightning_attention_step(
    q_BNH: jax.Array,
    k_BNH: jax.Array,
    v_BNH: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array,
    *,
    active_B: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token of every row (decode): update the state and read it. Donate `state_BNHH` to update it in place.

    Args:
      q_BNH, k_BNH, v_BNH: (B, N, H), all bfloat16 or all float32.
      slope_N: (N,) float32.
      state_BNHH: (B, N, H, H) float32.
      active_B: (B,) bool; an inactive row keeps its state and outputs 0. None: all rows are active.
      implementation: as in `lightning_attention`.

    Returns:
      out (B, N, H) in q's dtype; the new state (B, N, H, H) float32.

    Raises: as `lightning_attention`.
    """
    _check_step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B)
    *arrays, active_B = vary_alike(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B)
    name = dispatch.choose(OPERATION, implementation, *arrays, None)
    return rows_of_vmap(OPERATION.module(name).step, shared=SLOPE)(*arrays, active_B)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(name, q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS):
    forward = rows_of_vmap(OPERATION.module(name).forward, shared=SLOPE)
    return forward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS)


def _attend_forward(name, *arguments):
    return _attend(name, *arguments), arguments


def _attend_backward(name, arguments, cotangents):
    backward = rows_of_vmap(OPERATION.module(name).backward, shared=SLOPE)
    dq, dk, dv, d_state = backward(*arguments, *cotangents)
    return dq, dk, dv, None, None if arguments[STATE] is None else d_state, None


_attend.defvjp(_attend_forward, _attend_backward)


def _check_sequence(q, k, v, slope, state, segment_ids) -> None:
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q must be (B, S, N, H) without empty axes, got {q.shape}")
    B, S, N, H = q.shape
    _check_common(q, k, v, slope)
    if state is not None:
        _check_array("state", state, (B, N, H, H), jnp.float32)
    if segment_ids is not None:
        _check_array("segment_ids", segment_ids, (B, S), jnp.int32)


def _check_step(q, k, v, slope, state, active) -> None:
    if q.ndim != 3 or 0 in q.shape:
        raise ValueError(f"q must be (B, N, H) without empty axes in a decode step, got {q.shape}")
    B, N, H = q.shape
    _check_common(q, k, v, slope)
    _check_array("state", state, (B, N, H, H), jnp.float32)
    if active is not None:
        _check_array("active", active, (B,), jnp.bool_)


def _check_common(q, k, v, slope) -> None:
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"q must be bfloat16 or float32, got {q.dtype}")
    _check_array("k", k, q.shape, q.dtype)
    _check_array("v", v, q.shape, q.dtype)
    _check_array("slope", slope, q.shape[-2:-1], jnp.float32)


def _check_array(name, array, shape, dtype) -> None:
    if array.shape != shape or array.dtype != dtype:
        expected = f"{jnp.dtype(dtype).name}{list(shape)}"
        raise ValueError(f"{name} must be {expected} to go with q, got {array.dtype.name}{list(array.shape)}")
