"""Where the time of a step on several GPUs goes, for `benchmarks.mesh`: milliseconds beside messages, under them and
between them (`benchmarks/exposed.py`), bytes that a GPU sends, the speed of its link while a message runs.
"""

import tempfile

import jax

from benchmarks import exposed
from mm01_jax import scopes
from mm01_jax.plan.hlo import collectives
from mm01_jax.plan.hlo.text import parse
from mm01_jax.plan.traced_work import Collective

PROFILED = 2  # steps


def profiled(program: jax.stages.Compiled, state, batch, mesh: jax.sharding.Mesh) -> list[tuple[str, float, str]]:
    """(quantity, value, unit) of a step, which is run on the state; it is donated."""
    with tempfile.TemporaryDirectory() as folder:
        with scopes.traced(folder):
            for _ in range(PROFILED):
                state, _ = program(state, batch)
            jax.block_until_ready(state)
        found = exposed.exposure(exposed.read(folder))
    rows = [
        (name, 1e3 * getattr(found, name) / PROFILED, "ms") for name in ("computing", "messages", "exposed", "idle")
    ]
    counts = collectives.find(parse(program.as_text()), dict(mesh.shape)).counts
    sent = sum(bytes_sent(one, mesh) * times for one, times in counts.items())
    if sent and found.messages:
        rows += [("sent", sent / 2**30, "GiB/GPU"), ("link", sent * PROFILED / found.messages / 1e9, "GB/s")]
    return rows


def bytes_sent(one: Collective, mesh: jax.sharding.Mesh) -> float:
    """Bytes that one GPU sends of a message, of whose larger side it holds or makes a part."""
    members = 1
    for axis in one.axes:
        members *= mesh.shape[axis]
    return (2 if one.kind == "all-reduce" else 1) * one.bytes * (members - 1) / members
