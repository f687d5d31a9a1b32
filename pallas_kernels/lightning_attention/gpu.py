"""Lightning attention for NVIDIA Hopper (Pallas Mosaic GPU: TMA and wgmma), bfloat16.

Forward and backward are streaming passes of one kernel, `gpu_scan`: q, k, v -> out; do, v, k -> dq; and one launch of
two reverse passes for dv and dk, which read the same four tensors at the same time: one of them finds them in L2.
Where heads are too few to fill the chip, `gpu_split` cuts the sequence into time segments.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import ages, gpu_scan, gpu_split
from pallas_kernels.lightning_attention.gpu_step import step as step  # part of the contract

HEAD_DIMS = (64, 128)
MULTIPROCESSORS = 132  # of an H100 or H200 SXM


def unsupported(q, k, v, slope, state, segment_ids) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del k, v, slope, state, segment_ids
    if reason := dispatch.why_not_hopper():
        return reason
    if q.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {q.dtype.name}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {q.shape[-1]}"
    return None


def forward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS):
    """Contract in the package's docstring."""
    S = q_BSNH.shape[1]
    run = _Pass(q_BSNH.shape, slope_N, segment_ids_BS)
    q, k, v = run.padded(q_BSNH, k_BSNH, v_BSNH)
    states = run.entering((k, v), state_BNHH, reverse=False)
    (out,), ends = run.scan(((0, 1, 2),), (q, k, v), states, reverse=False)
    return out[:, :S], ends[-1, 0]


def forward_joined(qkv_BSN3H, slope_N, state_BNHH, segment_ids_BS):
    """As `forward`, of q, k, v as one product gives them: each head's beside each other. They are read from there."""
    B, S, N, _, H = qkv_BSN3H.shape
    run = _Pass((B, S, N, H), slope_N, segment_ids_BS)
    arrays = run.padded(qkv_BSN3H.reshape(B, S, N * gpu_scan.JOINED, H))
    states = run.entering(arrays, state_BNHH, reverse=False, joined=True)
    (out,), ends = run.scan(((0, 1, 2),), arrays, states, reverse=False, joined=True)
    return out[:, :S], ends[-1, 0]


def backward(q_BSNH, k_BSNH, v_BSNH, slope_N, state_BNHH, segment_ids_BS, d_out_BSNH, d_state_BNHH):
    """Contract in the package's docstring."""
    S = q_BSNH.shape[1]
    run = _Pass(q_BSNH.shape, slope_N, segment_ids_BS)
    q, k, v, d_out = run.padded(q_BSNH, k_BSNH, v_BSNH, d_out_BSNH)
    state_BNHH = None if state_BNHH is None else jnp.swapaxes(state_BNHH, -1, -2)
    states = run.entering((v, k), state_BNHH, reverse=False)
    (dq,), _ = run.scan(((0, 1, 2),), (d_out, v, k), states, reverse=False, writes_state=False)
    grads = run.entering((q, d_out), d_state_BNHH, reverse=True)
    grads = jnp.concatenate([grads, jnp.swapaxes(grads, -1, -2)], axis=1)
    has_state = state_BNHH is not None
    (dv, dk), starts = run.scan(((1, 0, 3), (2, 3, 0)), (q, k, v, d_out), grads, reverse=True, writes_state=has_state)
    return dq[:, :S], dk[:, :S], dv[:, :S], starts[0, 0] if has_state else None


def state(k_BSNH, v_BSNH, slope_N, segment_ids_BS, *, reverse: bool):
    """Contract in the package's docstring."""
    run = _Pass(k_BSNH.shape, slope_N, segment_ids_BS)
    return run.leaving(run.padded(k_BSNH, v_BSNH), reverse=reverse)


class _Pass:
    """A call's chunks, ages and time segments, shared by its passes."""

    def __init__(self, shape: tuple[int, int, int, int], slope_N, segment_ids_BS):
        B, S, N, H = shape
        self.readers = H // gpu_scan.TOKENS
        chunk = self.readers * gpu_scan.TOKENS
        self.slope, self.fill = slope_N, -S % chunk
        if segment_ids_BS is None and not self.fill:
            self.ages, chunks = None, gpu_split.plain_chunks(S, chunk)
        else:
            chunks, chunk_ages = gpu_split.packed_chunks(ages.filled_documents(segment_ids_BS, S, chunk), chunk)
            self.ages = jnp.broadcast_to(chunk_ages, (B, *chunk_ages.shape[1:]))
        programs = B * N * (H // gpu_scan.VALUES)
        self.cut = gpu_split.cut(programs, (S + self.fill) // chunk, MULTIPROCESSORS)
        self.cutting = chunks, self.cut, slope_N, B
        self.split = gpu_split.split(*self.cutting) if self.cut.segments > 1 else None

    def padded(self, *arrays):
        if not self.fill:
            return arrays
        return tuple(jnp.pad(x, ((0, 0), (0, self.fill), (0, 0), (0, 0))) for x in arrays)

    def scan(self, tasks, arrays, states, *, reverse: bool, **planned):
        """A full pass over the time segments, with the states that enter them."""
        return self._scan(tasks, arrays, states, (self.cut.segments, self.cut.parts * self.cut.part), reverse, planned)

    def entering(self, arrays, state_BNHH, *, reverse: bool, joined: bool = False) -> jax.Array | None:
        """The states that enter the time segments, for the outer products of two arrays, or of k and v of a joined one:
        (segments, 1, B, N, H, H).
        """
        if self.split is None:
            return None if state_BNHH is None else state_BNHH[None, None]
        partial = self._partial(arrays, self.split, reverse, joined)
        return gpu_split.passed_on(self.split, partial, state_BNHH, reverse=reverse)[:-1, None]

    def leaving(self, arrays, *, reverse: bool) -> jax.Array:
        """The state that leaves the last segment, or in reverse the first one: (B, N, H, H)."""
        if self.split is None:
            _, ends = self._scan(((0, 0, 1),), arrays, None, (1, self.cut.part), reverse, {"writes_out": False})
            return ends[0, 0]
        whole = gpu_split.split(*self.cutting, needless=False)
        return gpu_split.passed_on(whole, self._partial(arrays, whole, reverse), None, reverse=reverse)[-1]

    def _partial(self, arrays, split: gpu_split.Split, reverse: bool, joined: bool = False) -> jax.Array:
        """The states that the parts of all segments make of nothing: (pieces, B, N, H, H)."""
        way = split.reverse if reverse else split.forward
        order = gpu_split.longest_first(way.steps) if self.cut.parts > 1 else None
        pieces = (self.cut.segments * self.cut.parts, self.cut.part)
        task, planned = ((0, 1, 2) if joined else (0, 0, 1),), {"writes_out": False, "joined": joined}
        return self._scan(task, arrays, None, pieces, reverse, planned, skip=way.skip, order=order)[1][:, 0]

    def _scan(self, tasks, arrays, states, pieces, reverse, planned, **which):
        packed = self.ages is not None
        plan = gpu_scan.Plan(tasks=tasks, reverse=reverse, packed=packed, readers=self.readers, **planned)
        return gpu_scan.scan(plan, arrays, self.slope, states, self.ages, pieces=pieces, **which)
