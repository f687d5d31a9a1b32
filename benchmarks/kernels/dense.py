"""Parity, then times, of an operation beside plain XLA: what softmax attention and the grouped matmul share.

Parity: the error against float32 XLA at most twice that of bfloat16 XLA, values and all gradients, on the very inputs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.kernels import peers, timing
from benchmarks.kernels.measured import Measured, Time

TINY = 1e-30


def measure(
    found: Measured,
    kinds: dict[str, Callable],
    inputs: tuple,
    d_out,
    names: tuple,
    *,
    given: tuple = (),
    flops: tuple = (None, None),
    floors_ms: tuple = (None, None),
) -> None:
    """Fills in `found`.

    kinds: "ours", "xla", and peers by name -> a function of `given` and `inputs`, differentiable by `inputs`. given:
    arguments too, so that nothing which follows from them is made when it compiles. names: those of the result and of
    the gradients. flops, floors_ms: of the forward pass, and of both; the one or the other sets the time.
    """
    programs = {kind: (jax.jit(f), jax.jit(functools.partial(with_gradients, f))) for kind, f in kinds.items()}
    wide = [x.astype(jnp.float32) for x in (*inputs, d_out)]
    oracle = functools.partial(with_gradients, kinds["xla"])
    # Nobody times the oracle: on a GPU its matmuls need not be tried out when it compiles.
    options = {"xla_gpu_autotune_level": 0} if jax.default_backend() == "gpu" else None
    exact = jax.jit(oracle, compiler_options=options)(given, *wide)
    plain = programs["xla"][1](given, *inputs, d_out)
    results = programs["ours"][1](given, *inputs, d_out)
    for name, result, p, e in zip(names, results, plain, exact, strict=True):
        found.parity[name] = {"error": float(furthest(result, e)), "allowed": 2 * float(furthest(p, e)) + TINY}
    if not found.is_right:
        return
    del exact, plain, results, wide
    passes = (("forward", (*given, *inputs)), ("forward+backward", (given, *inputs, d_out)))
    for number, (quantity, arguments) in enumerate(passes):
        for kind in kinds:
            if kind in found.refused:
                continue
            try:
                seconds = timing.median_seconds(lambda p=programs[kind][number], a=arguments: p(*a), _wait)
            except Exception as error:
                if kind == "ours":
                    raise
                found.refused[kind] = f"{type(error).__name__}: {str(error)[:200]}"  # a result too
                continue
            peer, count, floor = (None, flops[number], floors_ms[number]) if kind == "ours" else (kind, None, None)
            found.times.append(Time(quantity, seconds * 1e3, peer, floor, count and count / seconds / 1e12))


_wait = jax.block_until_ready


def refuse(found: Measured, names: tuple[str, ...], with_peers: bool) -> None:
    """Notes the peers that cannot be timed here, and why."""
    for name in names:
        if reason := "--no-peers" if not with_peers else peers.unavailable(name, found.implementation):
            found.refused[name] = reason


def with_gradients(f, given, *arguments):
    *inputs, d_out = arguments
    out, pull = jax.vjp(functools.partial(f, *given), *inputs)
    return out, *pull(d_out)


def furthest(got, exact) -> jax.Array:
    """Largest difference; NaN where any element is."""
    return jnp.max(jnp.abs(got.astype(jnp.float32) - exact))


def normal(*shapes) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(shapes))
    return [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]
