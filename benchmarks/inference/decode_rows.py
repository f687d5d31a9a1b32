"""Decode of many rows at once, each with a prompt of its own: tokens a second, experts met, beside the floor."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import floors
from benchmarks.inference.bench import Bench
from benchmarks.inference.prefill import Programs
from mm01_jax import sharding
from mm01_jax.inference import decoding, sampling

CONTEXT = {1: 8192, 16: 2048, 128: 512}  # tokens of each prompt; of other numbers of rows OTHERS
OTHERS = 512
BLOCKS = 12  # timed, of DECODE_BLOCK tokens each
PREFILLED = 16_384  # tokens at most in one call, whatever the rows


def measure(bench: Bench, rows: int) -> None:
    """Tokens a second of `rows` prompts, greedy, and what a step moves at least."""
    length = CONTEXT.get(rows, OTHERS)
    room = -(-(length + (BLOCKS + 2) * decoding.DECODE_BLOCK) // 256) * 256
    programs, subject = Programs(bench.model), bench.named(f"decode {rows}x{length}")
    chunk = max(1, min(length, PREFILLED // rows))
    _, cache = programs.take_in(programs.empty(rows, room), bench.tokens(rows, length), chunk)
    met = distinct_experts(bench.model, cache, jnp.asarray(bench.tokens(rows, 1, seed=5)[:, 0]))
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


def distinct_experts(model, cache, token_B) -> float:
    """Mean over the layers of how many experts these rows' next tokens choose."""

    @jax.jit
    def assigned(model, cache, token_B):
        x = model.embed_tokens(token_B[:, None])
        return model.forward(x, cache.lengths[:, None], jnp.zeros_like(token_B)[:, None], cache)[2].assigned

    with jax.set_mesh(sharding.mesh_of(model)):
        return float(np.mean(np.sum(np.asarray(assigned(model, cache, token_B)) > 0, axis=1)))


def _start(model, cache, rows: int):
    """(answers, draw) of greedy rows that never stop."""
    V = model.config.vocab_size
    settings = jax.tree.map(jnp.asarray, sampling.rows([sampling.Sampling(temperature=0.0)] * rows, [0] * rows))
    history = sampling.empty_history(rows, V)
    token_B, number_B = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32)  # donated: two buffers
    answers = decoding.Answers(cache, token_B, jnp.zeros(rows, bool), number_B, history)
    return answers, decoding.Draw(settings, jnp.ones(V, bool), jnp.full(1, -1, jnp.int32))
