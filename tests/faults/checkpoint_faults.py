"""Damages a checkpoint in six ways and counts what a restore makes of it.

    python -m tests.faults.checkpoint_faults [--count=50] [--seed=0] [--stock]

Prints one table row for each kind of damage, `count` of each; with --stock for the same arrays saved by Orbax's own
handler. "silent" is a restore with other bits and no error: it must stay 0. Damage is made in place on a step saved
from 8 devices, the step is restored onto another mesh, and the files are put back. Bits are drawn uniformly over the
bytes of the checkpoint, files uniformly over its files.
"""

import collections
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from tests.command_line import Parser, whole


def flip_bit(files, _, random):
    sizes = np.array([file.stat().st_size for file in files])
    file = files[random.choice(len(files), p=sizes / sizes.sum())]
    raw = bytearray(file.read_bytes())
    raw[random.integers(len(raw))] ^= 1 << int(random.integers(8))
    return {file: bytes(raw)}


def truncate(files, _, random):
    file = random.choice(files)
    raw = file.read_bytes()
    return {file: raw[: random.integers(len(raw))]}


def zero_block(files, _, random):
    file = random.choice(files)
    raw = bytearray(file.read_bytes())
    start = int(random.integers(len(raw)))
    raw[start : start + 4096] = bytes(len(raw[start : start + 4096]))
    return {file: bytes(raw)}


def delete(files, _, random):
    return {random.choice(files): None}


def swap(files, _, random):
    first, second = random.choice(files, 2, replace=False)
    return {first: second.read_bytes(), second: first.read_bytes()}


def stale(files, other, random):
    """One file is that of another step of the same run."""
    twins = {file: other / file.relative_to(other.parent / "00000001") for file in files}
    file = random.choice([file for file, twin in twins.items() if twin.exists()])
    return {file: twins[file].read_bytes()}


KINDS = {
    "bit flip": flip_bit,
    "truncation": truncate,
    "zeroed block of 4 KiB": zero_block,
    "deleted file": delete,
    "two files swapped": swap,
    "file of another step": stale,
}
SCALE = 4  # chunks of 16 KiB: in smaller arrays Orbax's index, which has a checksum, outweighs the data, which has none
OUTCOMES = ("refused", "identical", "silent", "crash")


def damage(kind: str, steps: tuple[pathlib.Path, pathlib.Path], random, run) -> tuple[str, bool, str]:
    """Damages a step, restores it, and puts it back: (outcome, file and tensor named, message).

    `steps` are the step and another of the same run, `run` is (restore, the exceptions that are refusals).
    """
    (step, other), (restore, refusals) = steps, run
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
    changes = KINDS[kind](files, other, random)
    before = {file: file.read_bytes() for file in changes}
    try:
        for file, raw in changes.items():
            file.unlink() if raw is None else file.write_bytes(raw)
        return ("identical" if restore(step) else "silent"), False, ""
    except refusals as error:
        return "refused", any(is_named(file, step, str(error)) for file in changes), str(error)
    except Exception as error:  # noqa: BLE001 - any other exception is what we count
        return "crash", False, repr(error)
    finally:
        for file, raw in before.items():
            file.write_bytes(raw)


def is_named(file: pathlib.Path, step: pathlib.Path, message: str) -> bool:
    """Whether the message names the file and, when it belongs to an array, the array."""
    name = file.relative_to(step / "state").as_posix() if file.is_relative_to(step / "state") else file.name
    tensor = name.split("/")[1].replace(".", "/") if name.startswith("arrays/") else ""
    return name in message and f"tensor {tensor}" in message if tensor else name in message


def state_of(mesh: tuple[int, ...], seed: int):
    """The stand-in state with every axis but the stack SCALE times as long."""
    from tests.checkpoint.standin import LEAVES, make_mesh, make_state

    def scaled(shape, stack):
        return shape[:stack] + tuple(SCALE * n for n in shape[stack:])

    stacks = {path: 3 if "experts" in path else 2 if "stacks" in path else 0 for path in LEAVES}
    shapes = {path: (scaled(shape, stacks[path]), axes) for path, (shape, axes) in LEAVES.items()}
    return make_state(make_mesh(*mesh), seed, shapes=shapes)


def make_run(workdir: pathlib.Path):
    """Saves steps 0 and 1: a function that restores a step and says whether its bits are right, and its refusals."""
    from mm01_jax import checkpoint
    from tests.checkpoint.standin import META, abstract, bits

    with checkpoint.Checkpoints(workdir) as checkpoints:
        for step in (0, 1):
            checkpoints.save(step, state_of((1, 2, 2, 2), step), META)
    wanted = state_of((2, 1, 2, 2), 1)
    shapes, expected = abstract(wanted), bits(wanted)

    def restore(step: pathlib.Path) -> bool:
        opened = checkpoint.open_checkpoint(step, prefix="")
        return bits(opened.restore(shapes)) == expected and opened.manifest.step == 1

    return restore, checkpoint.CheckpointError


def make_stock_run(workdir: pathlib.Path):
    """The same with `save` and `load` of Orbax; whatever it raises counts as a refusal."""
    import jax
    from orbax.checkpoint import v1 as ocp

    from mm01_jax.checkpoint import leaf_paths
    from tests.checkpoint.standin import abstract, bits

    def by_path(state):  # a flat dict: Orbax 0.12.8 saves the state itself but cannot load it again (mixed key types)
        return dict(zip([p.replace("/", ".") for p in leaf_paths(state)], jax.tree.leaves(state), strict=True))

    for step in (0, 1):
        ocp.save(workdir / f"checkpoints/{step:08d}", by_path(state_of((1, 2, 2, 2), step)))
    wanted = by_path(state_of((2, 1, 2, 2), 1))
    shapes, expected = abstract(wanted), bits(wanted)
    return lambda step: bits(ocp.load(step, shapes)) == expected, Exception


def count(each: int, seed: int, workdir: pathlib.Path, make=make_run) -> dict[str, collections.Counter]:
    """Outcomes of `each` damages of every kind; "named" counts refusals that name file and tensor."""
    run, table = make(workdir), {}
    step, other = workdir / "checkpoints/00000001", workdir / "checkpoints/00000000"
    for number, kind in enumerate(KINDS):
        random, table[kind] = np.random.default_rng([seed, number]), collections.Counter()
        print(f"{kind}, {each} times ...", file=sys.stderr, flush=True)
        for _ in range(each):
            outcome, named, message = damage(kind, (step, other), random, run)
            table[kind] += collections.Counter({outcome: 1, "named": int(named)})
            if outcome == "crash":
                print(f"{kind}: {message}")
    assert run[0](step)
    return table


def as_text(table: dict[str, collections.Counter]) -> str:
    """The table as Markdown, with a row of totals."""
    rows = table | {"all": sum(table.values(), collections.Counter())}
    lines = [
        "| damage | tried | refused | naming file and tensor | bits unchanged | silent | crash |",
        "|" + " --- |" * 7,
    ]
    for kind, found in rows.items():
        tried = sum(found[outcome] for outcome in OUTCOMES)
        cells = (kind, tried, found["refused"], found["named"], found["identical"], found["silent"], found["crash"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("tests.faults.checkpoint_faults", __doc__)
    parser.add_argument("--count", type=whole(1), default=50, help="damages of each kind")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--stock", action="store_true", help="the same arrays saved by Orbax's own handler")
    arguments = parser.parse_args(argv)
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    workdir = pathlib.Path(tempfile.mkdtemp())
    try:
        table = count(arguments.count, arguments.seed, workdir, make_stock_run if arguments.stock else make_run)
    finally:
        shutil.rmtree(workdir)
    print(as_text(table))
    total = sum(table.values(), collections.Counter())
    return 1 if total["crash"] or (total["silent"] and not arguments.stock) else 0


if __name__ == "__main__":
    sys.exit(main())
