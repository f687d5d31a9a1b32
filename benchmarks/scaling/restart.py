"""Table 4: a training run of one process a GPU, one of which is killed: what the others say, and the next starts.

The run is `mm01-train` on a text of its own, with processes that find each other as under `mpirun`. When it has saved,
and gone on, the last process is killed with SIGKILL. Its newest step is then restored on one GPU and on another mesh
and saved again: the digests must be the same. Both starts go on, and their losses are compared with those that the run
had seen before it was killed.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator

from benchmarks.scaling.cases import Case, Mesh, config_of, mesh_name
from benchmarks.scaling.planned import Rows
from benchmarks.scaling.turns import Turns
from mm01_jax.config import Config, saved

ROOT = pathlib.Path(__file__).parents[2]
MODULES = ("argparse", "ast", "calendar", "copy", "csv", "enum", "heapq", "inspect")
LENGTH = 1024  # tokens of a row at most: buffers for any routing fit beside the weights
EVERY, PAST = 5, 3  # steps between saves; steps after the newest that is on disk, when the process is killed
MOST_SECONDS = 240.0  # of one start, and for the others to end, of which 60 are the goal
PORTS = 4000  # jax makes the coordinator's of a job number's upper bits
RESTORE = "import sys; from benchmarks.scaling.restart import restored; restored(*sys.argv[1:])"


def measure(turns: Turns, shapes: list[str]) -> None:
    for shape in shapes:
        name = f"restart of {shape}, {turns.devices.number} processes"
        with tempfile.TemporaryDirectory() as folder:
            run = Run(pathlib.Path(folder), shape, turns.devices.number, on_cpu=turns.devices.gib > 2**20)
            try:
                for rows in run.compiled() if turns.compile_only else run.rows():
                    turns.add(name, rows)
                    turns.tell(f"{name}: {', '.join(f'{quantity} {value}' for quantity, value, _ in rows)}")
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                turns.tell(f"{name}: ended early: {error}")
                turns.add(name, [("not run", str(error), "")])
            finally:
                run.end()


class Launch:
    """A command in a process for each GPU of a mesh, which find each other through Open MPI's environment alone."""

    def __init__(self, mesh: Mesh, argv: list, logs: pathlib.Path, number: int, *, on_cpu: bool):
        self.began, self.logs, self.processes = time.monotonic(), logs, []
        count, job = math.prod(size for _, size in mesh), (os.getpid() + number) % PORTS
        logs.mkdir()
        for index in range(count):
            environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
            environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
            if on_cpu:
                environment |= {"JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
            if count > 1:
                environment |= {
                    "OMPI_MCA_orte_hnp_uri": f"{job << 12}.0;tcp://127.0.0.1:41000",
                    "OMPI_COMM_WORLD_SIZE": str(count),
                    "OMPI_COMM_WORLD_RANK": str(index),
                    "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
                }
            elif not on_cpu:
                environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            with open(logs / str(index), "w") as log:
                whole = [sys.executable, *map(str, argv)]
                process = subprocess.Popen(whole, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            self.processes.append(process)

    @property
    def left(self) -> float:
        return self.began + MOST_SECONDS - time.monotonic()

    def finish(self) -> None:
        """RuntimeError with its last words where a process ends with an error, or does not end."""
        for index, process in enumerate(self.processes):
            try:
                code = process.wait(max(1.0, self.left))
            except subprocess.TimeoutExpired:
                code = f"nothing for {MOST_SECONDS:.0f} s"
            if code:
                raise RuntimeError(f"process {index} ended with {code}: {self.words(index)}")

    def words(self, index: int) -> str:
        """The last line of a process, of those that name another process the last."""
        lines = [line for line in (self.logs / str(index)).read_text(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if "of this job" in line] or lines or ["nothing"]
        return " ".join(lines[-1].split())[:300]


class Run:
    """One run in a folder, and the processes that were started for it."""

    def __init__(self, folder: pathlib.Path, shape: str, processes: int, *, on_cpu: bool):
        self.folder, self.processes, self.on_cpu = folder, processes, on_cpu
        self.launches: list[Launch] = []
        self.first: Mesh = (("data", processes),)
        self.other: Mesh = (("expert", 2), ("sequence", processes // 2))[: 1 + (processes > 2)]
        text = folder / "text"
        text.mkdir()
        for module in MODULES:
            shutil.copy(pathlib.Path(sysconfig.get_path("stdlib")) / f"{module}.py", text / f"{module}.txt")
        self.config = folder / "config.json"
        self.config.write_text(saved.to_json(_config(shape, processes, str(text))))

    def rows(self) -> Iterator[Rows]:
        """As they become known; errors as of `Launch.finish`."""
        run, places = self.folder / "run", {"one GPU": (), mesh_name(self.other): self.other}
        yield self._kill(run)
        newest, losses = _steps(run)[-1], _losses(run)
        step = int(newest.name)
        yield [("saved step", step, ""), ("steps after it", max(losses) - step, "")]
        for name, mesh in places.items():  # one after another: two jobs that wait in NCCL on one GPU take turns
            argv = ["-c", RESTORE, run, self.folder / f"again {name}", self.config, *_sizes(mesh)]
            self._launch(mesh, argv).finish()
            same = _digest(_steps(self.folder / f"again {name}")[-1]) == _digest(newest)
            yield [(f"restored on {name}", "the same bits" if same else "other bits", "")]
            shutil.rmtree(self.folder / f"again {name}")
            shutil.copytree(run, copy := self.folder / f"next {name}")
            self._launch(mesh, self._train(copy, mesh, step + PAST)).finish()
            found = _losses(self.folder / f"next {name}")
            apart = max(abs(found[at] / losses[at] - 1) for at in range(step + 1, step + PAST + 1))
            yield [(f"losses of the next start on {name}", apart, "relative")]

    def compiled(self) -> Iterator[Rows]:
        """One step on each mesh, which fills jax's compile cache."""
        meshes = (self.first, self.other, ())
        begun = [self._launch(mesh, self._train(self.folder / mesh_name(mesh), mesh, 1)) for mesh in meshes]
        for launch in begun:
            launch.finish()
        yield from ()

    def end(self) -> None:
        for launch in self.launches:
            for process in launch.processes:
                process.kill()
                process.wait()

    def _kill(self, run: pathlib.Path) -> Rows:
        began, launch = time.monotonic(), self._launch(self.first, self._train(run, self.first, 10**6))
        *others, killed = launch.processes
        while not ((steps := _steps(run)) and max(_losses(run), default=0) >= int(steps[-1].name) + PAST):
            if any(process.poll() is not None for process in launch.processes) or launch.left < 0:
                raise RuntimeError(f"no step was saved: {launch.words(0)}")
            time.sleep(0.05)
        rows: Rows = [("saved and went on after", time.monotonic() - began, "s")]
        began = time.monotonic()
        killed.kill()
        for process in others:
            process.wait(MOST_SECONDS)
        rows.append(("the others ended after", time.monotonic() - began, "s"))
        codes = ", ".join(str(process.wait()) for process in launch.processes)
        return [*rows, ("exit codes", codes, ""), ("the first said", launch.words(0), "")]

    def _train(self, folder: pathlib.Path, mesh: Mesh, steps: int) -> list:
        more = [f"--workdir={folder}", f"--config.train.steps={steps}", "--nocompile-cache"]
        return ["train_main.py", f"--config={self.config}", *(f"--config.{size}" for size in _sizes(mesh)), *more]

    def _launch(self, mesh: Mesh, argv: list) -> Launch:
        number = len(self.launches)
        self.launches.append(Launch(mesh, argv, self.folder / f"launch {number}", number, on_cpu=self.on_cpu))
        return self.launches[-1]


def _config(shape: str, rows: int, text: str) -> Config:
    config = config_of(Case(shape, "strong", (), rows))
    compute = dataclasses.replace(
        config.compute, dropless_bound=None, dropless_shard_bound=None, exchange="padded", sequence_layout="contiguous"
    )
    length = min(config.train.sequence_length, LENGTH)
    train = dataclasses.replace(
        config.train, sequence_length=length, checkpoint_every=EVERY, eval_every=10**6, steps=10**6
    )
    data = dataclasses.replace(config.data, source=text, tokenizer="bytes", held_out=0.0)
    return dataclasses.replace(config, name=f"restart_{shape}", compute=compute, train=train, data=data)


def _sizes(mesh: Mesh) -> list[str]:
    return [f"mesh.{axis}={size}" for axis, size in mesh]


def _steps(run: pathlib.Path) -> list[pathlib.Path]:
    """Folders of steps that are whole on disk, the oldest first."""
    found = (path for path in (run / "checkpoints").glob("*") if path.name.isdecimal())
    return sorted(path for path in found if (path / "state" / "manifest.json").exists())


def _digest(step: pathlib.Path) -> str:
    manifest = (step / "state" / "manifest.json").read_text()
    return json.loads("{" + manifest.partition("\n")[2])["tree_sha256"]


def _losses(run: pathlib.Path) -> dict[int, float]:
    """Step -> loss, of whole lines."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def restored(source: str, target: str, config: str, *overrides: str) -> None:
    """Restores the newest step of `source` on the config's mesh and saves it in `target`; of several processes each."""
    from mm01_jax import cluster
    from mm01_jax.config import command_line

    cluster.join()
    import jax

    from mm01_jax import checkpoint, sharding
    from mm01_jax.train import step

    made = command_line.load_config(config, overrides)
    mesh, found = sharding.make_mesh(made.mesh), checkpoint.open_checkpoint(source, "")
    meta = found.manifest.meta | {"config": json.loads(saved.to_json(made))}
    with jax.set_mesh(mesh), checkpoint.Checkpoints(target) as after:
        after.save(found.manifest.step, found.restore(step.abstract_state(made, mesh)), meta)
        after.wait()
