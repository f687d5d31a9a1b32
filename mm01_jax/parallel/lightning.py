"""Lightning attention on a mesh: heads over `tensor`, time over `sequence` (LASP+; paper 4.3, spec E).

Each sequence shard runs the op from a zero state; the end states, small and independent of length, are gathered once;
every shard forms the state that enters it, decayed by the tokens between, and adds what that state contributes:

    S_in[r] = sum_{i<r} decay(i+1..r-1) S_local[i]          o_t += exp(-s age_t) S_in' q_t

A document boundary cuts both: decay over a shard that holds one is 0, and only tokens of the document that was open
when the shard began see S_in.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules
from pallas_kernels import dispatch
from pallas_kernels import lightning_attention as kernels


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array | None,
    segments_BS: jax.Array,
    *,
    rules: Rules,
) -> tuple[jax.Array, jax.Array]:
    """q, k, v (B, S, N, H), slope (N,), state (B, N, H, H) float32 or None -> (out (B, S, N, H), state).

    See `pallas_kernels.lightning_attention` for the meaning of segments and state.
    """
    tokens = sharding.spec(rules, "batch", "seq", "heads", None)
    states = sharding.spec(rules, "batch", "heads", None, None)
    in_specs = (tokens, tokens, tokens, sharding.spec(rules, "heads"), sharding.spec(rules, "batch", "seq"))
    args = (q, k, v, slope_N, segments_BS)
    if state_BNHH is not None:
        in_specs, args = (*in_specs, states), (*args, state_BNHH)
    local = functools.partial(_local, seq_axes=rules.seq)
    return _mapped(local, in_specs, (tokens, states))(*args)


def lightning_attention_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array,
    segments_B1: jax.Array,
    *,
    rules: Rules,
) -> tuple[jax.Array, jax.Array]:
    """Decode: the same for one token a row (S = 1); rows whose segment is negative keep their state."""
    tokens = sharding.spec(rules, "batch", None, "heads", None)
    states = sharding.spec(rules, "batch", "heads", None, None)
    in_specs = (tokens,) * 3 + (sharding.spec(rules, "heads"), sharding.spec(rules, "batch", None), states)

    def local(q, k, v, slope, segments, state):
        q, k, v = q[:, 0], k[:, 0], v[:, 0]
        out, state = kernels.lightning_attention_step(q, k, v, slope, state, active_B=segments[:, 0] >= 0)
        return out[:, None], state

    return _mapped(local, in_specs, (tokens, states))(q, k, v, slope_N, segments_B1, state_BNHH)


def _mapped(local, in_specs, out_specs):
    """shard_map, unchecked for GPUs: loops and references in Mosaic GPU kernels lose the types that say what varies
    over which axes (jax 0.11 and 0.12). Gradients need no types here: q, k and v are sharded over every axis in use.
    """
    checked = dispatch.platform() != "gpu"
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=checked)


def _local(q, k, v, slope_N, segments_BS, state_BNHH=None, *, seq_axes: tuple[str, ...]):
    """One device's share; with one sequence shard the op alone."""
    if all(lax.axis_size(axis) == 1 for axis in seq_axes):
        out, state = kernels.lightning_attention(q, k, v, slope_N, state_BNHH, segment_ids=segments_BS)
        return out, _unvarying(state, seq_axes)
    out, state = kernels.lightning_attention(q, k, v, slope_N, None, segment_ids=segments_BS)
    valid_BS = segments_BS >= 0
    age_BS = jnp.cumsum(valid_BS, axis=1, dtype=jnp.float32)  # tokens since the shard began, this one included
    entering, final = _prefix(state, slope_N, segments_BS, age_BS[:, -1], state_BNHH, seq_axes)
    seen_BS = valid_BS & _open_document(segments_BS)
    decay_BSN = jnp.where(seen_BS[:, :, None], jnp.exp(-slope_N[None, None, :] * age_BS[:, :, None]), 0.0)
    query = (q.astype(jnp.float32) * decay_BSN[..., None]).astype(q.dtype)
    precision = "highest" if q.dtype == jnp.float32 else "default"
    extra = jnp.einsum(
        "bsnk,bnkv->bsnv",
        query,
        entering.astype(q.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return (out.astype(jnp.float32) + extra).astype(out.dtype), final


def _open_document(segments_BS: jax.Array) -> jax.Array:
    """True for tokens of the document that the shard's first token belongs to."""
    first_B = _first_valid(segments_BS)
    return jnp.cumsum((segments_BS != first_B[:, None]) & (segments_BS >= 0), axis=1) == 0


def _first_valid(segments_BS: jax.Array) -> jax.Array:
    """Segment id of each row's first token that is not padding (-1 if there is none)."""
    index = jnp.argmax(segments_BS >= 0, axis=1)
    return jnp.take_along_axis(segments_BS, index[:, None], axis=1)[:, 0]


def _prefix(state_BNHH, slope_N, segments_BS, count_B, initial_BNHH, seq_axes):
    """(state that enters this shard, state after the last shard), from every shard's own end state.

    A serial walk over the gathered states: their number is the size of the sequence axis, their size does not depend
    on length. Padding-only shards pass everything through; the initial state continues into the first document.
    """
    first_B = _first_valid(segments_BS)
    last_B = _first_valid(segments_BS[:, ::-1])
    whole_B = jnp.all(_open_document(segments_BS), axis=1)  # no boundary inside
    gather = functools.partial(lax.all_gather, axis_name=seq_axes, tiled=False)
    states, first, last, whole, count = (gather(x) for x in (state_BNHH, first_B, last_B, whole_B, count_B))
    me = lax.axis_index(seq_axes)
    carried = jnp.zeros_like(state_BNHH) if initial_BNHH is None else _varying_like(initial_BNHH, state_BNHH)
    open_id = jnp.full_like(first_B, -1)  # -1: whatever document comes first continues the state
    entering = jnp.zeros_like(state_BNHH)
    for shard in range(states.shape[0]):
        continues = (open_id == -1) | (first[shard] == open_id) | (first[shard] == -1)
        usable = jnp.where(continues[:, None, None, None], carried, 0.0)
        entering = jnp.where(me == shard, usable, entering)
        decay = jnp.where(whole[shard][:, None], jnp.exp(-slope_N[None, :] * count[shard][:, None]), 0.0)
        carried = usable * decay[:, :, None, None] + states[shard]
        open_id = jnp.where(last[shard] == -1, open_id, last[shard])
    return entering, _unvarying(carried, seq_axes)


def _varying_like(x: jax.Array, like: jax.Array) -> jax.Array:
    missing = tuple(jax.typeof(like).mat.varying - jax.typeof(x).mat.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


def _unvarying(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """x of the first shard along `axes`, typed as equal on all of them; every shard holds the same value anyway.

    A masked sum, because it is exact, differentiable and the one way to tell the type system.
    """
    axes = tuple(axis for axis in axes if axis in jax.typeof(x).mat.varying)
    return lax.psum(jnp.where(lax.axis_index(axes) == 0, x, 0.0), axes) if axes else x
