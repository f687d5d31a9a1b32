"""The ring's forward and backward with and without the stripe pairs that nothing sees, on CPU devices.

    python -m benchmarks.ring_skip

Seconds of CPU, all shards together: other work on the machine is not in them, and how even the shards are is not seen.
"""

import statistics
import time
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np

import tests.conftest  # noqa: F401
from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, MeshConfig
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.softmax import stripes
from mm01_jax.parallel.softmax.attention import self_attention

LENGTH, HEADS, KV_HEADS, HEAD_DIM, SHARDS, TIMES = 8192, 4, 1, 64, 4, 5


def seconds(kind: str, documents: int, *, skip: bool) -> float:
    """CPU seconds of one forward and backward, the median."""
    compute = ComputeConfig(dtype="float32", remat="none", sequence_attention=kind)
    mesh = MeshConfig(sequence=SHARDS)
    order = sequence_layout.order(LENGTH, mesh, "zigzag")
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.normal(size=(1, LENGTH, heads, HEAD_DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    place = np.arange(LENGTH, dtype=np.int32)[None, order]
    index = (place % (LENGTH // documents), place // (LENGTH // documents))

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


def main() -> None:
    print("| | documents in the row | all pairs, CPU s | visible pairs, CPU s | of it |\n|---|---|---|---|---|")
    for kind in ("ring", "gather"):
        for documents in (1, 8):
            whole, visible = (seconds(kind, documents, skip=skip) for skip in (False, True))
            print(f"| {kind} | {documents} | {whole:.2f} | {visible:.2f} | {visible / whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
