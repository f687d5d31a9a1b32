"""Memory and time of saving and restoring a state, in one process on one CPU device.

    python -m tests.checkpoint.memory [--layers=20]

The state is made of expert stacks, 100 MB a layer (bfloat16 weights and two moments). Prints, as JSON, anonymous memory
above what the state itself takes, as a fraction of the state: device memory is host memory here, so the copy that a
save must make counts in full. Files being encoded add at most 256 MiB whatever the size of the state.
"""

import ctypes
import json
import pathlib
import shutil
import sys
import tempfile
import threading
import time

from tests.command_line import Parser, whole


def anonymous(trim: bool = False) -> int:
    """Bytes of anonymous memory of this process; with `trim` after giving back what malloc keeps of freed memory."""
    if trim:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Peak:
    """Highest anonymous memory while the block runs, and its seconds."""

    def __enter__(self):
        self.start, self.bytes, self._stop = time.monotonic(), anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.seconds = time.monotonic() - self.start


def measure(layers: int, workdir: pathlib.Path) -> dict:
    """Saves and restores; fractions of the state's bytes, and GB/s."""
    import jax

    from mm01_jax import checkpoint
    from tests.checkpoint.standin import META, abstract, make_mesh, make_state

    def state_of(layers):
        shapes = {"stacks/0/experts/gate": ((1, layers, 8, 1024, 2048), (None,) * 5)}
        return make_state(make_mesh(1, 1, 1, 1), shapes=shapes)

    small = state_of(1)
    with checkpoint.Checkpoints(workdir / "warm") as checkpoints:  # compiles, and the pools of tensorstore
        checkpoints.save(0, small, META)
        checkpoints.restore_latest(abstract(small))
    del small
    state = state_of(layers)
    size, shapes = sum(x.nbytes for x in jax.tree.leaves(state)), abstract(state)
    with checkpoint.Checkpoints(workdir / "run") as checkpoints:
        before = anonymous(trim=True)
        with Peak() as save:
            checkpoints.save(1, state, META)
            checkpoints.wait()
        del state
        before_restore = anonymous(trim=True)
        with Peak() as restore:
            checkpoints.restore_latest(shapes)
    return {
        "state_bytes": size,
        "save_adds": round((save.bytes - before) / size, 3),
        "save_gb_per_s": round(size / save.seconds / 1e9, 3),
        "restore_takes": round((restore.bytes - before_restore) / size, 3),
        "restore_gb_per_s": round(size / restore.seconds / 1e9, 3),
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tests.checkpoint.memory", __doc__)
    parser.add_argument("--layers", type=whole(1), default=20)
    arguments = parser.parse_args(argv)
    workdir = pathlib.Path(tempfile.mkdtemp())
    try:
        print(json.dumps(measure(arguments.layers, workdir)))
    finally:
        shutil.rmtree(workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
