"""Jobs in processes of their own: they compile beside each other, then take turns, so that nothing runs beside what is
timed and the peak of memory is a job's own.
"""

import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

from benchmarks.results import Report
from benchmarks.scaling.planned import GIB, Rows

# Jobs share the GPUs; a tenth is left to NCCL and to the contexts of those that wait.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}


class Ready(NamedTuple):
    """A job has compiled what it will run, which takes so many GiB of one device."""

    line: str
    gib: float = 0.0


class Job(Protocol):
    """Can be sent to a process. name: what its rows are said of. seconds: of a turn; what takes longer hangs."""

    name: str
    seconds: float

    def work(self) -> Iterator[Ready | Rows]:
        """First Ready, then, in its turn, rows as they become known."""


class Worker(NamedTuple):
    job: Job
    process: multiprocessing.Process
    pipe: Connection


class Devices(NamedTuple):
    """number: used. gib: that jax hands out of one. name: as rows have it."""

    number: int
    gib: float
    name: str


def seen(number: int | None) -> Devices:
    """The first `number` of jax's devices, or all; asked in a process of its own: this one holds no GPU memory."""
    code = (
        "import jax; from benchmarks.results import device; from benchmarks.mesh import memory_limit; "
        "print(jax.device_count(), memory_limit(), device(), sep='\\n')"
    )
    shared = ENVIRONMENT | os.environ
    found = subprocess.run([sys.executable, "-c", code], env=shared, capture_output=True, text=True, check=True)
    count, limit, name = found.stdout.strip().splitlines()[-3:]
    return Devices(number or int(count), int(limit) / GIB, name)


class Turns:
    """One report, one kind of device, one time limit."""

    def __init__(
        self, report: Report, devices: Devices, *, minutes: float, at_once: int = 16, compile_only: bool = False
    ):
        self.report, self.devices, self.at_once, self.compile_only = report, devices, at_once, compile_only
        self.began, self.limit = time.monotonic(), 60 * minutes
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices.number)))).split(",")

    @property
    def left(self) -> float:
        return self.began + self.limit - time.monotonic()

    def tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def add(self, name: str, rows: Rows) -> None:
        for quantity, value, unit in rows:
            self.report.add(f"{name}: {quantity}", value, unit, device=self.devices.name)

    def ready(self, jobs: Sequence[Job]) -> Iterator[tuple[Worker, Ready]]:
        """Those that have compiled within 0.7 of their part of the time left, so many at once; the others are said."""
        for begin in range(0, len(jobs), self.at_once):
            now = jobs[begin : begin + self.at_once]
            until = time.monotonic() + 0.7 * self.left * len(now) / len(jobs[begin:])
            workers = [self._start(place, job) for place, job in enumerate(now)]
            try:
                found = [(worker, said) for worker in workers if (said := self._ready(worker, until))]
                yield from () if self.compile_only else found
            finally:
                for worker in workers:
                    worker.process.kill()

    def _ready(self, worker: Worker, until: float) -> Ready | None:
        kind, content = _received(worker.pipe, until - time.monotonic())
        if kind != "ready":
            return self._not_run(worker.job.name, content)
        self.tell(f"{worker.job.name}: {content.line}")
        return content

    def _not_run(self, name: str, why: object) -> None:
        """Says so, and leaves a row that does: of the case there may be others, from before it failed."""
        self.tell(f"{name}: not run: {why}")
        self.add(name, [("not run", str(why), "")])

    def turn(self, worker: Worker) -> dict[str, float] | None:
        """A job's turn: its rows, added as they come, by quantity; None where it failed, which is said. Its memory is
        the next one's afterwards.
        """
        if self.left < 5:
            return self._not_run(worker.job.name, "no time left")
        worker.pipe.send("go")
        until, rows = time.monotonic() + min(self.left, worker.job.seconds), []
        while True:
            kind, content = _received(worker.pipe, until - time.monotonic())
            if kind != "rows":
                break
            self.add(worker.job.name, content)
            rows += content
        worker.process.join(20 if kind == "end" else 0)
        worker.process.kill()
        worker.process.join()
        if kind != "end":
            return self._not_run(worker.job.name, content)
        return {quantity: value for quantity, value, _ in rows}

    def _start(self, place: int, job: Job) -> Worker:
        spawn = multiprocessing.get_context("spawn")
        turned = self.visible[place % len(self.visible) :] + self.visible[: place % len(self.visible)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(turned)  # a compiler tries its kernels on the first it sees
        here, there = spawn.Pipe()
        process = spawn.Process(target=_work, args=(job, there), daemon=True)
        process.start()
        there.close()
        return Worker(job, process, here)


def _received(pipe, seconds: float) -> tuple[str, object]:
    try:
        return pipe.recv() if pipe.poll(max(0.0, seconds)) else ("late", f"nothing within {max(0, seconds):.0f} s")
    except EOFError:
        return "ended", "its process ended"


def _work(job: Job, pipe) -> None:
    os.environ |= ENVIRONMENT | os.environ  # what was set stays
    try:
        working = job.work()
        pipe.send(("ready", next(working)))
        if pipe.recv() == "go":
            for rows in working:
                pipe.send(("rows", rows))
            pipe.send(("end", None))
    except Exception as error:  # the other jobs are worth having
        pipe.send(("failed", " ".join(traceback.format_exception_only(error)[-1].split())[:400]))
