"""The ring's forward and backward with and without the stripe pairs that nothing sees, on CPU devices.

    python -m benchmarks.ring_skip [--json=benchmarks/results/ring_skip.json]

Seconds of CPU, all shards together: other work on the machine is not in them, and how even the shards are is not seen.
"""

import statistics
import sys
import time
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np

import tests.conftest  # noqa: F401
from benchmarks.results import Report, add_json, processor
from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, MeshConfig
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.softmax import stripes
from mm01_jax.parallel.softmax.attention import self_attention
from tests.command_line import Parser, whole

HEADS, KV_HEADS, HEAD_DIM, SHARDS, TIMES = 4, 1, 64, 4, 5


def seconds(kind: str, documents: int, length: int, *, skip: bool) -> float:
    """CPU seconds of one forward and backward, the median."""
    compute = ComputeConfig(dtype="float32", remat="none", sequence_attention=kind)
    mesh = MeshConfig(sequence=SHARDS)
    order = sequence_layout.order(length, mesh, "zigzag")
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.normal(size=(1, length, heads, HEAD_DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    place = np.arange(length, dtype=np.int32)[None, order]
    index = (place % (length // documents), place // (length // documents))

    def loss(query, key, value):
        return jnp.sum(self_attention(query, key, value, index, compute=compute, rules=mesh.rules, layout="zigzag"))

    always = unittest.mock.patch.object(stripes, "pair_is_visible", lambda query, key: query.place >= 0)
    with jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:SHARDS])):
        where = sharding.named(jax.sharding.get_mesh(), mesh.rules, "batch", "seq", None, None)
        arrays = jax.device_put((query, key, value), where)
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        if skip:
            compiled = gradient.lower(*arrays).compile()
        else:
            with always:
                compiled = gradient.lower(*arrays).compile()
        took = []
        for _ in range(TIMES + 1):
            start = time.process_time()
            jax.block_until_ready(compiled(*arrays))
            took.append(time.process_time() - start)
    return statistics.median(took[1:])


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.ring_skip", __doc__)
    parser.add_argument("--length", type=whole(64), default=8192, help="tokens of the row; a multiple of 64")
    add_json(parser)
    arguments = parser.parse_args(argv)
    if arguments.length % 64:
        parser.error(f"argument --length: got {arguments.length}; allowed: a multiple of 64")
    report = Report(arguments.json, "benchmarks.ring_skip", argv)
    for kind in ("ring", "gather"):
        for documents in (1, 8):
            subject = f"{kind}, documents {documents}"
            print(f"{subject} ...", file=sys.stderr, flush=True)
            whole_row, visible = (seconds(kind, documents, arguments.length, skip=skip) for skip in (False, True))
            report.add(f"{subject}: all pairs", whole_row, "CPU s", device=processor())
            report.add(f"{subject}: visible pairs", visible, "CPU s", device=processor())
            report.add(f"{subject}: visible of all", visible / whole_row, "ratio", device=processor())
            print(f"{subject}: all pairs {whole_row:.2f} CPU s, visible {visible:.2f}, {visible / whole_row:.2f} of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
