"""Parity, then time, of the Hopper lightning kernels and their peers on one GPU: benchmarks/lightning_gpu.md quotes it.

    python -m benchmarks.lightning_gpu parity copy forward both long packed step [fla] [profile]

Every time is the median over rounds of the mean of calls queued back to back, the contenders taking turns in a round.
"""

import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.lightning_attention import gpu, lightning_attention, lightning_attention_step, xla

SHAPES = ((1, 32768, 64), (4, 8192, 64), (1, 8192, 64), (1, 131072, 16), (8, 2048, 16))
NAMES = ("out", "state", "dq", "dk", "dv", "d_state")


def slopes(N: int):
    """MiniMax's decay of layer 0 for a power of two of heads."""
    return jnp.asarray(2.0 ** (-8 * np.arange(1, N + 1) / N) * (1 + 1e-5), jnp.float32)


def draw(seed: int, *shape, scale=0.3, dtype=jnp.bfloat16):
    return (scale * jax.random.normal(jax.random.key(seed), shape, jnp.float32)).astype(dtype)


def run_all(module, *operands):
    q, k, v, slope, state, ids, d_out, d_state = operands
    return (*module.forward(q, k, v, slope, state, ids), *module.backward(q, k, v, slope, state, ids, d_out, d_state))


def packed_ids(kind: str, B: int, S: int):
    rng = np.random.default_rng(5)
    if kind == "none":
        return None
    if kind == "padded":
        ids = np.sort(rng.integers(0, 5, (B, S)), axis=1)
        ids[rng.random((B, S)) < 0.2] = -1
        ids[:, -S // 7 :] = -1
        return jnp.asarray(ids, jnp.int32)
    edges = np.sort(rng.integers(1, S, (B, int(kind) - 1)), axis=1)
    return jnp.asarray(np.stack([np.searchsorted(e, np.arange(S), side="right") for e in edges]), jnp.int32)


def parity(chosen=()):
    """Largest error against the float32 XLA form, as a share of that of the bfloat16 XLA form (the bound is 2)."""
    cases = [(1, 64, 2, 128, "none"), (2, 128, 3, 128, "none"), (1, 1000, 4, 128, "none"), (1, 1000, 4, 64, "none")]
    cases += [
        (2, 4097, 16, 128, "none"),
        (1, 4096, 64, 128, "9"),
        (2, 3000, 8, 128, "padded"),
        (2, 3000, 8, 64, "padded"),
    ]
    cases += [(1, 32768, 8, 128, "64"), (1, 32768, 8, 128, "none"), (1, 16384, 8, 64, "20"), (1, 8192, 64, 128, "none")]
    cases = [cases[i] for i in chosen] if chosen else cases
    worst_of_all = 0.0
    for B, S, N, H, kind in cases:
        q, k, v, d_out = (draw(i, B, S, N, H) for i in range(4))
        state, d_state = (draw(i, B, N, H, H, scale=1.0, dtype=jnp.float32) for i in (4, 5))
        ids, slope = packed_ids(kind, B, S), slopes(N) * (1 if S % 2 else 0.1)
        run = jax.jit(run_all, static_argnums=0)
        wide = [x.astype(jnp.float32) for x in (q, k, v, d_out)]
        exact = run(xla, *wide[:3], slope, state, ids, wide[3], d_state)
        plain = run(xla, q, k, v, slope, state, ids, d_out, d_state)
        ours = run(gpu, q, k, v, slope, state, ids, d_out, d_state)
        again = run(gpu, q, k, v, slope, state, ids, d_out, d_state)

        def error(x, y):
            return float(jnp.max(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))))

        ratios = [error(x, e) / (error(p, e) + 1e-30) for x, p, e in zip(ours, plain, exact, strict=True)]
        same = all(error(x, y) == 0 for x, y in zip(ours, again, strict=True))
        worst_of_all = max(worst_of_all, *ratios) if not any(np.isnan(ratios)) else float("nan")
        line = " ".join(f"{name} {ratio:.2f}" for name, ratio in zip(NAMES, ratios, strict=True))
        print(f"parity B{B} S{S} N{N} H{H} ids={kind:6s} {line} repeat={'same' if same else 'DIFFERS'}", flush=True)
    print(f"parity worst {worst_of_all:.2f} (bound 2)", flush=True)


def times(contenders, rounds=5, calls=8):
    """{name: (function, arguments)} -> {name: milliseconds}."""
    for f, args in contenders.values():
        jax.block_until_ready(f(*args))
        jax.block_until_ready(f(*args))
    seen = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (f, args) in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = f(*args)
            jax.block_until_ready(result)
            seen[name].append((time.perf_counter() - start) / calls * 1e3)
    return {name: statistics.median(x) for name, x in seen.items()}


def copy() -> float:
    """Bytes per second, read plus written, of a large elementwise pass."""
    x = draw(0, 1 << 30, dtype=jnp.float32)
    ms = times({"copy": (jnp.copy, (x,))})["copy"]
    rate = 8 * x.size / ms * 1e3
    print(f"copy {rate / 1e12:.2f} TB/s", flush=True)
    return rate


def with_gradient(f):
    @jax.jit
    def run(q, k, v, d_out):
        out, back = jax.vjp(f, q, k, v)
        return out, back(d_out)

    return run


def jla_op(slope):
    import jla.ops

    def f(q, k, v):
        # Behind a barrier: XLA would spend minutes folding the gate's cumulative sum as a constant.
        g = jnp.broadcast_to(jax.lax.optimization_barrier(-slope), q.shape[:3])
        out = jla.ops.linear_attention("simple_gla", q, k, v, g=g, scale=1.0, impl="mosaic_gpu")
        return out[0] if isinstance(out, tuple) else out

    return f


def our_op(slope, ids=None):
    return lambda q, k, v: lightning_attention(q, k, v, slope, segment_ids=ids, implementation="gpu")[0]


PROFILED = "plain"


def forward(rate, peers=True):
    for B, S, N in SHAPES:
        q, k, v = (draw(i, B, S, N, 128) for i in range(3))
        slope = slopes(N)
        contenders = {"ours": our_op(slope)} | ({"jla": jla_op(slope)} if peers else {})
        seen = times({name: (jax.jit(f), (q, k, v)) for name, f in contenders.items()})
        report("forward", (B, S, N), 8 * q.size / rate * 1e3, seen)


def both(rate, peers=True):
    for B, S, N in SHAPES:
        args = tuple(draw(i, B, S, N, 128) for i in range(4))
        slope = slopes(N)
        contenders = {"ours": our_op(slope)} | ({"jla": jla_op(slope)} if peers else {})
        seen = times({name: (with_gradient(f), args) for name, f in contenders.items()}, calls=4)
        report("both", (B, S, N), 22 * args[0].size / rate * 1e3, seen)


def report(what, shape, floor, seen):
    line = " ".join(f"{name} {ms:.3f} ({floor / ms:.2f})" for name, ms in seen.items())
    print(f"{what:8s} B,S,N={shape} floor {floor:.3f} ms | {line}", flush=True)


def packed(rate):
    for N in (64, 8):
        args = tuple(draw(i, 1, 32768, N, 128) for i in range(4))
        ids, slope = packed_ids("64", 1, 32768), slopes(N)
        ops = {"unpacked": our_op(slope), "packed": our_op(slope, ids)}
        seen = times({name: (jax.jit(f), args[:3]) for name, f in ops.items()})
        report("packed f", (1, 32768, N), 8 * args[0].size / rate * 1e3, seen)
        seen = times({name: (with_gradient(f), args) for name, f in ops.items()}, calls=4)
        report("packed b", (1, 32768, N), 22 * args[0].size / rate * 1e3, seen)


def long(rate):
    slope = slopes(8)
    for S, N in ((32768, 8), (1 << 20, 8)):
        args = tuple(draw(i, 1, S, N, 128) for i in range(4))
        run = with_gradient(our_op(slope))
        seen = times({"ours": (run, args)}, calls=2, rounds=3)
        report("long", (1, S, N), 22 * args[0].size / rate * 1e3, seen)
        print(f"  {seen['ours'] / S * 1e6:.2f} ns per token", flush=True)


def wide(rate):
    """More than 2**31 elements in each array, against three calls of 8 heads."""
    slope, shape = slopes(8), (1, 1 << 20, 24)
    args = tuple(draw(i, *shape, 128) for i in range(4))
    run, narrow = with_gradient(our_op(jnp.tile(slope, 3))), with_gradient(our_op(slope))
    report("wide", shape, 22 * args[0].size / rate * 1e3, times({"ours": (run, args)}, calls=1, rounds=3))
    whole = jax.tree.leaves(run(*args))
    total = 0.0
    for i in (0, 8, 16):
        part = tuple(x[:, :, i : i + 8] for x in args)
        for name, x, y in zip(("out", "dq", "dk", "dv"), whole, jax.tree.leaves(narrow(*part)), strict=True):
            x = x[:, :, i : i + 8]
            error = float(jnp.max(jnp.abs(x - y))) / float(jnp.max(jnp.abs(y)))
            print(f"  heads {i}..: {name} differs by {error:.1e} of its largest", flush=True)
        total += times({"three": (narrow, part)}, calls=1, rounds=2)["three"]
    print(f"  three calls of 8 heads: {total:.3f} ms", flush=True)


def fla():
    """fla-core's times, from its own framework's events; run with the memory this process has not taken."""
    import torch
    from fla.ops.simple_gla import chunk_simple_gla

    for B, S, N in SHAPES:
        q, k, v, d_out = (0.3 * torch.randn(B, S, N, 128, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        gamma = -torch.tensor(np.asarray(slopes(N)), device="cuda")
        for x in (q, k, v):
            x.requires_grad_()

        def ahead(q=q, k=k, v=v, gamma=gamma):
            return chunk_simple_gla(q, k, v, g_gamma=gamma, scale=1.0)[0]

        def around(d_out=d_out, ahead=ahead, q=q, k=k, v=v):
            return torch.autograd.grad(ahead(), (q, k, v), d_out)

        line = []
        for run in (ahead, around):
            run(), run()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(8):
                run()
            end.record()
            torch.cuda.synchronize()
            line.append(f"{start.elapsed_time(end) / 8:.3f}")
        print(f"fla      B,S,N={(B, S, N)} forward, both: {' '.join(line)} ms", flush=True)


def step(rate):
    for B in (1, 16, 128):
        q, k, v = (draw(i, B, 64, 128) for i in range(3))
        slope = slopes(64)
        state = draw(3, B, 64, 128, 128, dtype=jnp.float32)
        exact = jax.jit(xla.step)(q, k, v, slope, state, None)
        ours = jax.jit(gpu.step)(q, k, v, slope, state, None)
        errors = [
            float(jnp.max(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))))
            for x, y in zip(ours, exact, strict=True)
        ]
        seen = {}
        for name in ("gpu", "xla"):
            # One program of many steps: a call's launch would hide a step of a few microseconds.
            @jax.jit
            def many(q, k, v, state, name=name, slope=slope):
                def one(carry, _):
                    q, state = carry
                    return lightning_attention_step(q, k, v, slope, state, implementation=name), None

                return jax.lax.scan(one, (q, state), None, length=50)[0]

            seen[name] = times({name: (many, (q, k, v, state))}, calls=2)[name] / 50
        floor = (8 * state.size + 8 * q.size) / rate * 1e3
        report("step", (B, 1, 64), floor, seen)
        print(f"  errors against xla {errors}", flush=True)


def profile():
    """One forward pass, for a profiler to look at."""
    q, k, v = (draw(i, 1, 32768, 64, 128) for i in range(3))
    jax.block_until_ready(jax.jit(our_op(slopes(64)))(q, k, v))


def main(wanted: list[str]):
    print(jax.devices()[0].device_kind, jax.__version__, flush=True)
    quick = {"parity-1": (0, 1, 2, 4, 9, 11), "parity-2": (3, 5, 6, 7, 8, 10), "parity-quick": (2, 7, 8)}
    alone = {"parity": parity, "fla": fla, "profile": profile}
    alone |= {name: functools.partial(parity, chosen) for name, chosen in quick.items()}
    timed = {"forward": forward, "both": both, "long": long, "wide": wide, "packed": packed, "step": step}
    rate = copy() if timed.keys() & set(wanted) else None
    for name in wanted:
        try:
            alone[name]() if name in alone else timed[name](rate)
        except Exception as error:  # the other parts still count: device time is short
            print(f"{name} FAILED {type(error).__name__}: {str(error)[:1500]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
