"""From a typed command to its first result, and where the seconds go, on this machine's CPU.

    python -m benchmarks.first_minute [--runs=3] [--json=benchmarks/results/first_minute.json]
    python -m benchmarks.first_minute --checkout=DIR --label=before     (another checkout's commands)
    python -m benchmarks.first_minute --config=configs/bench_1b.py --device --runs=1     (training alone, on a GPU)

Training of `tiny` until its first step, and generation from its checkpoint until the first new text; cold, with an
empty cache folder, and the second time. Seconds of tracing, lowering and compiling are jax's own (JAX_LOG_COMPILES);
those of processors, which other programs of the machine change less, are the system's, of all threads until then.
"""

import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from typing import NamedTuple

from benchmarks import results
from tests.command_line import Parser, whole

PROMPT = "def "
TINY = "configs/tiny.py"
IMPORTS = "import train_main; from mm01_jax.train import loop"
_LOGGED = re.compile(
    r"Finished (?:(tracing) (\w+) for jit|(jaxpr to MLIR module conversion|XLA compilation of) jit\((\w+)\))"
    r" in ([\d.]+)"
)
_STAGES = {"tracing": "trace", "jaxpr to MLIR module conversion": "lower", "XLA compilation of": "compile"}


class Run(NamedTuple):
    """seconds: until the result. stages: name -> seconds of a part. compiled: program -> how often it was compiled."""

    seconds: float
    stages: dict[str, float]
    compiled: dict[str, int]


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.first_minute", __doc__)
    parser.add_argument("--runs", type=whole(1), default=3, help="of each; the table has the median")
    parser.add_argument("--checkout", type=pathlib.Path, default=results.ROOT, metavar="DIR", help="whose commands run")
    parser.add_argument("--config", default=TINY, help="of the training")
    parser.add_argument("--device", action="store_true", help="training alone, on jax's default device, not the CPU")
    parser.add_argument("--label", default="", help="added to every subject")
    results.add_json(parser)
    arguments = parser.parse_args(argv)
    report = results.Report(
        arguments.json, "benchmarks.first_minute", argv, label=arguments.label, root=arguments.checkout
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.checkout.resolve(), pathlib.Path(folder), arguments.config, arguments.device)
        measured = bench.measure(arguments.runs)
    for subject, runs in measured.items():
        add_rows(report, subject, runs, device=results.device() if arguments.device else results.processor())
    print("\n".join(table(measured)))
    return 0


class Bench(NamedTuple):
    """What is measured: a checkout's commands, in a folder for what they write; `device`: training alone, on it."""

    checkout: pathlib.Path
    folder: pathlib.Path
    config: str
    device: bool

    def measure(self, runs: int) -> dict[str, list[Run]]:
        """ "training tiny, cold" and the like -> its runs."""
        found = defaultdict(list)
        train = ("train_main.py", f"--config={self.config}")
        generate = None if self.device else self._trained(train)
        for number in range(runs):
            for kind in ("cold", "warm"):
                print(f"run {number + 1} of {runs}, {kind} ...", file=sys.stderr, flush=True)
                caches = self.environment(f"cache_{number}")
                workdir = f"--workdir={self.folder / f'run_{number}_{kind}'}"
                one = timed([*train, workdir], "step 1/", caches, self.checkout)
                one.stages["imports alone"] = seconds_of(IMPORTS, caches, self.checkout)
                found[f"training {pathlib.Path(self.config).stem}, {kind}"].append(one)
                if generate:
                    found[f"generating, {kind}"].append(timed(generate, PROMPT, caches, self.checkout))
        return found

    def _trained(self, train: tuple[str, ...]) -> tuple[str, ...]:
        """The command that generates from a short run."""
        trained = self.folder / "trained"
        short = ("--config.train.steps=3", "--config.train.eval_batches=1", f"--workdir={trained}")
        command = [sys.executable, *train, *short]
        subprocess.run(command, env=self.environment("first"), cwd=self.checkout, check=True)
        return ("-m", "mm01_jax.inference", f"--checkpoint={trained}", f"--prompt={PROMPT}", "--max_tokens=64")

    def environment(self, cache: str) -> dict[str, str]:
        """Of a user whose cache folder is this one."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_FLAGS"))}
        settings = {"JAX_LOG_COMPILES": "1", "PYTHONUNBUFFERED": "1"} | (
            {} if self.device else {"JAX_PLATFORMS": "cpu"}
        )
        return kept | settings | {"XDG_CACHE_HOME": str(self.folder / cache), "PYTHONPATH": self._path()}

    def _path(self) -> str:
        """The checkout's code before whatever else this process finds."""
        return os.pathsep.join([str(self.checkout), *filter(None, [os.environ.get("PYTHONPATH")])])


def seconds_of(code: str, env: dict[str, str], cwd: pathlib.Path) -> float:
    """Of a process that runs only this."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, check=True)
    return time.monotonic() - began


def timed(command, awaited: str, env: dict[str, str], cwd: pathlib.Path) -> Run:
    """Runs a command until something follows `awaited` on its stdout, then ends it."""
    began, used, logged = time.monotonic(), processor_seconds(), []
    process = subprocess.Popen(
        [sys.executable, *command], env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    reader = threading.Thread(
        target=lambda: logged.extend((time.monotonic() - began, line.decode()) for line in process.stderr)
    )
    reader.start()
    said = b""
    while block := os.read(process.stdout.fileno(), 65536):
        said += block
        if re.search(re.escape(awaited.encode()) + b".", said, re.DOTALL):
            break
    seconds = time.monotonic() - began
    process.kill()
    process.wait()
    reader.join()
    if not block:
        raise RuntimeError(f"{command} ended before its result: {''.join(line for _, line in logged)[-2000:]}")
    stages, compiled = read_log(logged)
    return Run(seconds, {"of processors": processor_seconds() - used} | stages, compiled)


def processor_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_log(logged: list[tuple[float, str]]) -> tuple[dict[str, float], dict[str, int]]:
    """(seconds of each stage, how often each program was compiled), from jax's log with the time of each line."""
    stages, compiled = {}, defaultdict(int)
    if logged:
        stages["before the first program"] = logged[0][0]
    for _, line in logged:
        if match := _LOGGED.search(line):
            stage, program = _STAGES[match[1] or match[3]], match[2] or match[4]
            compiled[program] += stage == "compile"
            name = f"{program}: {stage}"
            stages[name] = stages.get(name, 0.0) + float(match[5])
    return {name: took for name, took in stages.items() if took >= 0.1}, compiled


def add_rows(report: results.Report, subject: str, runs: list[Run], *, device: str) -> None:
    """A row of every run's seconds and compilations, the median of every stage."""
    for run in runs:
        report.add(f"{subject}: first result", round(run.seconds, 2), "s", device=device)
    for stage, took in medians(runs).items():
        report.add(f"{subject}: {stage.replace(': ', ', ')}", round(took, 2), "s", device=device)
    for program in ("train_step", "prefill", "decode"):
        if most := max(run.compiled.get(program, 0) for run in runs):
            report.add(f"{subject}: compilations of {program}", most, device=device)


def medians(runs: list[Run]) -> dict[str, float]:
    """Of the stages that every run has."""
    return {
        stage: statistics.median(run.stages[stage] for run in runs)
        for stage in runs[0].stages
        if all(stage in run.stages for run in runs)
    }


def table(measured: dict[str, list[Run]]) -> list[str]:
    """Markdown: a row a stage, the median of the runs."""
    lines = ["| | seconds |", "| --- | --- |"]
    for subject, runs in measured.items():
        every = ", ".join(f"{run.seconds:.1f}" for run in runs)
        lines.append(f"| **{subject}** | **{statistics.median(run.seconds for run in runs):.1f}** ({every}) |")
        lines += [f"| {stage} | {took:.1f} |" for stage, took in medians(runs).items()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
