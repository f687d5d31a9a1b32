"""Table 3: the padded and the ragged exchange of rows between expert shards, and the check at a start between them."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from benchmarks.scaling.cases import ROWS, Case, config_of
from benchmarks.scaling.planned import Rows
from benchmarks.scaling.turns import Ready, Turns

REPEATS = 10  # of an exchange and its gradient, timed together
TIMES = 5


# Rows of a buffer for one shard, the share of it in use when experts are chosen equally often, shards -> (S, S) rows
# that a shard (first) sends to a shard.
def even(rows: int, used: float, shards: int) -> np.ndarray:
    """Every shard's experts are chosen equally often."""
    return np.full((shards, shards), int(rows * used), np.int32)


def skewed(rows: int, used: float, shards: int) -> np.ndarray:
    """As many rows as `even`; the first shards get whole buffers, the next what is left, the others nothing."""
    whole, row = int(rows * used) * shards, np.zeros(shards, np.int32)
    for target in range(shards):
        row[target] = min(rows, whole - row.sum())
    return np.tile(row, (shards, 1))


ROUTINGS = {"even": even, "skewed": skewed}


def _config(shape: str, shards: int):
    return config_of(Case(shape, "strong", (("expert", shards),), max(ROWS, shards)))


@dataclasses.dataclass(frozen=True)
class Exchange:
    """The job of one transport and routing: rows to the experts, and their gradient back."""

    shape: str
    shards: int
    routing: str
    transport: str

    seconds: ClassVar[float] = 40

    @property
    def name(self) -> str:
        return f"exchange of {self.shape}, expert {self.shards}, {self.routing}, {self.transport}"

    def work(self) -> Iterator[Ready | Rows]:
        import jax

        from mm01_jax import sharding
        from mm01_jax.train import transport_check

        config = _config(self.shape, self.shards)
        mesh, axes = sharding.make_mesh(config.mesh, jax.devices()[: self.shards]), config.mesh.rules.expert
        with jax.set_mesh(mesh):
            rows, width, used, dtype = transport_check.training_shape(config)
            sent, began = ROUTINGS[self.routing](rows, used, self.shards), time.monotonic()
            x = jax.jit(functools.partial(_filled, axes, sent, (self.shards, rows, width), dtype))()
            programs = {
                name: jax.jit(functools.partial(_there_and_back, name, axes, sent)).lower(x).compile()
                for name in sorted({"padded", self.transport})
            }
            yield Ready(f"compiled in {time.monotonic() - began:.0f} s")
            part = rows * width * dtype.itemsize / 2**20
            used_part = float(sent.mean()) * width * dtype.itemsize / 2**20
            yield [("buffer for a shard", part, "MiB"), ("of it in use", used_part, "MiB")]
            whole, found = (programs[name](x) for name in ("padded", self.transport))
            apart = [int((a != b).sum()) for a, b in zip(whole, found, strict=True)]
            yield [("other than padded's", sum(apart), "values and gradients")]
            yield [("there and back", 1e3 * _seconds(programs[self.transport], x), "ms")]


def _filled(axes: tuple[str, ...], sent: np.ndarray, shape: tuple[int, int, int], dtype):
    """(S * S, R, D) over all shards: whole numbers that every dtype has, 0 where nothing is sent."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def local():
        part, row, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(3))
        me = lax.axis_index(axes)
        in_use = row < jnp.asarray(sent)[me][:, None, None]
        return jnp.where(in_use, (5 * me + 3 * part + 7 * row + column) % 61, 0).astype(dtype)

    return jax.shard_map(local, in_specs=(), out_specs=jax.P(axes))()


def _there_and_back(name: str, axes: tuple[str, ...], sent: np.ndarray, x):
    """(what every shard receives, the gradient of what it sent)."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from mm01_jax.parallel.experts.transports import TRANSPORTS

    def local(x):
        me, sizes = lax.axis_index(axes), jnp.asarray(sent)
        out, back = jax.vjp(lambda x: TRANSPORTS[name](x, sizes[me], sizes[:, me], axes), x)
        return out, *back(out)

    return jax.shard_map(local, in_specs=jax.P(axes), out_specs=jax.P(axes))(x)


def _seconds(program, x) -> float:
    """Of one, the median of several that are timed together."""
    import jax

    found = []
    for _ in range(TIMES + 1):  # the first warms up
        start = time.monotonic()
        for _ in range(REPEATS):
            _, x = program(x)
        jax.block_until_ready(x)
        found.append((time.monotonic() - start) / REPEATS)
    return statistics.median(found[1:])


@dataclasses.dataclass(frozen=True)
class Check:
    """The job of the check that a run makes before its first step (`train/transport_check.py`)."""

    shape: str
    shards: int

    seconds: ClassVar[float] = 90

    @property
    def name(self) -> str:
        return f"exchange of {self.shape}, expert {self.shards}, the check at a start"

    def work(self) -> Iterator[Ready | Rows]:
        import jax

        from mm01_jax import sharding
        from mm01_jax.train import transport_check

        config, said = _config(self.shape, self.shards), []
        mesh = sharding.make_mesh(config.mesh, jax.devices()[: self.shards])
        yield Ready("nothing to compile before it")
        with jax.set_mesh(mesh):
            began = time.monotonic()
            chosen = transport_check.settle(config, said.append)
            yield [("cost", time.monotonic() - began, "s"), ("choice", chosen, ""), ("said", said[-1], "")]


def measure(turns: Turns, shapes: list[str]) -> None:
    """Each transport in a process of its own: ragged has hung before."""
    shards = turns.devices.number
    jobs = [Check(shape, shards) for shape in shapes]
    jobs += [
        Exchange(shape, shards, routing, transport)
        for shape in shapes
        for routing in ROUTINGS
        for transport in ("padded", "ragged")
    ]
    for worker, _ in turns.ready(jobs):
        if values := turns.turn(worker):
            turns.tell(f"{worker.job.name}: {', '.join(f'{name} {value}' for name, value in values.items())}")
