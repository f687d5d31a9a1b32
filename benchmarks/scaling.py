"""A step on one GPU and on all GPUs of a host, over every mesh of one, two or three axes, beside the planner's figures.

    python -m benchmarks.scaling --json=benchmarks/results/scaling.json
    python -m benchmarks.scaling --devices=4 --platform=cpu --shapes=tiny --steps=1     does it work at all

Strong scaling keeps the rows of one GPU, weak scaling gives every GPU as many. Each case is a process: all trace and
compile at once, then they take turns, so that nothing runs beside a step that is timed, and the peak of memory is the
case's own. Losses stay within twice the rounding of bfloat16 ("bound": against float32's at the first weights). Planned
is what `mm01_jax.plan` says of the same step on this many H200s: bytes and messages of one chip, and the step's bounds
when all messages are hidden and when none is. Rows of results are written when known; what
fails is said and the other cases go on; cases left when `--minutes` are over are named, not run.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import subprocess
import sys
import time

from benchmarks.results import Report, add_json
from benchmarks.scaling_case import SHAPES, Case, work
from mm01_jax.config import MESH_AXES
from tests.command_line import Parser, list_of, one_of, whole

SCALINGS = ("strong", "weak")


def meshes(devices: int) -> list[tuple[tuple[str, int], ...]]:
    """Every mesh of `devices` over one, two or three axes whose sizes are as equal as powers of two can be."""
    found = [((axis, devices),) for axis in MESH_AXES]
    for count in (2, 3):
        sizes = _split(devices, count)
        if sizes:
            found += [tuple(zip(axes, sizes, strict=True)) for axes in itertools.combinations(MESH_AXES, count)]
    return found


def _split(devices: int, count: int) -> tuple[int, ...] | None:
    power = devices.bit_length() - 1
    if 2**power != devices or power < count:
        return None
    return tuple(2 ** (power // count + (at >= count - power % count)) for at in range(count))


class Bench:
    """All cases of one run, their report and their time limit."""

    def __init__(self, report: Report, device: str, devices: int, minutes: float):
        self.report, self.device, self.devices = report, device, devices
        self.began, self.limit = time.monotonic(), 60 * minutes
        self.found: dict[str, dict[str, float]] = {}
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")

    @property
    def left(self) -> float:
        return self.began + self.limit - time.monotonic()

    def tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def run(self, cases: list[Case], steps: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        workers = []
        for place, case in enumerate(cases):
            turned = self.visible[place % self.devices :] + self.visible[: place % self.devices]
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(turned)  # a compiler tries its kernels on the first it sees
            here, there = spawn.Pipe()
            process = spawn.Process(target=work, args=(case, steps, there), daemon=True)
            process.start()
            there.close()
            workers.append((case, process, here))
        ready = [(case, process, pipe) for case, process, pipe in workers if self._compiled(case, pipe, 0.7)]
        for case, process, pipe in ready:
            self._turn(case, pipe)
            process.join(20)
            process.kill()  # its memory is the next one's
        for _, process, _ in workers:
            process.kill()

    def _compiled(self, case: Case, pipe, share: float) -> bool:
        wait = max(1.0, self.began + share * self.limit - time.monotonic())
        kind, content = self._received(pipe, wait)
        if kind == "rows":  # there is nothing to time
            self._add(case, content)
            return False
        if kind != "compiled":
            self.tell(f"{case.name}: not run: {content}")
            return False
        traced, compiled, size = content
        self.tell(f"{case.name}: traced in {traced:.0f} s, compiled in {compiled:.0f} s, {size:.1f} GiB")
        return True

    def _turn(self, case: Case, pipe) -> None:
        if self.left < 5:
            self.tell(f"{case.name}: not run: no time left")
            return
        pipe.send("go")
        kind, content = self._received(pipe, min(self.left, 90))
        if kind != "rows":
            self.tell(f"{case.name}: {content}")
            return
        values = {quantity: value for quantity, value, _ in content}
        self.found[case.name] = values
        alone = self.found.get(Case(case.shape, "strong", ()).name)
        if alone and case.mesh:
            content.append(("against one", values["speed"] / alone["speed"], "ratio"))
            if case.scaling == "strong":
                names = [name for name in values if name.startswith("loss ")]
                apart = max(abs(values[name] / alone[name] - 1) for name in names)
                content.append(("difference", apart, "relative"))
        self._add(case, content)
        self.tell(
            f"{case.name}: {values['speed']:,.0f} tokens/s, {values['step']:.3f} s "
            f"(planned {values['planned best']:.3f} to {values['planned worst']:.3f}), memory {values['memory']:.1f} "
            f"(by shapes {values['planned by shapes']:.1f}, peak {values.get('peak', math.nan):.1f}) GiB"
        )

    def _add(self, case: Case, rows: list[tuple]) -> None:
        for quantity, value, unit in rows:
            self.report.add(f"{case.name}: {quantity}", value, unit, device=self.device)

    @staticmethod
    def _received(pipe, seconds: float):
        try:
            return pipe.recv() if pipe.poll(seconds) else ("late", f"nothing within {seconds:.0f} s")
        except EOFError:
            return "ended", "its process ended"


def _seen_devices() -> tuple[int, str]:
    """(number, name) of jax's devices, asked in a process of its own: this one must hold no GPU memory."""
    code = "import jax; from benchmarks.results import device; print(jax.device_count()); print(device())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, name = found.stdout.strip().splitlines()[-2:]
    return int(number), name


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.scaling", __doc__)
    add_json(parser)
    parser.add_argument("--shapes", type=list_of("shape", SHAPES), default=["bench_1b", "text_01_period"])
    parser.add_argument("--scaling", type=list_of("scaling", SCALINGS), default=list(SCALINGS))
    parser.add_argument("--devices", type=whole(2), help="how many; default: all that jax sees")
    parser.add_argument("--platform", type=one_of("platform", ("gpu", "cpu")), default="gpu")
    parser.add_argument("--axes", type=whole(1), default=3, help="meshes of at most so many axes")
    parser.add_argument("--steps", type=whole(1), default=8)
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins after that")
    arguments = parser.parse_args(argv)
    _choose_platform(arguments)
    number, device = _seen_devices()
    number = arguments.devices or number
    cases = [case for shape in arguments.shapes for case in _cases(shape, number, arguments)]
    bench = Bench(Report(arguments.json, "benchmarks.scaling", argv), device, number, arguments.minutes)
    bench.run(cases, arguments.steps)
    return 0


def _cases(shape: str, devices: int, arguments: argparse.Namespace) -> list[Case]:
    allowed = [mesh for mesh in meshes(devices) if len(mesh) <= arguments.axes]
    cases = [Case(shape, "bound", ()), Case(shape, "strong", ())]
    return cases + [Case(shape, scaling, mesh) for scaling in arguments.scaling for mesh in allowed]


def _choose_platform(arguments: argparse.Namespace) -> None:
    if arguments.platform == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["JAX_NUM_CPU_DEVICES"] = str(arguments.devices or 2)


if __name__ == "__main__":
    sys.exit(main())
