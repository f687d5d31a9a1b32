"""Decode of many rows at once, each with a prompt of its own: tokens a second, experts met, beside the floor."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import floors
from benchmarks.inference.bench import Bench, apart, in_float32, plain_path
from benchmarks.inference.prefill import Programs
from mm01_jax import sharding
from mm01_jax.inference import decoding, sampling
from mm01_jax.model.decode_step import begin_rings

CONTEXT = {1: 8192, 16: 2048, 128: 512}  # tokens of each prompt; of other numbers of rows OTHERS
OTHERS = 512
BLOCKS = 12  # timed, of DECODE_BLOCK tokens each
COMPARED = 16  # steps whose hidden states are compared
PREFILLED = 16_384  # tokens at most in one call, whatever the rows


def measure(bench: Bench, rows: int) -> None:
    """Parity; then tokens a second of `rows` prompts, greedy, and what a step moves at least."""
    length = CONTEXT.get(rows, OTHERS)
    room = -(-(length + (BLOCKS + 2) * decoding.DECODE_BLOCK) // 256) * 256
    programs, subject = Programs(bench.model), bench.named(f"decode {rows}x{length}")
    chunk = max(1, min(length, PREFILLED // rows))
    _, cache = programs.take_in(programs.empty(rows, room), bench.tokens(rows, length), chunk)
    met = parity(bench, subject, cache, rows)
    answers, draw = _start(bench.model, cache, rows)
    times = []
    with jax.set_mesh(programs.mesh):
        for _ in range(BLOCKS + 1):
            began = time.monotonic()
            tokens, _, answers = decoding.decode_block(bench.model, answers, draw, count=decoding.DECODE_BLOCK)
            np.asarray(tokens)
            times.append((time.monotonic() - began) / decoding.DECODE_BLOCK)
    second = statistics.median(times[1:])
    floor = floors.decode_bytes(bench.model, rows, length, met) / bench.copy
    bench.add(subject, "distinct experts a layer", met)
    bench.add(subject, "step", 1e3 * second, "ms", floor=1e3 * floor if bench.is_real else None)
    bench.add(subject, "speed", rows / second, "tokens/s", floor=None)


def parity(bench: Bench, subject: str, cache, rows: int) -> float:
    """Hidden states of a few given tokens by our operations are at most twice as far from float32's as plain XLA's are;
    the mean over steps and layers of how many experts were met.

    The float32 model goes on from the same cache: what is compared is the steps alone.
    """
    tokens_SB = jnp.asarray(bench.tokens(rows, COMPARED, seed=5).T)

    def states(model, cache):
        with jax.set_mesh(sharding.mesh_of(model)):
            hidden, assigned = jax.jit(lambda *arguments: _given(*arguments))(model, cache, tokens_SB)
            return np.asarray(hidden.astype(jnp.float32)), np.asarray(assigned)

    ours, assigned = states(bench.model, cache)
    with plain_path():
        plain = states(bench.model, cache)[0]
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, cache)
        expected = states(in_float32(bench.model), wide)[0]
    off, allowed = apart(ours, expected), 2 * apart(plain, expected)
    bench.add(subject, "hidden states apart from float32", off)
    bench.add(subject, "hidden states apart from float32, twice plain XLA's", allowed)
    if not off <= allowed:
        raise ArithmeticError(f"hidden states are {off:.3g} off, those of plain XLA {allowed / 2:.3g}")
    return float(np.mean(np.sum(assigned > 0, axis=-1)))


def _given(model, cache, tokens_SB):
    """(hidden states (S, B, D), assignments to every expert (S, layers, E)) of given tokens, one after another."""

    def one(cache, token_B):
        x, none = model.embed_tokens(token_B[:, None]), jnp.zeros((len(token_B), 1), jnp.int32)
        hidden, cache, stats = model.forward(x, cache.lengths[:, None], none, cache)
        return cache, (hidden[:, 0], stats.assigned)

    return jax.lax.scan(one, begin_rings(model, cache, len(tokens_SB)), tokens_SB)[1]


def _start(model, cache, rows: int):
    """(answers, draw) of greedy rows that never stop."""
    V = model.config.vocab_size
    history = sampling.empty_history(rows, V)
    token_B, number_B = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)  # donated: two buffers
    answers = decoding.Answers(cache, token_B, jnp.zeros(rows, bool), number_B, history)
    return answers, decoding.Draw(None, jnp.ones(V, bool), jnp.full(1, -1, jnp.int32))
