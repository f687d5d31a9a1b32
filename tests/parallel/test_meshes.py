"""One model on any mesh: logits, loss, router statistics and every weight's gradient are those of one device.

Packed documents with padding: boundaries inside shards and at their edges, documents over several shards, shards and
rows of padding alone (`mesh_model.DOCUMENTS`).

The bound. Everything is compared with the same model in float64 on one device, which has its own test against the
NumPy reference. A mesh changes the order of float32 sums and nothing else. So one device is measured with its sums in
eight orders (model and experts' width permuted), and a mesh may be twice as far from float64 as the farthest of them,
by largest error over largest entry; plus one unit in the last place, as one number (the loss) can be exact by luck.
"""

import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mm01_jax.config import MeshConfig, Rules
from tests.parallel.mesh_model import VARIANT, Evaluation, evaluate, exact
from tests.small import Variant

EPS = float(np.finfo(np.float32).eps)
CAPACITY = VARIANT.replace(routing="capacity", capacity_factor=0.75)
GROUPS = VARIANT.replace(exchange_groups=2, dropless_bound=3.0)
GATHERED = VARIANT.replace(exchange="gathered", dropless_bound=4.0, dropless_shard_bound=2.5)
SHARES = VARIANT.replace(exchange_groups=2, dropless_bound=4.0, dropless_shard_bound=2.5)
RING = VARIANT.replace(sequence_attention="ring")
ZIGZAG = VARIANT.replace(sequence_layout="zigzag")
ZIGZAG_RING = RING.replace(sequence_layout="zigzag")
ZIGZAG_CAPACITY = CAPACITY.replace(sequence_layout="zigzag")
COPIES = VARIANT.replace(collectives="copies", dropless_bound=4.0, dropless_shard_bound=2.5)
ONE_KV_HEAD = VARIANT.replace(num_kv_heads=1)
KV_EVERYWHERE = Rules(kv_heads=())
POSITIONS = Rules(act_seq=("tensor",), expert=("expert", "tensor"), ffn=())
BETWEEN_ROWS = Rules(act_batch=("tensor",), expert=("expert", "tensor"), ffn=())
WEIGHTS_OVER_SEQUENCE = Rules(embed=("data", "sequence"))
OTHER_AXES = Rules(batch=("data",), expert=("data",), embed=(), ffn=(), vocab=())

CASES = {  # name: (mesh, variant); those above the line run by default: each axis, order, routing and exchange once
    "data 2, expert 2, tensor 2, two groups": (MeshConfig(data=2, expert=2, tensor=2), GROUPS),
    "sequence 4, zigzag ring": (MeshConfig(sequence=4), ZIGZAG_RING),
    "expert 2, sequence 2, zigzag, capacity": (MeshConfig(expert=2, sequence=2), ZIGZAG_CAPACITY),
    "data 2, tensor 2, experts over data, heads alone over tensor": (
        MeshConfig(data=2, tensor=2, rules=OTHER_AXES),
        VARIANT,
    ),
    "expert 2, tensor 2, positions over tensor": (MeshConfig(expert=2, tensor=2, rules=POSITIONS), SHARES),
    "data 2, expert 2, copies": (MeshConfig(data=2, expert=2), COPIES),
    "expert 2, tensor 2, rows over tensor between mixers": (MeshConfig(expert=2, tensor=2, rules=BETWEEN_ROWS), SHARES),
    # ---
    "tensor 2, sequence 2, zigzag, rows over tensor between mixers, copies": (
        MeshConfig(tensor=2, sequence=2, rules=BETWEEN_ROWS),
        COPIES.replace(sequence_layout="zigzag"),
    ),
    "data 2, tensor 2, rows over tensor between mixers, capacity": (
        MeshConfig(data=2, tensor=2, rules=BETWEEN_ROWS),
        CAPACITY,
    ),
    "data 4, copies": (MeshConfig(data=4), COPIES),
    "data 2, sequence 2, weights over both, copies": (
        MeshConfig(data=2, sequence=2, rules=WEIGHTS_OVER_SEQUENCE),
        COPIES.replace(sequence_layout="zigzag"),
    ),
    "data 2, expert 2, tokens gathered, copies": (MeshConfig(data=2, expert=2), COPIES.replace(exchange="gathered")),
    "expert 4, two groups, copies": (MeshConfig(expert=4), COPIES.replace(exchange_groups=2)),
    "data 2, expert 2, tensor 2, copies": (MeshConfig(data=2, expert=2, tensor=2), COPIES),
    "data 2, tensor 2, sequence 2, positions over tensor, copies": (
        MeshConfig(data=2, tensor=2, sequence=2, rules=POSITIONS),
        COPIES,
    ),
    "sequence 8, ring, copies": (MeshConfig(sequence=8), COPIES.replace(sequence_attention="ring")),
    "tensor 2, sequence 2, zigzag, positions over tensor": (
        MeshConfig(tensor=2, sequence=2, rules=POSITIONS),
        SHARES.replace(sequence_layout="zigzag"),
    ),
    "tensor 2, sequence 2, positions over tensor, capacity": (
        MeshConfig(tensor=2, sequence=2, rules=POSITIONS),
        CAPACITY,
    ),
    "data 2, sequence 2, weights over both": (MeshConfig(data=2, sequence=2, rules=WEIGHTS_OVER_SEQUENCE), VARIANT),
    "expert 2, tensor 2": (MeshConfig(expert=2, tensor=2), VARIANT),
    "sequence 4, ring": (MeshConfig(sequence=4), RING),
    "data 2, expert 2, sequence 2, two groups": (MeshConfig(data=2, expert=2, sequence=2), GROUPS),
    "expert 2, tensor 2, sequence 2, capacity": (MeshConfig(expert=2, tensor=2, sequence=2), CAPACITY),
    "data 2": (MeshConfig(data=2), VARIANT),
    "data 8": (MeshConfig(data=8), VARIANT),
    "expert 2": (MeshConfig(expert=2), VARIANT),
    "expert 8": (MeshConfig(expert=8), VARIANT),
    "tensor 2": (MeshConfig(tensor=2), VARIANT),
    "tensor 4, two kv heads on all": (MeshConfig(tensor=4, rules=KV_EVERYWHERE), VARIANT),
    "tensor 2, one kv head": (MeshConfig(tensor=2, rules=KV_EVERYWHERE), ONE_KV_HEAD),
    "sequence 2": (MeshConfig(sequence=2), VARIANT),
    "sequence 4": (MeshConfig(sequence=4), VARIANT),
    "sequence 8": (MeshConfig(sequence=8), VARIANT),
    "sequence 8, ring": (MeshConfig(sequence=8), RING),
    "data 2, expert 2": (MeshConfig(data=2, expert=2), VARIANT),
    "data 2, tensor 2": (MeshConfig(data=2, tensor=2), VARIANT),
    "data 2, sequence 2": (MeshConfig(data=2, sequence=2), VARIANT),
    "expert 2, sequence 4": (MeshConfig(expert=2, sequence=4), VARIANT),
    "tensor 2, sequence 4, ring": (MeshConfig(tensor=2, sequence=4), RING),
    "expert 2, tensor 2, tokens gathered": (MeshConfig(expert=2, tensor=2), GATHERED),
    "expert 4, tensor 2": (MeshConfig(expert=4, tensor=2), VARIANT),
    "expert 4, tensor 2, capacity": (MeshConfig(expert=4, tensor=2), CAPACITY),
    "data 4, sequence 2, capacity": (MeshConfig(data=4, sequence=2), CAPACITY),
    "data 2, expert 2, tensor 2": (MeshConfig(data=2, expert=2, tensor=2), VARIANT),
    "data 2, tensor 2, sequence 2": (MeshConfig(data=2, tensor=2, sequence=2), VARIANT),
    "expert 2, tensor 2, sequence 2, two groups": (MeshConfig(expert=2, tensor=2, sequence=2), GROUPS),
    "data 2, expert 2, tensor 2, sequence 2": (MeshConfig(data=2, expert=2, tensor=2, sequence=2), VARIANT),
    "all four, ring, capacity": (
        MeshConfig(data=2, expert=2, tensor=2, sequence=2),
        CAPACITY.replace(sequence_attention="ring"),
    ),
    "sequence 2, zigzag": (MeshConfig(sequence=2), ZIGZAG),
    "sequence 4, zigzag": (MeshConfig(sequence=4), ZIGZAG),
    "sequence 8, zigzag": (MeshConfig(sequence=8), ZIGZAG),
    "sequence 2, zigzag ring": (MeshConfig(sequence=2), ZIGZAG_RING),
    "sequence 8, zigzag ring": (MeshConfig(sequence=8), ZIGZAG_RING),
    "sequence 8, zigzag, capacity": (MeshConfig(sequence=8), ZIGZAG_CAPACITY),
    "data 2, expert 2, sequence 4, zigzag, capacity": (MeshConfig(data=2, expert=2, sequence=4), ZIGZAG_CAPACITY),
    "tensor 2, sequence 4, zigzag ring": (MeshConfig(tensor=2, sequence=4), ZIGZAG_RING),
    "data 2, expert 2, sequence 2, zigzag, two groups": (
        MeshConfig(data=2, expert=2, sequence=2),
        GROUPS.replace(sequence_layout="zigzag"),
    ),
    "all four, zigzag ring, capacity": (
        MeshConfig(data=2, expert=2, tensor=2, sequence=2),
        ZIGZAG_CAPACITY.replace(sequence_attention="ring"),
    ),
}
BY_DEFAULT = list(CASES)[:7]


def plain(variant: Variant) -> Variant:
    """The model without what only a mesh makes use of."""
    return variant.replace(
        exchange="auto",
        collectives="auto",
        exchange_groups=1,
        dropless_bound=None,
        dropless_shard_bound=None,
        sequence_attention="auto",
        sequence_layout="contiguous",
    )


def errors(found: Evaluation, true: Evaluation) -> dict[str, float]:
    """Largest error over largest entry, of each kind of number.

    A gradient that is zero but for float64's rounding, as that of keys' biases, has no entry to be measured by: its
    error counts as of the largest gradient.
    """
    top = max(np.abs(gradient).max() for gradient in true.gradients.values())

    def relative(x: np.ndarray, y: np.ndarray, zero: float = 0.0, instead: float = 1e-30) -> float:
        largest = np.abs(y).max()
        return float(np.abs(x.astype(np.float64) - y).max() / (largest if largest > zero else instead))

    return {
        "logits": relative(found.logits, true.logits),
        "loss": relative(found.loss, true.loss),
        "statistics": max(relative(found.stats[name], true.stats[name]) for name in true.stats),
        "gradients": max(
            relative(found.gradients[name], true.gradients[name], 1e-12 * top, top) for name in true.gradients
        ),
    }


@functools.cache
def errors_of_one_device(variant: Variant) -> dict[str, float]:
    """The farthest of eight orders of summation."""
    orders = [errors(evaluate(MeshConfig(), variant, order), exact(variant)) for order in range(8)]
    return {kind: max(found[kind] for found in orders) for kind in orders[0]}


@pytest.mark.parametrize("case", BY_DEFAULT)
def test_mesh_is_as_near_to_float64_as_one_device(case):
    mesh, variant = CASES[case]
    reference = plain(variant)
    true, found = exact(reference), evaluate(mesh, variant)
    assert found.gradients.keys() == true.gradients.keys()
    assert found.stats["overflow"].max() == 0
    assert (found.stats["dropped"].min() > 0) == (variant.config.routing == "capacity")
    alone = errors_of_one_device(reference)
    far = {kind: (error, alone[kind]) for kind, error in errors(found, true).items() if error > 2 * alone[kind] + EPS}
    assert not far


@pytest.mark.slow
def test_every_mesh_of_the_table():
    # In a process of its own: all four axes at 2 are 16 devices.
    command = [sys.executable, "-m", "tests.parallel.every_mesh"]
    done = subprocess.run(command, cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) > len(CASES)
