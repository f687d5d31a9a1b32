"""What the planner says of a program, as rows: bytes and messages of one chip, bounds of a step in seconds."""

from mm01_jax.config import Config
from mm01_jax.plan import planner, roofline, targets
from mm01_jax.plan.hlo import collectives, traffic
from mm01_jax.plan.hlo.text import parse
from mm01_jax.plan.traced_work import Assumed, count

GIB = 2**30
Rows = list[tuple[str, float | str, str]]  # (quantity, value, unit)


class Planned:
    """The planner's view of one traced step on the mesh in force, before the program is compiled.

    function, arguments: what is traced, jitted; kind as `plan.steps.KINDS`; shapes: bytes of a chip by shapes.
    """

    def __init__(self, kind: str, config: Config, step, shapes: int):
        from jax.sharding import get_mesh

        self.shapes, self.mesh = shapes, dict(get_mesh().shape)
        self.assumed = Assumed(planner._balanced_rows(config, step), planner._pairs_computed(kind, config))
        self.flops = count(step.function.trace(*step.arguments).jaxpr, self.mesh, self.assumed).flops

    def rows(self, text: str, target: targets.Target) -> Rows:
        """text: the compiled program's."""
        program = parse(text)
        found = collectives.find(program, self.mesh)
        moved = traffic.bytes_moved(program, self.assumed.branch_share)
        sent = {"collectives": found.counts, "overlapped": found.overlapped}
        times = roofline.times(target, self.mesh, self.flops, moved, **sent)
        return [("planned by shapes", self.shapes / GIB, "GiB/GPU"), *seconds(times), *messages(found)]


def seconds(times: roofline.Times) -> Rows:
    found = [("arithmetic", times.compute), ("memory traffic", times.memory), ("messages", times.messages)]
    found += [("best", times.best), ("as shown", times.shown), ("worst", times.worst)]
    return [(f"planned {name}", value, "s") for name, value in found]


def messages(found: collectives.Messages) -> Rows:
    """Of each kind and axes the MiB that one chip sends, those beside work, and the number; the largest first."""
    sent: dict[tuple[str, str], list[float]] = {}
    for one, times_sent in found.counts.items():
        entry = sent.setdefault((one.kind, "+".join(one.axes)), [0.0, 0.0, 0.0])
        entry[0] += one.bytes * times_sent / 2**20
        entry[1] += one.bytes * found.overlapped[one] / 2**20
        entry[2] += times_sent
    rows: Rows = []
    for (kind, axes), (size, hidden, number) in sorted(sent.items(), key=lambda item: -item[1][0]):
        rows.append((f"{kind} over {axes}", size, "MiB/GPU"))
        rows.append((f"{kind} over {axes} beside work", hidden, "MiB/GPU"))
        rows.append((f"{kind} over {axes} number", number, ""))
    return [*rows, ("in words", in_words(rows), "")]


def in_words(rows: Rows) -> str:
    """The largest of `messages`, down to a hundredth of all."""
    sizes = {name: value for name, value, unit in rows if unit == "MiB/GPU" and not name.endswith("beside work")}
    values, least = {name: value for name, value, _ in rows}, sum(sizes.values()) / 100
    return "; ".join(
        f"{name} {size:,.0f} MiB, {values[f'{name} beside work'] / size:.0%} beside work"
        for name, size in sizes.items()
        if size > least
    )
