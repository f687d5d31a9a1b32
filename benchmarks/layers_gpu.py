"""Softmax attention and the grouped matmul on a Hopper GPU, beside plain XLA and cuDNN: benchmarks/layers_gpu.md.

    python -m benchmarks.layers_gpu --out=report.md    (what is said below the tables there is written by hand)

Parity first, on the very inputs: error against float32 XLA at most twice that of bfloat16 XLA, values and all
gradients; a row that is not within it gives no time. A peer that refuses a row leaves its cells empty.
"""

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import timing
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.softmax_attention import softmax_attention

# (rows, tokens, query heads, key heads, head dim, documents in a row)
SOFTMAX = [
    (4, 8192, 8, 1, 128, 1),  # configs/bench_1b.py
    (4, 8192, 8, 1, 128, 3),
    (1, 8192, 64, 8, 128, 1),  # the released model's heads
    (16, 2048, 16, 4, 64, 1),  # configs/small.py
]
# (rows, experts, width in, width out); experts chosen at random, buffers of XLA's padded form twice the balanced load
GROUPED = [(65536, 32, 768, 768), (16384, 8, 6144, 9216)]
MULTIPLE = 128
HEAD = """# Softmax attention and the grouped matmul on a Hopper GPU

`python -m benchmarks.layers_gpu --out=benchmarks/layers_gpu.md`, {kind}, jax {version}. bfloat16,
milliseconds, medians. Every row's values and gradients were first compared with float32 XLA: "of the bound" is the
largest error as a share of twice bfloat16 XLA's. TFLOP/s of softmax attention count the visible pairs alone: 2 products
forward, 5 more backward. "both" is forward and backward. cuDNN is `jax.nn.dot_product_attention`, which takes no
documents here.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.write_text(HEAD.format(kind=jax.devices()[0].device_kind, version=jax.__version__))

    def tell(line: str) -> None:
        print(line, flush=True)
        with out.open("a") as file:
            file.write(line + "\n")

    columns = "forward: ours | TFLOP/s | cuDNN | XLA | both: ours | TFLOP/s | cuDNN | XLA"
    tell(f"\n| rows x tokens, heads / key heads x dim, documents | of the bound | {columns} |\n" + "|---" * 10 + "|")
    for shape in SOFTMAX:
        tell(softmax_row(*shape))
    columns = "forward: ours | TFLOP/s | padded XLA | both: ours | TFLOP/s | padded XLA"
    tell(f"\n| rows, experts, widths | of the bound | {columns} |\n" + "|---" * 8 + "|")
    for shape in GROUPED:
        tell(grouped_row(*shape))
    return 0


def softmax_row(B: int, S: int, N: int, K: int, H: int, documents: int) -> str:
    q, d, k, v = normal((B, S, N, H), (B, S, N, H), (B, S, K, H), (B, S, K, H))
    size = -(-S // documents)
    place = np.arange(S, dtype=np.int32)
    tags = tuple(jnp.broadcast_to(jnp.asarray(x), (B, S)) for x in (place % size, place // size))

    def ours(implementation, q, k, v):
        return softmax_attention(q, k, v, query_tags=tags, key_tags=tags, implementation=implementation)

    def cudnn(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

    kinds = {"gpu": functools.partial(ours, "gpu"), "xla": functools.partial(ours, "xla")}
    kinds |= {"cudnn": cudnn} if documents == 1 else {}
    pairs = sum(n * (n + 1) / 2 for n in np.bincount(np.asarray(tags[1][0]))) * B * N
    return row(f"{B} x {S}, {N} / {K} x {H}, {documents}", kinds, (q, k, v), d, 4 * H * pairs, 3.5)


def grouped_row(R: int, E: int, D: int, F: int) -> str:
    x, w, d = normal((R, D), (E, D, F), (R, F))
    rng = np.random.default_rng(0)
    sizes = jnp.asarray(rng.multinomial(R // MULTIPLE, np.full(E, 1 / E)) * MULTIPLE, jnp.int32)

    def ours(implementation, x, w):
        most = {"capacity": 2 * R // E, "multiple": MULTIPLE}
        return grouped_matmul(x, w, sizes, implementation=implementation, **most)

    kinds = {name: functools.partial(ours, name) for name in ("gpu", "xla")}
    return row(f"{R}, {E}, {D} to {F}", kinds, (x, w / np.sqrt(D).astype(w.dtype)), d, 2 * R * D * F, 3.0)


def row(name: str, kinds: dict, arguments: tuple, d_out, flops: float, both: float) -> str:
    programs = {kind: (jax.jit(f), jax.jit(functools.partial(with_gradients, f))) for kind, f in kinds.items()}
    wide = [x.astype(jnp.float32) for x in (*arguments, d_out)]
    oracle = functools.partial(with_gradients, kinds["xla"])
    # Nobody times the oracle: its matmuls need not be tried out when it compiles.
    exact = jax.jit(oracle, compiler_options={"xla_gpu_autotune_level": 0})(*wide)
    plain = programs["xla"][1](*arguments, d_out)
    share = max(
        float(furthest(o, e) / (2 * furthest(p, e)))
        for o, p, e in zip(programs["gpu"][1](*arguments, d_out), plain, exact, strict=True)
    )
    if not share <= 1:
        return f"| {name} | {share:.2f}: not within its bound |"
    del exact, plain, wide
    cells = [name, f"{share:.2f}"]
    for number, (inputs, times) in enumerate(((arguments, 1.0), ((*arguments, d_out), both))):
        for kind in [k for k in ("gpu", "cudnn", "xla") if k in kinds or k == "cudnn" and len(arguments) == 3]:
            seconds = measured(programs[kind][number], inputs) if kind in kinds else None
            cells.append(f"{1e3 * seconds:.3f}" if seconds else "")
            cells += [f"{times * flops / seconds / 1e12:.0f}"] if kind == "gpu" else []
    return "| " + " | ".join(cells) + " |"


def with_gradients(f, *arguments):
    *inputs, d_out = arguments
    out, pull = jax.vjp(f, *inputs)
    return out, *pull(d_out)


def furthest(got, exact) -> jax.Array:
    """Largest difference; NaN where any element is."""
    return jnp.max(jnp.abs(got.astype(jnp.float32) - exact))


def measured(program, inputs) -> float | None:
    try:
        return timing.median_seconds(lambda: program(*inputs), jax.block_until_ready)
    except Exception as error:  # a peer's refusal
        print(type(error).__name__, str(error)[:200], file=sys.stderr)
        return None


def normal(*shapes) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(shapes))
    return [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
