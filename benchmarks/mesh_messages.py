"""Where the time of a step on several GPUs goes, for `benchmarks.mesh`: milliseconds beside messages, under them and
between them (`benchmarks/exposed.py`), by whose kernels, bytes that a GPU sends, the speed of its link while a message
runs.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable

import jax

from benchmarks import exposed
from mm01_jax import scopes
from mm01_jax.plan.hlo import collectives
from mm01_jax.plan.hlo.text import parse
from mm01_jax.plan.traced_work import Collective

PROFILED = 2  # steps
# What a GPU's kernels are called by those who write them; all others are XLA's, but for copies, which are no kernels.
KINDS = {"our kernels": r"mosaic", "products": r"gemm|nvjet|cutlass|cublas", "other kernels": r"^(?!.*[Mm]emcpy)"}


def profiled(program: jax.stages.Compiled, state, batch, mesh: jax.sharding.Mesh) -> list[tuple[str, float, str]]:
    """(quantity, value, unit) of a step, which is run on the state; it is donated."""
    with tempfile.TemporaryDirectory() as folder:
        with scopes.traced(folder):
            for _ in range(PROFILED):
                state, _ = program(state, batch)
            jax.block_until_ready(state)
        events = exposed.read(folder)
    found = exposed.exposure(events)
    rows = [
        (name, 1e3 * getattr(found, name) / PROFILED, "ms") for name in ("computing", "messages", "exposed", "idle")
    ]
    rows += [(kind, 1e3 * seconds / PROFILED, "ms") for kind, seconds in by_kind(events).items()]
    counts = collectives.find(parse(program.as_text()), dict(mesh.shape)).counts
    sent = sum(bytes_sent(one, mesh) * times for one, times in counts.items())
    if sent and found.messages:
        rows += [("sent", sent / 2**30, "GiB/GPU"), ("link", sent * PROFILED / found.messages / 1e9, "GB/s")]
    return rows


def by_kind(events: Iterable[exposed.Event]) -> dict[str, float]:
    """Seconds of kernels that are no messages, of each of `KINDS`; the mean over devices."""
    events, seconds = list(events), Counter(dict.fromkeys(KINDS, 0.0))
    for event in events:
        if not event.is_message:
            kind = next((kind for kind, name in KINDS.items() if re.search(name, event.name)), None)
            seconds[kind] += event.seconds
    devices = len({event.device for event in events})
    return {kind: seconds[kind] / devices for kind in KINDS}


def bytes_sent(one: Collective, mesh: jax.sharding.Mesh) -> float:
    """Bytes that one GPU sends of a message, of whose larger side it holds or makes a part."""
    members = 1
    for axis in one.axes:
        members *= mesh.shape[axis]
    return (2 if one.kind == "all-reduce" else 1) * one.bytes * (members - 1) / members
