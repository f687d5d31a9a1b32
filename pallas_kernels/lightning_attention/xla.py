"""Lightning attention in plain jnp: a scan over chunks that runs everywhere (MiniMax-01, section 2.2; README here).

For a chunk with incoming state S, writing D_ij for the decay from token j to token i (0 where i does not read j):

    O  = ((Q K^T) * D) V + (Q * read) S           S' = carry S + (K * write)^T V

`read` decays from the chunk's entrance to a token, `write` from a token to the chunk's end, `carry` from end to end.
Every matmul takes operands in the input dtype and accumulates in float32; decays are applied in float32 before the
cast. This file is what other implementations' errors are measured against.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import ages
from pallas_kernels.lightning_attention.states import or_zeros
from pallas_kernels.precision import matmul_precision

CHUNK = 128


def unsupported(q, k, v, slope, state, segment_ids) -> str | None:
    """Never: it runs everywhere."""
    del q, k, v, slope, state, segment_ids


def forward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS):
    """Contract in the package's docstring."""
    S = q_BSNH.shape[1]
    chunk = min(CHUNK, S)
    state_BNHH = or_zeros(state_BNHH, q_BSNH)

    def step(state_BNHH, x):
        (q_BCNH, k_BCNH, v_BCNH), tokens = x
        decay = _decays(slope_N, tokens)
        scores_BNCC = _dot("bcnh,bdnh->bncd", q_BCNH, k_BCNH) * decay.intra
        out_BCNH = _dot("bncd,bdnh->bcnh", scores_BNCC.astype(v_BCNH.dtype), v_BCNH)
        read_BNCH = jnp.swapaxes(_scale(q_BCNH, decay.read), 1, 2)
        # Heads first: otherwise XLA sums one row's product in another order than many rows' on a CPU with AVX2.
        out_BCNH += jnp.swapaxes(_dot("bnck,bnkh->bnch", read_BNCH, state_BNHH.astype(q_BCNH.dtype)), 1, 2)
        written_BNHH = _dot("bcnk,bcnh->bnkh", _scale(k_BCNH, decay.write), v_BCNH)
        return decay.carry * state_BNHH + written_BNHH, out_BCNH.astype(q_BCNH.dtype)

    xs = _chunks((q_BSNH, k_BSNH, v_BSNH), chunk), _token_chunks(q_BSNH, segment_ids_BS, chunk)
    state_BNHH, out = jax.lax.scan(step, state_BNHH, xs)
    return _whole(out, S), state_BNHH


def backward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS, d_out_BSNH, d_state_BNHH):
    """Contract in the package's docstring.

    dq_i = S_i do_i is the forward operation on (do, v, k) with the state transposed. dk and dv follow the gradient of
    the state, G_t = q_t do_t^T + exp(-slope) G_{t+1}, backward in time: dk_t = G_t v_t, dv_t = G_t^T k_t.
    """
    S = q_BSNH.shape[1]
    chunk = min(CHUNK, S)
    state_BNHH = or_zeros(state_BNHH, q_BSNH)
    transposed_BNHH = jnp.swapaxes(state_BNHH, -1, -2)
    dq_BSNH, _ = forward(d_out_BSNH, v_BSNH, k_BSNH, slope_N, transposed_BNHH, segment_ids_BS)

    def step(d_state_BNHH, x):
        (q_BCNH, k_BCNH, v_BCNH, d_out_BCNH), tokens = x
        decay = _decays(slope_N, tokens)
        dtype = q_BCNH.dtype
        scores_BNCC = (_dot("bcnh,bdnh->bncd", q_BCNH, k_BCNH) * decay.intra).astype(dtype)
        d_scores_BNCC = (_dot("bcnh,bdnh->bncd", d_out_BCNH, v_BCNH) * decay.intra).astype(dtype)
        d_state = d_state_BNHH.astype(dtype)
        dv_BCNH = _dot("bncd,bcnh->bdnh", scores_BNCC, d_out_BCNH)
        dv_BCNH += _dot("bcnk,bnkh->bcnh", _scale(k_BCNH, decay.write), d_state)
        dk_BCNH = _dot("bncd,bcnh->bdnh", d_scores_BNCC, q_BCNH)
        dk_BCNH += _dot("bcnh,bnkh->bcnk", _scale(v_BCNH, decay.write), d_state)
        read_BNHH = _dot("bcnk,bcnh->bnkh", _scale(q_BCNH, decay.read), d_out_BCNH)
        return decay.carry * d_state_BNHH + read_BNHH, (dk_BCNH.astype(dtype), dv_BCNH.astype(dtype))

    xs = _chunks((q_BSNH, k_BSNH, v_BSNH, d_out_BSNH), chunk), _token_chunks(q_BSNH, segment_ids_BS, chunk)
    d_state_BNHH, (dk, dv) = jax.lax.scan(step, d_state_BNHH, xs, reverse=True)
    return dq_BSNH, _whole(dk, S), _whole(dv, S), d_state_BNHH


def state(k_BSNH, v_BSNH, slope_N, segment_ids_BS, *, reverse: bool):
    """Contract in the package's docstring. Under jit nothing is computed but the state: what else is has no use."""
    if reverse:
        start = or_zeros(None, k_BSNH)
        return backward(k_BSNH, k_BSNH, v_BSNH, slope_N, None, segment_ids_BS, v_BSNH, start)[-1]
    return forward(k_BSNH, k_BSNH, v_BSNH, slope_N, None, segment_ids_BS)[1]


def step(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, active_B):
    """Contract in the package's docstring. All in float32: the state's bytes, not its arithmetic, take the time."""
    q, k, v = (x.astype(jnp.float32) for x in (q_BNH, k_BNH, v_BNH))
    new_BNHH = jnp.exp(-slope_N)[None, :, None, None] * state_BNHH + k[..., :, None] * v[..., None, :]
    out_BNH = jnp.sum(q[..., :, None] * new_BNHH, axis=-2).astype(q_BNH.dtype)
    if active_B is None:
        return out_BNH, new_BNHH
    out_BNH = jnp.where(active_B[:, None, None], out_BNH, jnp.zeros_like(out_BNH))
    return out_BNH, jnp.where(active_B[:, None, None, None], new_BNHH, state_BNHH)


class _Tokens(NamedTuple):
    """What the decays of one chunk follow from; B is 1 when all rows are alike."""

    documents: ages.Documents  # (B, C)
    age_before: jax.Array  # (B,), the age of the incoming state


class _Decays(NamedTuple):
    """float32; every exponent is <= 0."""

    intra: jax.Array  # (B, N, C, C), 0 where token i does not read token j
    read: jax.Array  # (B, C, N, 1)
    write: jax.Array  # (B, C, N, 1)
    carry: jax.Array  # (B, N, 1, 1)


def _decays(slope_N, tokens: _Tokens) -> _Decays:
    (age_BC, first_BC, valid_BC), before_B1 = tokens.documents, tokens.age_before[:, None]
    after_B1, first_after_B1 = age_BC[:, -1:], first_BC[:, -1:]

    def decay(distance_BX, alive_BX):
        axes = tuple(range(2, 1 + distance_BX.ndim))
        slope = jnp.expand_dims(slope_N, (0, *axes))
        distance = jnp.maximum(distance_BX, 0).astype(jnp.float32)[:, None]
        return jnp.where(alive_BX[:, None], jnp.exp(-slope * distance), jnp.float32(0))

    causal_CC = jnp.tri(age_BC.shape[1], dtype=jnp.bool_)[None]
    same_BCC = (age_BC[:, None, :] >= first_BC[:, :, None]) & valid_BC[:, None, :] & valid_BC[:, :, None]
    intra_BNCC = decay(age_BC[:, :, None] - age_BC[:, None, :], same_BCC & causal_CC)
    read_BNC = decay(age_BC - before_B1, (first_BC <= before_B1) & valid_BC)
    write_BNC = decay(after_B1 - age_BC, (age_BC >= first_after_B1) & valid_BC)
    carry_BN1 = decay(after_B1 - before_B1, first_after_B1 <= before_B1)
    return _Decays(intra_BNCC, _per_token(read_BNC), _per_token(write_BNC), carry_BN1[..., None])


def _per_token(x_BNC):
    return jnp.swapaxes(x_BNC, 1, 2)[..., None]


def _token_chunks(q_BSNH, segment_ids_BS, chunk: int) -> _Tokens:
    documents = ages.filled_documents(segment_ids_BS, q_BSNH.shape[1], chunk)
    return _Tokens(_chunks(documents, chunk), jnp.swapaxes(ages.before_chunks(documents, chunk), 0, 1))


def _chunks(arrays, chunk: int):
    """(B, S, ...) -> (chunks, B, C, ...), the last chunk filled with zeros."""

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk), *((0, 0),) * (x.ndim - 2)))
        return jnp.swapaxes(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 0, 1)

    return jax.tree.map(split, arrays)


def _whole(chunks, S: int):
    x = jnp.swapaxes(chunks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :S]


def _scale(x_BCNH, decay_BCN1):
    return (x_BCNH.astype(jnp.float32) * decay_BCN1).astype(x_BCNH.dtype)


def _dot(equation: str, x, y):
    if dispatch.platform() == "cpu":
        # XLA:CPU has no bfloat16 x bfloat16 -> float32 for every layout; widened operands give the same exact products.
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(equation, x, y, precision=matmul_precision(x.dtype), preferred_element_type=jnp.float32)
