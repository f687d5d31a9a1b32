"""Lightning attention on a mesh: heads over `tensor`, time over `sequence` (LASP+; paper 4.3; docs/model.md E).

Each stripe of a row (one or two on a sequence shard, `layout.py`) says what state it leaves of nothing; these, small
and independent of length, are gathered once; every stripe forms the state that enters it, decayed by the tokens
between, and runs the op from there:

    S_in[r] = sum_{i<r} decay(i+1..r-1) S_local[i]

The gradient is the same backward in time: what each stripe says of the state that entered it is gathered, and the op's
own gradient begins with what the later stripes say. A document boundary cuts both: the decay from one document to
another is 0, and a stripe that begins with a document lets nothing in. Document ids count up along the row.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import Rules, SequenceLayout
from mm01_jax.parallel import collectives
from mm01_jax.parallel.sequence_layout import held_here, stripes
from pallas_kernels import dispatch
from pallas_kernels import lightning_attention as kernels
from pallas_kernels.gated_norm import gated_norm as fused_gated_norm
from pallas_kernels.varying import vary_alike


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array | None,
    documents_BS: jax.Array,
    *,
    rules: Rules,
    layout: SequenceLayout = "contiguous",
) -> tuple[jax.Array, jax.Array]:
    """q, k, v (B, S, N, H), slope (N,), state (B, N, H, H) float32 or None -> (out (B, S, N, H), state).

    Rows are in `layout`; documents are the ids that `parallel/documents.py` gives. The state continues into document 0.
    """
    tokens = sharding.spec(rules, "batch", "seq", "heads", None)
    states = sharding.spec(rules, "batch", "heads", None, None)
    in_specs = (tokens, tokens, tokens, sharding.spec(rules, "heads"), sharding.spec(rules, "batch", "seq"))
    args = (q, k, v, slope_N, documents_BS)
    if state_BNHH is not None:
        in_specs, args = (*in_specs, states), (*args, state_BNHH)
    local = functools.partial(_local, seq_axes=rules.seq, layout=layout)
    return jax.shard_map(local, in_specs=in_specs, out_specs=(tokens, states))(*args)


def lightning_attention_step(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array,
    documents_B1: jax.Array,
    *,
    rules: Rules,
) -> tuple[jax.Array, jax.Array]:
    """Decode: the same for one token a row (S = 1); rows whose token is padding keep their state."""
    tokens = sharding.spec(rules, "batch", None, "heads", None)
    states = sharding.spec(rules, "batch", "heads", None, None)
    in_specs = (tokens,) * 3 + (sharding.spec(rules, "heads"), sharding.spec(rules, "batch", None), states)

    def local(q, k, v, slope, documents, state):
        q, k, v = q[:, 0], k[:, 0], v[:, 0]
        out, state = kernels.lightning_attention_step(q, k, v, slope, state, active_B=documents[:, 0] >= 0)
        return out[:, None], state

    # Unchecked on GPUs: only there the step is in place (`gpu_step.py`), and it has no gradient to check.
    checked = dispatch.platform() != "gpu"
    mapped = jax.shard_map(local, in_specs=in_specs, out_specs=(tokens, states), check_vma=checked)
    return mapped(q, k, v, slope_N, documents_B1, state_BNHH)


def lightning_attention_steps(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slope_N: jax.Array,
    state_BNHH: jax.Array,
    documents_BS: jax.Array,
    *,
    rules: Rules,
) -> tuple[jax.Array, jax.Array]:
    """Decode of a few tokens a row, with the bits of as many calls of `lightning_attention_step`."""

    def one(state_BNHH, x):
        q, k, v, documents = (array[:, None] for array in x)
        out, state_BNHH = lightning_attention_step(q, k, v, slope_N, state_BNHH, documents, rules=rules)
        return state_BNHH, out[:, 0]

    by_token = [jnp.moveaxis(array, 1, 0) for array in (q, k, v, documents_BS)]
    state_BNHH, out = lax.scan(one, state_BNHH, by_token)
    return jnp.moveaxis(out, 0, 1), state_BNHH


def _local(q, k, v, slope_N, documents_BS, state_BNHH=None, *, seq_axes: tuple[str, ...], layout: SequenceLayout):
    """One device's share; with one sequence shard the op alone."""
    shards = math.prod(lax.axis_size(axis) for axis in seq_axes)
    if shards == 1:
        out, state = kernels.lightning_attention(q, k, v, slope_N, state_BNHH, segment_ids=documents_BS)
        return out, unvarying(state, seq_axes)
    B, S = documents_BS.shape
    stripes_per_shard = len(held_here(seq_axes, layout))
    # Stripes are rows from here on: (B, S) is (B * stripes_per_shard, S / stripes_per_shard), which moves nothing.
    q, k, v, documents_BS = (
        x.reshape(B * stripes_per_shard, S // stripes_per_shard, *x.shape[2:]) for x in (q, k, v, documents_BS)
    )
    out, final = _across((seq_axes, layout), (q, k, v), slope_N, state_BNHH, documents_BS)
    return out.reshape(B, S, *out.shape[2:]), final


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _across(place, qkv, slope_N, state_BNHH, documents_BS):
    """(out, the state after the last stripe) of stripes, rows of (rows of the batch x stripes here).

    place: (axes of the mesh, layout).
    """
    return _across_forward(place, qkv, slope_N, state_BNHH, documents_BS)[0]


def _across_forward(place, qkv, slope_N, state_BNHH, documents_BS):
    q, k, v = qkv
    left = kernels.lightning_state(k, v, slope_N, segment_ids=documents_BS)
    entering, final = _entering(place, left, slope_N, state_BNHH, documents_BS)
    out, _ = kernels.lightning_attention(q, k, v, slope_N, entering, segment_ids=documents_BS)
    return (out, final), (qkv, slope_N, state_BNHH, documents_BS, entering)


def _across_backward(place, residuals, cotangents):
    qkv, slope_N, state_BNHH, documents_BS, entering = residuals
    d_out, d_final = cotangents
    d_entering = kernels.lightning_state(qkv[0], d_out, slope_N, segment_ids=documents_BS, reverse=True)

    def passed_on(left, state_BNHH):
        return _entering(place, left, slope_N, state_BNHH, documents_BS)

    _, pull = jax.vjp(passed_on, jnp.zeros_like(entering), state_BNHH)  # linear: of what values is all the same
    d_left, d_state = pull((d_entering, d_final))

    def attend(q, k, v):
        return kernels.lightning_attention(q, k, v, slope_N, entering, segment_ids=documents_BS)

    return jax.vjp(attend, *qkv)[1]((d_out, d_left)), None, d_state, None


_across.defvjp(_across_forward, _across_backward)


def gated_norm(
    out_BSNH: jax.Array, gate_BSNH: jax.Array, weight_NH: jax.Array, eps: float, *, rules: Rules
) -> jax.Array | None:
    """sigmoid(gate) * weight * norm(out), one norm over all heads, in one pass over memory each way (A.4).

    None where that pass has no place: on a CPU, where heads are cut (the norm's sum would cross shards), in decode.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if dispatch.platform() == "cpu" or out_BSNH.shape[1] == 1 or math.prod(sizes[axis] for axis in rules.heads) > 1:
        return None
    tokens = sharding.spec(rules, "batch", "seq", None, None)

    def local(out, gate, weight):
        weight = vary_alike(weight, out)[0].astype(out.dtype)
        rows = (x.reshape(-1, weight.size) for x in (out, gate))
        return fused_gated_norm(*rows, weight.reshape(-1), eps).reshape(out.shape)

    return jax.shard_map(local, in_specs=(tokens, tokens, jax.P()), out_specs=tokens)(out_BSNH, gate_BSNH, weight_NH)


def _entering(place, left_BNHH, slope_N, initial_BNHH, documents_BS) -> tuple[jax.Array, jax.Array]:
    """(states that enter the stripes here, the state after the last stripe), of what every shard's stripes leave.

    Each is one weighted sum of the states of all stripes: the decay from one to another is exp of the tokens between,
    rounded once, where a walk would round at every stripe. Stripes of padding pass everything through; the initial
    state continues into the first document.
    """
    seq_axes, layout = place
    held_by = stripes(math.prod(lax.axis_size(axis) for axis in seq_axes), layout)  # which stripe stands where
    valid_BS = documents_BS >= 0
    last, count = jnp.max(documents_BS, axis=1), jnp.sum(valid_BS, axis=1, dtype=jnp.float32)
    states, *small = (_gathered(x, seq_axes, held_by) for x in (left_BNHH, last, count))
    open_PB, tokens_PB = _boundaries(*(x[np.argsort(held_by.reshape(-1))] for x in small))

    def sum_into(boundary):
        """State at the boundary before a stripe of the row."""

        def weight(start):
            joined = (start <= boundary) & (open_PB[boundary] == open_PB[start])
            between_B = jnp.maximum(
                tokens_PB[boundary] - tokens_PB[start], 0.0
            )  # later starts have none, and no weight
            decay_BN = jnp.exp(-slope_N[None, :] * between_B[:, None])
            return jnp.where(joined[:, None], decay_BN, 0.0)[:, :, None, None]

        after = held_by.reshape(-1) + 1  # the boundary that each state is the state of
        total = jnp.sum(jnp.stack([weight(start) for start in after]) * states, axis=0)
        if initial_BNHH is not None:
            total = total + weight(0) * vary_alike(initial_BNHH, total)[0]
        return total

    own_stripes = jnp.asarray(held_by)[lax.axis_index(seq_axes)]
    entering = jnp.stack([sum_into(own_stripes[place]) for place in range(own_stripes.size)], axis=1)
    entering, open_B = entering.reshape(-1, *entering.shape[2:]), jnp.moveaxis(open_PB[own_stripes], 0, 1).reshape(-1)
    first_B = jnp.min(jnp.where(valid_BS, documents_BS, np.iinfo(np.int32).max), axis=1)
    goes_on_B = first_B == open_B  # the op takes what enters for the first document's
    return jnp.where(goes_on_B[:, None, None, None], entering, 0.0), unvarying(sum_into(held_by.size), seq_axes)


def _gathered(x: jax.Array, seq_axes: tuple[str, ...], held_by: np.ndarray) -> jax.Array:
    """(rows x stripes here, ...) -> (stripes of the row as they are held, rows, ...)."""
    x = x.reshape(-1, held_by.shape[1], *x.shape[1:])
    x = jnp.moveaxis(collectives.all_gather(x, seq_axes, tiled=False), 2, 1)
    return x.reshape(-1, *x.shape[2:])


def _boundaries(last_PB, count_PB):
    """Of stripes in row order, at each boundary, the first stripe's begin included: the document that is open there,
    and how many tokens stand before it. A row begins in document 0.
    """
    return tuple(
        jnp.concatenate([jnp.zeros_like(x[:1]), x])
        for x in (lax.cummax(jnp.maximum(last_PB, 0), axis=0), jnp.cumsum(count_PB, axis=0))
    )


def unvarying(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """x of the first shard along `axes`, typed as equal on all of them; every shard holds the same value anyway.

    A masked sum, because it is exact, differentiable and the one way to tell the type system.
    """
    axes = tuple(axis for axis in axes if axis in jax.typeof(x).mat.varying)
    return lax.psum(jnp.where(lax.axis_index(axes) == 0, x, 0.0), axes) if axes else x
