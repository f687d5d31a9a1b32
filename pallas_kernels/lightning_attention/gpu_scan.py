"""The one streaming pass behind the Hopper kernels: a decayed causal read, forward or backward in time.

For a *task* (reader a, key b, value c), per head, with decay d = exp(-slope), i a token that reads, j one that is read:

    forward   out_i = sum_{j <= i} d^(i-j) (a_i . b_j) c_j        reverse   out_i = sum_{j >= i} d^(j-i) (a_i . b_j) c_j

The op is the forward pass of (q, k, v). Its gradients are the same pass: dq is the forward pass of (do, v, k), dv the
reverse pass of (k, q, do), dk the reverse pass of (v, do, q) with the state transposed. In chunks, S the state:

    out = read * (a S) + ((a b^T) * D) c            S' = carry S + b^T (write * c)

One *item* is 64 value columns of one head in one piece of the sequence; a program takes its items one after the other.
Its warpgroups have roles. The loader streams chunks through TMA into a ring of slots, over the item's end into the
next one. Each reader computes the output of 64 of a chunk's tokens. The writer keeps the state in registers in
float32, runs ahead of the readers and lays a bfloat16 copy out in SMEM for each chunk, the operand of their a S.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import declared
from pallas_kernels.lightning_attention import gpu_decay, gpu_plan
from pallas_kernels.lightning_attention.gpu_decay import TOKENS
from pallas_kernels.lightning_attention.gpu_plan import VALUES, Inputs, Item, Plan, Scratch, Sizes
from pallas_kernels.varying import vary_alike

JOINED = 3  # arrays in one: q, k, v
HALVES = "half"  # the two value halves of a head of 128 are one cluster: they run at the same time, a and b in L2


def scan(plan: Plan, arrays, slope_N, state, ages=None, *, pieces: tuple[int, int], skip=None, order=None):
    """Runs every task of the plan.

    Args:
      arrays: (B, S, N, H) bfloat16 each, S a multiple of the chunk; of a joined plan one, (B, S, 3 N, H): of each head
        q, k, v.
      slope_N: (N,) float32.
      state: (pieces, tasks, B, N, H, H) float32, what enters each piece of the sequence; None is zero.
      ages: (B, S / chunk, chunk + META) float32 of `gpu_split`, when the plan is packed.
      pieces: their number, and the chunks of each; the last may have fewer, or none.
      skip: (pieces, B, N) int32, chunks to leave out at the start of each piece (in the pass's order). Of a piece
        that has none left nothing is written.
      order: (items,) int32, in which order the programs take the items; None is (piece, row, head, task).

    Returns: ([out (B, S, N, H) for each task], state (pieces, tasks, B, N, H, H)), None where the plan writes none.
    """
    (B, S, _, H), N = arrays[0].shape, slope_N.shape[0]
    halves, tasks = H // VALUES, len(plan.tasks)
    number, length = pieces
    items = number * B * N * tasks
    # As few programs as do the items in the fewest rounds: all then end at the same time.
    rounds = -(-items * halves // plan.multiprocessors)
    sizes = Sizes(B, N, H, chunks=S // plan.chunk, length=length, items=items, programs=-(-items // rounds))
    vary = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(arrays[0]).mat)
    out_type = [
        [vary((B, S, N, H), arrays[0].dtype) for _ in plan.tasks] if plan.writes_out else [],
        vary((number, tasks, B, N, H, H), jnp.float32) if plan.writes_state else [],
    ]
    inputs = Inputs(list(arrays), skip=skip, ages=ages, order=order, slope=slope_N, state=state)
    kernel = plgpu.kernel(
        functools.partial(_program, plan, sizes),
        out_type=out_type,
        scratch_types=[gpu_plan.scratch(plan, H)],
        grid=(sizes.programs,),
        grid_names=("program",),
        cluster=(halves,),
        cluster_names=(HALVES,),
        num_threads=plan.loader + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
    )
    with declared.flops(_flops(plan, B * S * N, H)):
        outs, states = kernel(inputs)
    # jax 0.12 forgets here, and 0.11 does not, over which mesh axes a result of a Mosaic GPU kernel varies.
    _, *outs, states = vary_alike(arrays[0], *outs, states if plan.writes_state else None)
    return outs, states


def _flops(plan: Plan, tokens: int, H: int) -> int:
    """Of the products; each value half makes scores of its own."""
    state = 2 * H * H
    scores = TOKENS * (plan.readers + 1) // 2  # of a token, mean
    reads = state + 2 * scores * H * (H // VALUES + 1) if plan.writes_out else 0
    return tokens * len(plan.tasks) * (state + reads)


def _program(plan: Plan, sizes: Sizes, inputs: Inputs, outs, states, smem: Scratch):
    warpgroup = lax.axis_index("warpgroup")
    for r in range(plan.loader - 1):
        # A branch for each reader: which blocks of the chunk it reads is known when compiling.
        pl.when(warpgroup == r)(functools.partial(_reader, plan, sizes, r, inputs, outs, smem))
    pl.when(warpgroup == plan.loader - 1)(functools.partial(_writer, plan, sizes, inputs, states, smem))
    pl.when(warpgroup == plan.loader)(functools.partial(_loader, plan, sizes, inputs, smem))


class _Registers(NamedTuple):
    """Of a thread of each role. A multiprocessor has 512 for the threads of one number in all warpgroups together."""

    reader: int
    writer: int
    loader: int


_REGISTERS = {1: _Registers(216, 216, 40), 2: _Registers(160, 168, 24)}  # number of readers -> registers


def _take_registers(plan: Plan, number: int, action: str = "increase"):
    if plan.writes_out:
        plgpu.set_max_registers(number, action=action)


def _each_item(plan: Plan, sizes: Sizes, inputs: Inputs, body):
    """Calls body(item, steps done before it) for the items of this program: (piece, row, head, task)."""
    program, programs = lax.axis_index("program"), sizes.programs

    def one(i, done):
        index = program + i * programs
        index = index if inputs.order is None else inputs.order[index]
        rest, task = _split(index, len(plan.tasks))
        rest, n = _split(rest, sizes.N)
        piece, b = _split(rest, sizes.B)
        low = jnp.minimum(piece * sizes.length, sizes.chunks)
        high = jnp.minimum(low + sizes.length, sizes.chunks)
        skip = jnp.int32(0) if inputs.skip is None else inputs.skip[piece, b, n]
        columns = pl.ds(lax.axis_index(HALVES) * VALUES, VALUES)
        steps, start = high - low - skip, high - 1 - skip if plan.reverse else low + skip
        body(Item(piece, b, n, task, columns, steps, start), done)
        return done + steps

    lax.fori_loop(0, lax.div(sizes.items - program + (programs - 1), jnp.int32(programs)), one, jnp.int32(0))


def _split(index, size: int):
    return lax.div(index, jnp.int32(size)), lax.rem(index, jnp.int32(size))


def _chunk_index(plan: Plan, item: Item, step):
    return item.start - step if plan.reverse else item.start + step


def _for_task(plan: Plan, item: Item, act):
    for t in range(len(plan.tasks)):
        run = functools.partial(act, t)
        run() if len(plan.tasks) == 1 else pl.when(item.task == t)(run)


def _loader(plan: Plan, sizes: Sizes, inputs: Inputs, smem: Scratch):
    """Keeps the ring of slots full."""
    _take_registers(plan, _REGISTERS[plan.readers].loader, "decrease")

    def load(item, done, task):
        def part(number: int, tokens, *columns):
            """Tokens of the item's head, of one of the task's arrays."""
            which = plan.tasks[task][number]
            array, head = (inputs.arrays[0], item.n * JOINED + which) if plan.joined else (inputs.arrays[which], item.n)
            return array.at[(item.b, tokens, head, *columns)]

        @pl.loop(0, item.steps)
        def _(step):
            slot = lax.rem(done + step, jnp.int32(plan.stages))
            full = smem.full.at[slot]

            @pl.when(done + step >= plan.stages)
            def _():
                plgpu.barrier_wait(smem.empty.at[slot])

            chunk = _chunk_index(plan, item, step)
            tokens = pl.ds(chunk * plan.chunk, plan.chunk)
            plgpu.copy_gmem_to_smem(part(1, tokens), smem.b.at[slot], full)
            if plan.writes_out:
                plgpu.copy_gmem_to_smem(part(0, tokens), smem.a.at[slot], full)
            plgpu.copy_gmem_to_smem(part(2, tokens, item.columns), smem.c.at[slot], full)
            if plan.packed:
                plgpu.copy_gmem_to_smem(inputs.ages.at[item.b, chunk], smem.ages.at[slot], full)

    _each_item(plan, sizes, inputs, lambda item, done: _for_task(plan, item, functools.partial(load, item, done)))


def _rate(inputs: Inputs, item: Item):
    """The decay as a power of two."""
    return inputs.slope[item.n] * math.log2(math.e)


def _reader(plan: Plan, sizes: Sizes, r: int, inputs: Inputs, outs, smem: Scratch):
    """The output of a chunk's tokens `own`, for every chunk."""
    _take_registers(plan, _REGISTERS[plan.readers].reader)
    own = pl.ds(r * TOKENS, TOKENS)
    blocks = [pl.ds(block * TOKENS, TOKENS) for block in plan.blocks(r)]
    scores_smem = [smem.scores.at[plan.first_scores(r) + i] for i in range(len(blocks))]
    staged = scores_smem[0]

    def body(item, done):
        plain = gpu_decay.Reader(plan, r, _rate(inputs, item))
        plain_read = None if plan.packed else plain.read()

        @pl.loop(0, item.steps)
        def _(step):
            slot = lax.rem(done + step, jnp.int32(plan.stages))
            plgpu.barrier_wait(smem.full.at[slot])
            a, b, c = smem.a.at[slot, own], smem.b.at[slot], smem.c.at[slot]
            decays = gpu_decay.PackedReader(plain, smem.ages.at[slot]) if plan.packed else plain
            scores = _matmuls(*([(a, b.at[block].transpose((1, 0)))] for block in blocks))
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last chunk's output leaves from `staged`
            for i, block in enumerate(plan.blocks(r)):
                scores_smem[i][...] = decays.inside(block, scores[i]).astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.barrier_wait(smem.state_laid)
            inside = [(scores_smem[i], c.at[block]) for i, block in enumerate(blocks)]
            before, inside = _matmuls([(a, smem.state)], inside)
            plgpu.barrier_arrive(smem.state_read)
            plgpu.barrier_arrive(smem.empty.at[slot])
            read = decays.read() if plan.packed else plain_read
            staged[...] = (inside + before * gpu_decay.down(read, VALUES)).astype(jnp.bfloat16)
            plgpu.commit_smem()
            tokens = pl.ds(_chunk_index(plan, item, step) * plan.chunk + r * TOKENS, TOKENS)
            place = (item.b, tokens, item.n, item.columns)
            _for_task(plan, item, lambda t: plgpu.copy_smem_to_gmem(staged, outs[t].at[place]))

    _each_item(plan, sizes, inputs, body)
    plgpu.wait_smem_to_gmem(0)


def _writer(plan: Plan, sizes: Sizes, inputs: Inputs, states, smem: Scratch):
    """The state."""
    _take_registers(plan, _REGISTERS[plan.readers].writer)
    H = sizes.H

    def lay(state, uses):
        @pl.when(uses > 0)
        def _():
            plgpu.barrier_wait(smem.state_read)

        smem.state[...] = state.astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.barrier_arrive(smem.state_laid)

    def body(item, done):
        place = (item.piece, item.task, item.b, item.n, slice(None), item.columns)
        if inputs.state is not None:
            state = plgpu.load(inputs.state.at[place], layout=plgpu.Layout.WGMMA, optimized=False)
            # Under `shard_map` a load has the array's varying axes in its type, arithmetic in a kernel does not keep
            # them, and the loop's carry has to begin with the type it ends with.
            state = state * jnp.float32(1)
        else:
            state = plgpu.layout_cast(jnp.zeros((H, VALUES), jnp.float32), plgpu.Layout.WGMMA)
        if plan.writes_out:
            lay(state, done)
        plain = None if plan.packed else gpu_decay.Writer(plan, _rate(inputs, item))

        def step(i, state):
            slot = lax.rem(done + i, jnp.int32(plan.stages))
            plgpu.barrier_wait(smem.full.at[slot])
            decays = gpu_decay.Writer(plan, _rate(inputs, item), smem.ages.at[slot]) if plan.packed else plain
            for block in range(plan.readers):
                tokens = pl.ds(block * TOKENS, TOKENS)
                values = plgpu.load(smem.c.at[slot, tokens], layout=plgpu.Layout.WGMMA).astype(jnp.float32)
                scaled = values * gpu_decay.down(decays.write[block], VALUES)
                smem.written.at[tokens][...] = scaled.astype(jnp.bfloat16)
            plgpu.commit_smem()
            (added,) = _matmuls([(smem.b.at[slot].transpose((1, 0)), smem.written)])
            plgpu.barrier_arrive(smem.empty.at[slot])
            state = decays.carry * state + added
            if plan.writes_out:
                pl.when(i + 1 < item.steps)(functools.partial(lay, state, done + i + 1))
            return state

        state = lax.fori_loop(0, item.steps, step, state)
        if plan.writes_state:
            pl.when(item.steps > 0)(lambda: states.at[place].__setitem__(..., state))

    _each_item(plan, sizes, inputs, body)


def _matmuls(*sums):
    """For each list of (left, right) operands in SMEM the sum of their products, float32; all run together."""

    def run(*accumulators):
        for accumulator, pairs in zip(accumulators, sums, strict=True):
            for left, right in pairs:
                plgpu.wgmma(accumulator, left, right)
        return tuple(accumulator[...] for accumulator in accumulators)

    shapes = [(pairs[0][0].shape[0], pairs[0][1].shape[1]) for pairs in sums]
    return pl.run_scoped(run, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))
