"""Decode of many rows at once, each with a prompt of its own: tokens a second, experts met, beside the floor."""

import itertools
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import bare_loop, floors
from benchmarks.inference.bench import Bench, apart, in_float32, placed, plain_path
from benchmarks.inference.prefill import Programs
from mm01_jax import scopes, sharding
from mm01_jax.inference import sampling
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decode_step import LEAST_RINGED, begin_rings, serves

CONTEXT = {1: 8192, 16: 2048, 128: 512}  # tokens of each prompt; of other numbers of rows OTHERS
OTHERS = 512
BLOCKS = 11  # timed, of BLOCK tokens each
COMPARED = 16  # steps whose hidden states are compared
PREFILLED = 16_384  # tokens at most in one call, whatever the rows
DRAWN = 131_072  # tokens of a prompt from which its cache is drawn: prefill takes longer than all of decode
PROFILED = 2  # blocks
WITHOUT_GRAPHS = {"xla_gpu_enable_command_buffer": ""}  # inside a CUDA graph a kernel has no name
OPERATIONS = (
    "projection_step",
    "lightning_step",
    "lightning_fold",
    "attention_step",
    "norm_step",
    "expert_step",
)


def measure(bench: Bench, rows: int, context: int | None = None, profile: bool = False) -> None:
    """Parity; then tokens a second of `rows` prompts, greedy, and what a step moves at least."""
    length = context or CONTEXT.get(rows, OTHERS)
    room = -(-(length + (BLOCKS + 3 + PROFILED) * bare_loop.BLOCK) // 256) * 256
    programs, subject = Programs(bench.model, bench.call), bench.named(f"decode {rows}x{length}")
    cache = _filled(bench, programs, rows, (length, room))
    met = parity(bench, subject, cache, rows)
    answers, draw = _start(bench.model, cache, rows)
    del cache
    if bench.compile_only:
        with jax.set_mesh(programs.mesh):
            lowered = bare_loop.loop.lower(bench.model, answers, draw, count=bare_loop.BLOCK)
            bench.compile(lowered, "decode_block")
            if profile and bench.is_real:
                bench.compile(lowered, "decode_block without graphs", WITHOUT_GRAPHS)
        return
    with jax.set_mesh(programs.mesh):
        second, answers = _timed(bench, answers, draw)
        ringed = bare_loop.BLOCK if serves(bench.model, rows) and rows >= LEAST_RINGED else None
    floor = floors.decode_bytes(bench.model, rows, length, met, ringed) / bench.copy
    bench.add(subject, "distinct experts a layer", met)
    bench.add(subject, "step", 1e3 * second, "ms", floor=1e3 * floor if bench.is_real else None)
    bench.add(subject, "speed", rows / second, "tokens/s", floor=None)
    if profile:
        with jax.set_mesh(programs.mesh):
            _profile(bench, subject, answers, draw)


def _timed(bench: Bench, answers, draw):
    """(seconds of a step, the answers): a block is on its way while the host reads the one before, as in the engine."""
    ends, before = [], None
    for _ in range(BLOCKS + 2):
        tokens, _, answers = bare_loop.loop(bench.model, answers, draw, count=bare_loop.BLOCK)
        if before is not None:
            np.asarray(before)
            ends.append(time.monotonic())
        before = tokens
    np.asarray(before)
    times = [end - start for start, end in itertools.pairwise(ends)]
    return statistics.median(times) / bare_loop.BLOCK, answers


def _filled(bench: Bench, programs: Programs, rows: int, lengths: tuple[int, int]) -> DecodeCache:
    """The cache after a prompt of each row. Of very long ones it is drawn at random, which costs a step as much.

    lengths: of the prompts, of the cache.
    """
    length, room = lengths
    cache = programs.empty(rows, room)
    if length < DRAWN:
        chunk = max(1, min(length, PREFILLED // rows))
        return programs.take_in(cache, bench.tokens(rows, length), chunk)[1]

    def drawn(cache: DecodeCache, key) -> DecodeCache:
        leaves, tree = jax.tree.flatten(cache.stacks)
        keys = jax.random.split(key, len(leaves))
        leaves = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return DecodeCache(jax.tree.unflatten(tree, leaves), jnp.full_like(cache.lengths, length))

    with jax.set_mesh(programs.mesh):
        return bench.call(jax.jit(drawn, donate_argnums=0), cache, jax.random.key(9, impl="rbg"), like=cache)


def parity(bench: Bench, subject: str, cache, rows: int) -> float | None:
    """Hidden states of a few given tokens by our operations are at most twice as far from float32's as plain XLA's are;
    the mean over steps and layers of how many experts were met.

    The float32 model goes on from the same cache: what is compared is the steps alone.
    """
    tokens_SB = jnp.asarray(bench.tokens(rows, COMPARED, seed=5).T)

    def states(model, cache):
        with jax.set_mesh(sharding.mesh_of(model)):
            out = bench.call(jax.jit(lambda *arguments: _given(*arguments)), model, cache, tokens_SB, like=())
        return None if bench.compile_only else (np.asarray(out[0].astype(jnp.float32)), np.asarray(out[1]))

    ours = states(bench.model, cache)
    with plain_path():
        plain = states(bench.model, cache)
        places = jax.tree.map(lambda x: x.sharding, cache)
        like = placed(jax.eval_shape(_widened, cache), places)
        wide = bench.call(jax.jit(_widened, out_shardings=places), cache, like=like)
        expected = states(in_float32(bench.model, bench.call), wide)
    if bench.compile_only:
        return None
    off, allowed = apart(ours[0], expected[0]), 2 * apart(plain[0], expected[0])
    bench.add(subject, "hidden states apart from float32", off)
    bench.add(subject, "hidden states apart from float32, twice plain XLA's", allowed)
    if not off <= allowed:
        raise ArithmeticError(f"hidden states are {off:.3g} off, those of plain XLA {allowed / 2:.3g}")
    return float(np.mean(np.sum(ours[1] > 0, axis=-1)))


def _widened(cache: DecodeCache) -> DecodeCache:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, cache)


def _given(model, cache, tokens_SB):
    """(hidden states (S, B, D), assignments to every expert (S, layers, E)) of given tokens, one after another."""

    def one(cache, token_B):
        x, none = model.embed_tokens(token_B[:, None]), jnp.zeros((len(token_B), 1), jnp.int32)
        hidden, cache, stats = model.forward(x, cache.lengths[:, None], none, cache)
        return cache, (hidden[:, 0], stats.assigned)

    return jax.lax.scan(one, begin_rings(model, cache, len(tokens_SB)), tokens_SB)[1]


def _start(model, cache, rows: int):
    """(answers, draw) of greedy rows that never stop, laid as a block's results are: the first block is as all."""
    V, mesh = model.config.vocab_size, sharding.mesh_of(model)
    with jax.set_mesh(mesh):
        history = (sharding.put(x, model.rules, "batch", None) for x in sampling.empty_history(rows, V))
        number, none = np.zeros(rows, np.int32), np.zeros(rows, bool)
        small = (sharding.put(x, model.rules, None) for x in (number, none, number))
        answers = bare_loop.Answers(cache, *small, sampling.History(*history))
        return answers, bare_loop.Draw(None, jnp.ones(V, bool), jnp.full(1, -1, jnp.int32))


def _profile(bench: Bench, subject: str, answers, draw) -> None:
    """Where a step's time goes, by operation, each beside its launches."""
    lowered = bare_loop.loop.lower(bench.model, answers, draw, count=bare_loop.BLOCK)
    compiled = lowered.compile(compiler_options=WITHOUT_GRAPHS if bench.is_real else None)
    _, _, answers = jax.block_until_ready(compiled(bench.model, answers, draw))
    with tempfile.TemporaryDirectory() as folder:
        with scopes.traced(folder):
            for _ in range(PROFILED):
                tokens, _, answers = compiled(bench.model, answers, draw)
            tokens.block_until_ready()
        scopes.save_program(folder, compiled)
        times = scopes.read(folder, _operation)
    steps = PROFILED * bare_loop.BLOCK
    bench.add(subject, "device busy", 1e3 * sum(time.seconds for time in times) / steps, "ms")
    bench.add(subject, "launches", sum(time.launches for time in times) / steps)
    for scope, seconds, launches in times:
        bench.add(subject, f"{scope} of a step, {launches / steps:.4g} launches", 1e3 * seconds / steps, "ms")


def _operation(op_name: str) -> str:
    """The operation of an instruction, or the part of the model that it is of."""
    return next((part for part in reversed(op_name.split("/")) if part in OPERATIONS), scopes.scope_of(op_name))
