"""Prefill of one row, chunk by chunk: parity, tokens a second, time of a chunk against its position."""

import functools
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import floors
from benchmarks.inference.bench import Bench, apart, in_float32, plain_path, run
from mm01_jax import sharding
from mm01_jax.inference import steps
from mm01_jax.model.mixers import empty_cache

PARITY, PARITY_CHUNK = 2048, 512  # tokens on which all paths are compared; in chunks, so that a cache is read
TURN = 100  # tokens of a later turn of a conversation
DECODED = 32  # tokens after a prompt, whose times are taken
ROOM = 256  # what the positions of a cache are a multiple of
DRAWN_FROM = 16  # chunks: fewer make no picture
RUNS = 5  # of a shorter prompt


class Programs:
    """Prefill and decode of a model, traced anew: on the path that is in force when each is first called."""

    def __init__(self, model, call=run):
        self.model, self.mesh, self.call = model, sharding.mesh_of(model), call
        self._prefill, self._decode = (_traced_anew(f) for f in (steps.prefill.__wrapped__, steps.decode_step))

    def empty(self, rows: int, length: int):
        with jax.set_mesh(self.mesh):
            make = functools.partial(empty_cache, self.model.config, self.model.compute, self.model.rules)
            return self.call(jax.jit(functools.partial(make, rows, length)))

    def take_in(self, cache, tokens_BS: np.ndarray, chunk: int, each=None):
        """(hidden (B, D) of the last token, the cache). each(start, seconds) after each chunk, for which it is waited
        for; without it all chunks are on their way at once, as a prompt's are.
        """
        B, S = tokens_BS.shape
        for start in range(0, S, chunk):
            part = tokens_BS[:, start : start + chunk]
            count, part = np.full(B, part.shape[1], np.int32), np.pad(part, [(0, 0), (0, chunk - part.shape[1])])
            began = time.monotonic()
            with jax.set_mesh(self.mesh):
                given = self.model, cache, jnp.asarray(part), jnp.asarray(count)
                hidden, cache = self.call(self._prefill, *given, like=(None, cache))
            if each is not None:
                jax.block_until_ready(hidden)
                each(start, time.monotonic() - began)
        return jax.block_until_ready(hidden), cache

    def decode(self, cache, token_B):
        """(float32 logits (B, V), the cache)."""
        with jax.set_mesh(self.mesh):
            given = self.model, cache, token_B, jnp.ones(token_B.shape, bool)
            return self.call(self._decode, *given, like=(None, cache))


def _traced_anew(function):
    """jit of a function of its own: of one function jax keeps what it traced, for every jit of it."""
    return jax.jit(lambda *arguments: function(*arguments), donate_argnums=1)


def parity(bench: Bench) -> None:
    """The last hidden states of prompts by our kernels are at most twice as far from float32's as plain XLA's are.

    Weights are those that the model has: of int8 the numbers that they stand for.
    """
    tokens = bench.tokens(2, PARITY, seed=7)

    def last(model) -> np.ndarray:
        programs = Programs(model, bench.call)
        hidden, _ = programs.take_in(programs.empty(2, PARITY), tokens, PARITY_CHUNK)
        return hidden if bench.compile_only else np.asarray(hidden.astype(jnp.float32))

    ours = last(bench.model)
    with plain_path():
        plain, expected = last(bench.model), last(in_float32(bench.model, bench.call))
    if bench.compile_only:
        return
    subject = bench.named(f"prefill 2x{PARITY}, chunk {PARITY_CHUNK}")
    off, allowed = apart(ours, expected), 2 * apart(plain, expected)
    bench.add(subject, "hidden state apart from float32", off)
    bench.add(subject, "hidden state apart from float32, twice plain XLA's", allowed)
    if not off <= allowed:
        raise ArithmeticError(f"hidden states are {off:.3g} off, those of plain XLA {allowed / 2:.3g}")


def measure(bench: Bench, lengths: list[int], chunk: int) -> None:
    """A prompt of each length; after the longest, decode there and a turn that is added. All caches have one length."""
    room = -(-(max(lengths) + TURN + DECODED) // ROOM) * ROOM
    for length in sorted(lengths):
        programs = Programs(bench.model, bench.call)
        cache, subject = _speed(bench, programs, length, (min(chunk, length), room))
        if length == max(lengths):
            _go_on(bench, programs, cache, subject, (length, room))
        del cache


def _speed(bench: Bench, programs: Programs, length: int, sizes: tuple[int, int]):
    """(the cache after the prompt, the subject of its rows). sizes: of a chunk, of the cache."""
    chunk, room = sizes
    subject, tokens = bench.named(f"prefill 1x{length}, chunk {chunk}"), bench.tokens(1, length)
    _, cache = programs.take_in(programs.empty(1, room), tokens[:, :chunk], chunk)  # compiles
    if bench.compile_only:
        return cache, subject
    seconds, times, drawn = [], [], length >= DRAWN_FROM * chunk
    for _ in range(1 if drawn else RUNS):
        cache = jax.block_until_ready(programs.empty(1, room))
        began = time.monotonic()
        _, cache = programs.take_in(cache, tokens, chunk, (lambda *one: times.append(one)) if drawn else None)
        seconds.append(time.monotonic() - began)
    second = statistics.median(seconds)
    flops = floors.prefill_flops(bench.config.model, 0, length)
    bench.add(subject, "time", second, "s", floor=flops / bench.peak if bench.is_real else None)
    bench.add(subject, "speed", length / second, "tokens/s")
    if drawn:
        bench.curves[subject] = times
        for name, (start, one) in (("first", times[0]), ("last", times[-1])):
            bench.add(subject, f"{name} chunk (at {start})", 1e3 * one, "ms")
    return cache, subject


def _go_on(bench: Bench, programs: Programs, cache, subject: str, lengths: tuple[int, int]) -> None:
    """Decode after the prompt, then a turn of TURN tokens: how long until its last token is in.

    lengths: of the prompt, of the cache.
    """
    token, times, (length, room) = jnp.zeros(1, jnp.int32), [], lengths
    for _ in range(DECODED):
        began = time.monotonic()
        logits, cache = programs.decode(cache, token)
        jax.block_until_ready(logits)
        times.append(time.monotonic() - began)
    chunk = 1 << (TURN - 1).bit_length()
    programs.take_in(programs.empty(1, room), bench.tokens(1, TURN, seed=3), chunk)  # compiles
    if bench.compile_only:
        return
    moved = floors.decode_bytes(bench.model, 1, length)
    floor = 1e3 * moved / bench.copy if bench.is_real else None
    bench.add(subject, "a token of decode after it", 1e3 * statistics.median(times[2:]), "ms", floor=floor)
    turns = []
    programs.take_in(cache, bench.tokens(1, TURN, seed=2), chunk, lambda start, seconds: turns.append(seconds))
    bench.add(subject, f"a turn of {TURN} tokens added", sum(turns), "s")


def picture(curves: dict[str, list[tuple[int, float]]], path: pathlib.Path) -> None:
    """Time of a chunk against where it begins, SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for subject, times in curves.items():
        axes.plot([start for start, _ in times], [1e3 * seconds for _, seconds in times], label=subject)
    axes.set(xlabel="position of the chunk's first token", ylabel="ms a chunk", ylim=(0, None), xlim=(0, None))
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
