"""The one streaming pass behind the Hopper kernels: a decayed causal read, forward or backward in time.

For a *task* (reader a, key b, value c), per head, with decay d = exp(-slope):

    forward   out_i = sum_{j <= i} d^(i-j) (a_i . b_j) c_j          reverse   out_i = sum_{j >= i} d^(j-i) (a_i . b_j) c_j

The op is the forward pass of (q, k, v). Its gradients are the same pass: dq is the forward pass of (do, v, k), dv the
reverse pass of (k, q, do), dk the reverse pass of (v, do, q) with the state transposed. In chunks, S the state:

    out = read * (a S) + ((a b^T) * D) c            S' = carry S + b^T (write * c)

One program owns 64 value columns of one head in one time segment. A memory warpgroup streams chunks through TMA into a
ring of slots; each compute warpgroup owns 64 of the chunk's tokens and its share of the state's key rows. The state
stays in registers in float32; a bfloat16 copy in SMEM is the operand of the next chunk's read.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64  # tokens of a compute warpgroup: the height of a wgmma
VALUES = 64  # value columns of a program: 128 bytes, the widest swizzle
PAD = 1 << 20  # the key of a padding token
DOCUMENT = 256  # what a new document adds to a key: above any distance within a chunk, so that the decay is 0
META = 32  # floats after a chunk's keys, the key at the chunk's end: slots stay on TMA's 128 byte boundaries


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed when a pass is compiled. `tasks` index the arrays given to `scan`."""

    tasks: tuple[tuple[int, int, int], ...]
    reverse: bool = False
    keyed: bool = False
    warpgroups: int = 2
    stages: int = 2
    writes_out: bool = True
    writes_state: bool = True

    @property
    def chunk(self) -> int:
        return ROWS * self.warpgroups

    def columns(self, warpgroup: int) -> range:
        """Blocks of 64 tokens that a warpgroup's tokens read inside the chunk."""
        return range(warpgroup, self.warpgroups) if self.reverse else range(warpgroup + 1)


def scan(plan: Plan, arrays, slope_N, state, keys=None, *, segments: int = 1, first=None):
    """Runs every task of the plan.

    Args:
      arrays: (B, S, N, H) bfloat16 each, S a multiple of the chunk.
      slope_N: (N,) float32.
      state: (segments, tasks, B, N, H, H) float32, what enters each time segment; None is zero.
      keys: (B, S / chunk, chunk + META) float32 of `gpu_keys`, when the plan is keyed.
      segments: number of time segments, each of ceil(chunks / segments) chunks.
      first: (segments, B, N) int32, chunks to leave out at the start of each segment (in the pass's order).

    Returns: ([out (B, S, N, H) for each task], state (segments, tasks, B, N, H, H)), None where the plan writes none.
    """
    B, S, N, H = arrays[0].shape
    shape = dict(B=B, N=N, H=H, chunks=S // plan.chunk, segments=segments)
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(arrays[0]).mat)
    out_type = [
        [vary((B, S, N, H), arrays[0].dtype) for _ in plan.tasks] if plan.writes_out else [],
        vary((segments, len(plan.tasks), B, N, H, H), jnp.float32) if plan.writes_state else [],
    ]
    inputs = dict(arrays=list(arrays), slope=slope_N, state=state, keys=keys, first=first)
    inputs = {name: x for name, x in inputs.items() if x is not None}
    programs = segments * B * N * len(plan.tasks) * (H // VALUES)
    kernel = plgpu.kernel(
        functools.partial(_program, plan, shape),
        out_type=out_type,
        scratch_types=_scratch(plan, H),
        grid=(programs,),
        grid_names=("program",),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
    )
    outs, states = kernel(inputs)
    return outs, (states if plan.writes_state else None)


def _scratch(plan: Plan, H: int):
    def tile(*shape):
        transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)

    C, W = plan.chunk, plan.warpgroups
    scratch = dict(
        b=tile(plan.stages, C, H),
        c=tile(plan.stages, C, VALUES),
        written=tile(C, VALUES),
        full=plgpu.Barrier(num_arrivals=2 + plan.writes_out + plan.keyed, num_barriers=plan.stages),
        empty=plgpu.Barrier(num_arrivals=W, num_barriers=plan.stages),
        meet=plgpu.Barrier(num_arrivals=W),
    )
    if plan.writes_out:
        scores = sum(len(plan.columns(w)) for w in range(W))
        scratch |= dict(a=tile(plan.stages, C, H), state=tile(H, VALUES), scores=tile(scores, ROWS, ROWS))
    if plan.keyed:
        scratch["keys"] = plgpu.SMEM((plan.stages, C + META), jnp.float32)
    return scratch


def _program(plan: Plan, shape, inputs, outs, states, **smem):
    """One (segment, batch row, head, task, value columns)."""
    halves, tasks = shape["H"] // VALUES, len(plan.tasks)
    rest, half = _split(lax.axis_index("program"), halves)
    rest, task = _split(rest, tasks)
    rest, n = _split(rest, shape["N"])
    segment, b = _split(rest, shape["B"])
    per_segment = -(-shape["chunks"] // shape["segments"])
    low = segment * per_segment
    high = jnp.minimum(low + per_segment, shape["chunks"])
    skip = inputs["first"][segment, b, n] if "first" in inputs else 0
    where = dict(segment=segment, b=b, n=n, task=task, columns=pl.ds(half * VALUES, VALUES))
    where |= dict(steps=high - low - skip, skip=skip, low=low, high=high)
    warpgroup = lax.axis_index("warpgroup")

    for w in range(plan.warpgroups):
        # One branch for each warpgroup: which blocks it reads inside the chunk is then known when compiling.
        pl.when(warpgroup == w)(functools.partial(_compute, plan, shape, where, w, inputs, outs, states, smem))

    @pl.when(warpgroup == plan.warpgroups)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        for t in range(tasks):
            load = functools.partial(_load, plan, where, t, inputs, smem)
            load() if tasks == 1 else pl.when(task == t)(load)


def _split(index, size):
    size = jnp.int32(size)
    return lax.div(index, size), lax.rem(index, size)


def _chunk_index(plan: Plan, where, step):
    return where["high"] - 1 - where["skip"] - step if plan.reverse else where["low"] + where["skip"] + step


def _load(plan: Plan, where, task: int, inputs, smem):
    """The memory warpgroup: keeps the ring of slots full."""
    a, b, c = (inputs["arrays"][i] for i in plan.tasks[task])

    @pl.loop(0, where["steps"])
    def _(step):
        slot = lax.rem(step, jnp.int32(plan.stages))
        full = smem["full"].at[slot]

        @pl.when(step >= plan.stages)
        def _():
            plgpu.barrier_wait(smem["empty"].at[slot])

        chunk = _chunk_index(plan, where, step)
        tokens = pl.ds(chunk * plan.chunk, plan.chunk)
        plgpu.copy_gmem_to_smem(b.at[where["b"], tokens, where["n"]], smem["b"].at[slot], full)
        if plan.writes_out:
            plgpu.copy_gmem_to_smem(a.at[where["b"], tokens, where["n"]], smem["a"].at[slot], full)
        plgpu.copy_gmem_to_smem(c.at[where["b"], tokens, where["n"], where["columns"]], smem["c"].at[slot], full)
        if plan.keyed:
            plgpu.copy_gmem_to_smem(inputs["keys"].at[where["b"], chunk], smem["keys"].at[slot], full)


def _compute(plan: Plan, shape, where, w: int, inputs, outs, states, smem):
    """A compute warpgroup: 64 tokens of every chunk, and H / warpgroups key rows of the state."""
    plgpu.set_max_registers({1: 216, 2: 232}[plan.warpgroups], action="increase")
    rate = inputs["slope"][where["n"]] * math.log2(math.e)
    share = shape["H"] // plan.warpgroups
    mine = pl.ds(w * share, share)
    place = (where["segment"], where["task"], where["b"], where["n"], mine, where["columns"])
    if "state" in inputs:
        state = plgpu.load(inputs["state"].at[place], layout=plgpu.Layout.WGMMA, optimized=False)
    else:
        state = plgpu.layout_cast(jnp.zeros((share, VALUES), jnp.float32), plgpu.Layout.WGMMA)
    if plan.writes_out:
        _publish(plan, smem, mine, state)

    plain = None if plan.keyed else _Decays(plan, w, rate, None)

    def step(i, state):
        slot = lax.rem(i, jnp.int32(plan.stages))
        plgpu.barrier_wait(smem["full"].at[slot])
        decays = _Decays(plan, w, rate, smem["keys"].at[slot]) if plan.keyed else plain
        chunk = _chunk_index(plan, where, i)
        return _chunk(plan, where, w, decays, slot, chunk, mine, state, outs, smem)

    state = lax.fori_loop(0, where["steps"], step, state)
    if plan.writes_state:
        states.at[place][...] = state
    if plan.writes_out:
        plgpu.wait_smem_to_gmem(0)


def _publish(plan: Plan, smem, mine, state):
    """Lays the state out in SMEM as an operand, for all warpgroups."""
    smem["state"].at[mine][...] = state.astype(jnp.bfloat16)
    plgpu.commit_smem()
    _meet(plan, smem)


def _meet(plan: Plan, smem):
    if plan.warpgroups > 1:
        plgpu.barrier_arrive(smem["meet"])
        plgpu.barrier_wait(smem["meet"])


def _chunk(plan: Plan, where, w: int, decays, slot, chunk, mine, state, outs, smem):
    """Reads and updates the state for one chunk; returns the state."""
    rows = pl.ds(w * ROWS, ROWS)
    b, c = smem["b"].at[slot], smem["c"].at[slot]

    def scale():
        values = plgpu.load(c.at[rows], layout=plgpu.Layout.WGMMA).astype(jnp.float32)
        smem["written"].at[rows][...] = (values * _down(decays.write, VALUES)).astype(jnp.bfloat16)

    if not plan.writes_out:
        scale()
        plgpu.commit_smem()
        _meet(plan, smem)
        (added,) = _matmuls([(b.at[:, mine].transpose((1, 0)), smem["written"])], state.shape)
        plgpu.barrier_arrive(smem["empty"].at[slot])
        _meet(plan, smem)
        return decays.carry * state + added

    a = smem["a"].at[slot, rows]
    columns = plan.columns(w)
    blocks = [pl.ds(c * ROWS, ROWS) for c in columns]
    base = sum(len(plan.columns(i)) for i in range(w))
    pairs = [(a, b.at[block].transpose((1, 0))) for block in blocks] + [(a, smem["state"])]
    *scores, before = _matmuls(pairs, (ROWS, ROWS), meanwhile=scale)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last chunk's output leaves from the first block
    for i, column in enumerate(columns):
        smem["scores"].at[base + i][...] = decays.intra(column, scores[i]).astype(jnp.bfloat16)
    plgpu.commit_smem()
    _meet(plan, smem)  # `written` is whole, and no warpgroup reads the old state any more

    def products(inside, added):
        for i, block in enumerate(blocks):
            plgpu.wgmma(inside, smem["scores"].at[base + i], c.at[block])
        plgpu.wgmma(added, b.at[:, mine].transpose((1, 0)), smem["written"])
        return inside[...], added[...]

    accumulators = (plgpu.ACC((ROWS, VALUES), jnp.float32), plgpu.ACC(state.shape, jnp.float32))
    inside, added = pl.run_scoped(products, *accumulators)
    plgpu.barrier_arrive(smem["empty"].at[slot])
    staged = smem["scores"].at[base]
    staged[...] = (inside + before * _down(decays.read, VALUES)).astype(jnp.bfloat16)
    state = decays.carry * state + added
    _publish(plan, smem, mine, state)
    tokens = pl.ds(chunk * plan.chunk + w * ROWS, ROWS)
    for t in range(len(plan.tasks)):
        out = outs[t].at[where["b"], tokens, where["n"], where["columns"]]
        store = functools.partial(plgpu.copy_smem_to_gmem, staged, out)
        store() if len(plan.tasks) == 1 else pl.when(where["task"] == t)(store)
    return state


def _matmuls(pairs, shape, meanwhile=None):
    """The products of (left, right) operands in SMEM, float32 (shape); `meanwhile` runs beside the tensor core."""

    def run(*accumulators):
        for accumulator, (left, right) in zip(accumulators, pairs, strict=True):
            plgpu.wgmma(accumulator, left, right)
        if meanwhile is not None:
            meanwhile()
        return tuple(accumulator[...] for accumulator in accumulators)

    return pl.run_scoped(run, *(plgpu.ACC(shape, jnp.float32) for _ in pairs))


def _down(per_row, columns: int):
    return lax.broadcast_in_dim(per_row, (per_row.shape[0], columns), [0])


class _Decays:
    """The powers of the decay that one warpgroup's tokens need in a chunk.

    A token's key is its age since the chunk's start, plus DOCUMENT for each document begun since; the state that enters
    has key 0. So a decay is the difference of two keys, and a difference outside 0..chunk reads nothing. Without
    `keys` token i has key i + 1, and everything but the products is computed once, before the loop.
    """

    def __init__(self, plan: Plan, w: int, rate, keys):
        self.plan, self.w, self.rate, self.keys = plan, w, rate, keys
        C, rows = plan.chunk, plgpu.Layout.WGMMA.reduce(1)
        if keys is None:
            self.row = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=rows).astype(jnp.float32) + (w * ROWS + 1.0)
            end = jnp.float32(C)
            self.table = {column: self._table(column) for column in plan.columns(w)}
        else:
            self.row = plgpu.load(keys.at[pl.ds(w * ROWS, ROWS)], layout=rows)
            end = keys[C]
        entered, left = self._power(self.row), self._power(end - self.row)
        self.read, self.write = (left, entered) if plan.reverse else (entered, left)
        self.carry = self._power(end)

    def intra(self, column: int, scores):
        """The scores of the warpgroup's tokens against a block of tokens, decayed."""
        if self.keys is None:
            return scores * self.table[column]
        other = plgpu.load(self.keys.at[pl.ds(column * ROWS, ROWS)], layout=plgpu.Layout.WGMMA.reduce(0))
        # Two padding tokens must not meet at distance 0.
        other = jnp.where(other >= PAD, jnp.float32(2 * PAD), other)
        distance = _down(self.row, ROWS) - lax.broadcast_in_dim(other, (ROWS, ROWS), [1])
        return scores * self._power(-distance if self.plan.reverse else distance)

    def _table(self, column: int):
        down, across = (
            plgpu.broadcasted_iota(jnp.int32, (ROWS, ROWS), axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1)
        )
        distance = down - across + (self.w - column) * ROWS
        return self._power((-distance if self.plan.reverse else distance).astype(jnp.float32))

    def _power(self, distance):
        alive = (distance >= 0) & (distance <= self.plan.chunk)
        return jnp.where(alive, jnp.exp2(distance * -self.rate), jnp.float32(0))
