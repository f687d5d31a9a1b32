"""Lightning attention for TPUs: streaming passes of two Pallas kernels (README: passes and bytes).

The forward pass is a scan of (q, k, v). The gradient of q is the same scan of (do, v, k) with the state transposed; the
gradients of k and v are one reverse scan of all four. Nothing of a chunk goes through HBM but its tokens.
"""

import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import ages, tiling, tpu_scan
from pallas_kernels.lightning_attention.states import or_zeros
from pallas_kernels.lightning_attention.tpu_step import step as step  # part of the contract


def unsupported(q, k, v, slope, state, segment_ids) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del k, v, slope, state, segment_ids
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    if q.shape[-1] not in (64, 128, 256):
        return f"head_dim must be 64, 128 or 256, got {q.shape[-1]}"
    return None


def forward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS):
    """Contract in the package's docstring."""
    S = q_BSNH.shape[1]
    state_BNHH = or_zeros(state_BNHH, q_BSNH)
    tiles = tiling.tiling(dispatch.device_kind())
    lines = _lines(S, segment_ids_BS, tiles.chunk)
    sequences = [_to_kernel(x, tiles.chunk) for x in (q_BSNH, k_BSNH, v_BSNH)]
    out_BNSH, state_BNHH = tpu_scan.scan(slope_N, lines, sequences, state_BNHH, tiles)
    return _from_kernel(out_BNSH, S), state_BNHH


def backward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS, d_out_BSNH, d_state_BNHH):
    """Contract in the package's docstring."""
    S = q_BSNH.shape[1]
    state_BNHH = or_zeros(state_BNHH, q_BSNH)
    tiles = tiling.tiling(dispatch.device_kind())
    lines = _lines(S, segment_ids_BS, tiles.chunk)
    q, k, v, d_out = (_to_kernel(x, tiles.chunk) for x in (q_BSNH, k_BSNH, v_BSNH, d_out_BSNH))
    dq, _ = tpu_scan.scan(slope_N, lines, [d_out, v, k], jnp.swapaxes(state_BNHH, -1, -2), tiles)
    dk, dv, d_state_BNHH = tpu_scan.reverse_scan(slope_N, lines, [q, k, v, d_out], d_state_BNHH, tiles)
    return *(_from_kernel(x, S) for x in (dq, dk, dv)), d_state_BNHH


def _lines(S: int, segment_ids_BS, chunk: int):
    """`ages.chunk_rows` of the padded sequence, or of one chunk (1, ROWS, C) where all chunks are alike."""
    if segment_ids_BS is None and S % chunk == 0:
        S = chunk
    return ages.chunk_rows(ages.filled_documents(segment_ids_BS, S, chunk), chunk)


def _to_kernel(x_BSNH, chunk: int):
    """(B, S, N, H) -> (B, N, S, H), S filled up to a multiple of the chunk: time and head dim share the tiles."""
    x_BNSH = jnp.swapaxes(x_BSNH, 1, 2)
    missing = -x_BNSH.shape[2] % chunk
    return jnp.pad(x_BNSH, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing else x_BNSH


def _from_kernel(x_BNSH, S: int):
    return jnp.swapaxes(x_BNSH[:, :, :S], 1, 2)
