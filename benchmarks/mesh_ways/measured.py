"""The job of one way: it compiles beside the others, then runs when it is its turn (`benchmarks/scaling/turns.py`)."""

import dataclasses
import time
from collections.abc import Iterator

from benchmarks.mesh_ways.ways import Way
from benchmarks.scaling.planned import Rows
from benchmarks.scaling.turns import Ready


@dataclasses.dataclass(frozen=True)
class Measured:
    """seconds: of its turn; steps: timed."""

    way: Way
    shapes: str
    steps: int
    seconds: float

    @property
    def name(self) -> str:
        return self.way.subject

    def work(self) -> Iterator[Ready | Rows]:
        import jax

        from benchmarks import mesh

        began, platform = time.monotonic(), jax.devices()[0].platform
        config = self.way.config(self.shapes)
        placed, lowered = mesh.trace(config)
        traced = time.monotonic() - began
        options = self.way.options(platform)
        program, initial = (one.compile(compiler_options=options) for one in lowered)
        compiled, gib = time.monotonic() - began - traced, mesh.gib(program)
        yield Ready(f"traced in {traced:.0f} s, compiled in {compiled:.0f} s, {gib:.1f} GiB", gib)
        yield from self._run(config, placed, program, initial)

    def _run(self, config, placed, program, initial) -> Iterator[Rows]:
        import jax

        from benchmarks import mesh, mesh_messages, mesh_steps

        state = initial(jax.random.key(config.train.seed))
        told = {"steps": self.steps, "warm": True, "tell": lambda line: None}
        state, batch, ran = mesh_steps.ran(config, placed, program, state, **told)
        tokens = config.train.batch_size * config.train.sequence_length
        rows = [("rows", config.train.batch_size, ""), ("step", 1e3 * ran.second, "ms")]
        rows += [("speed", tokens / ran.second, "tokens/s"), ("memory", mesh.gib(program), "GiB/GPU")]
        rows += [("load", max(ran.loads), "of an expert's share"), ("refused", ran.refused, "steps")]
        yield rows + [(f"loss {at}", loss, "nats a token") for at, loss in enumerate(ran.losses)]
        if jax.devices()[0].platform == "gpu":  # a CPU's profile has no kernels
            yield mesh_messages.profiled(program, state, batch, placed)
