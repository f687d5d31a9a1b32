"""What the drills of tests/ count, as rows of results: damaged checkpoints, kills, bad weights, wrong configs.

    python -m benchmarks.drills [DRILL ...] [--json=FILE]

Each drill is run with the counts of its own default; it prints its tables itself (`python -m tests.faults.NAME`). Exit
code 1 where one found what must not be.
"""

import collections
import contextlib
import pathlib
import random
import shutil
import sys
import tempfile

from benchmarks.results import Report, add_json, processor
from mm01_jax.progress import Progress
from tests.command_line import Parser, list_of
from tests.config import wrong_configs, wrong_together
from tests.faults import checkpoint_faults, checkpoint_kills, convert_bad_inputs

Counts = dict[str, int]
EACH = 50  # random damages of each kind


@contextlib.contextmanager
def _room():
    room = pathlib.Path(tempfile.mkdtemp())
    try:
        yield room
    finally:
        shutil.rmtree(room)


def damaged_checkpoints() -> tuple[Counts, bool]:
    """Checkpoints damaged in six ways, then restored."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    with _room() as room:
        table = checkpoint_faults.count(EACH, 0, room)
    total = sum(table.values(), collections.Counter())
    counts = {"damaged": EACH * len(table), "refused": total["refused"], "refused by file and tensor": total["named"]}
    counts |= {"bits unchanged": total["identical"], "silent": total["silent"]}
    return counts, not (total["silent"] or total["crash"])


def killed_saves() -> tuple[Counts, bool]:
    """kill -9 at random moments of saving and deleting."""
    with _room() as room:
        total = checkpoint_kills.count(30, 0, room)
    bad = total["wrong"] + total["unreadable"] + total["lost"]
    return {"kills": total["kills"], "steps restored right": total["right"], "wrong, unreadable or lost": bad}, not bad


def bad_weights() -> tuple[Counts, bool]:
    """Spoiled weight directories through `mm01-convert from-torch`, and random damage through `check`."""
    codes = []
    for case in convert_bad_inputs.CASES:
        with _room() as room:
            codes.append(convert_bad_inputs.run(case, room)[0])
    mutations, refused = convert_bad_inputs.MUTATIONS, 0
    with _room() as room:
        exported = convert_bad_inputs.export(room)
        for mutation in mutations:
            streams = (random.Random(f"{mutation.__name__} {seed}") for seed in range(EACH))
            found = [convert_bad_inputs.is_refused(exported, exported / "mutated", mutation, s) for s in streams]
            refused += sum(found)
    counts = {"kinds": len(codes), "refused with exit code 3": codes.count(3)}
    counts |= {"mutations": EACH * len(mutations), "mutations refused": refused}
    return counts, counts["kinds"] == codes.count(3) and refused == counts["mutations"]


def wrong_configs_of_one_mistake() -> tuple[Counts, bool]:
    """Wrong configs by hand and generated: refused with key, value, what is allowed and the nearest."""
    refusals = [
        *map(wrong_configs.refuse, wrong_configs.BY_HAND),
        *map(wrong_configs.refuse, wrong_configs.generated()),
    ]
    full = sum(refusal.in_full for refusal in refusals)
    return {"wrong": len(refusals), "refused in full": full}, full == len(refusals)


def causes() -> tuple[Counts, bool]:
    """Wrong configs in which a mistake breaks several rules: as many problems as mistakes."""
    families = wrong_together.families()
    right = sum(
        wrong_together.problems(wrong) == wrong_together.mistakes(family)
        for family, wrongs in families.items()
        for wrong in wrongs
    )
    wrong = sum(map(len, families.values()))
    return {"wrong": wrong, "as many problems as mistakes": right}, right == wrong


DRILLS = {
    "damaged checkpoints": damaged_checkpoints,
    "killed saves": killed_saves,
    "bad weights": bad_weights,
    "wrong configs": wrong_configs_of_one_mistake,
    "one cause, one problem": causes,
}
NAMES = {name.replace(", ", "_").replace(" ", "_"): name for name in DRILLS}


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.drills", __doc__)
    parser.add_argument("drills", nargs="*", metavar="DRILL", type=list_of("drill", NAMES), help="default: all")
    add_json(parser)
    arguments = parser.parse_args(argv)
    report = Report(arguments.json, "benchmarks.drills", argv, packages=("orbax-checkpoint", "safetensors"))
    names, good = sum(arguments.drills, []) or list(NAMES), True
    progress = Progress(0, len(names), sys.stderr)
    for number, name in enumerate(names, 1):
        counts, passed = DRILLS[NAMES[name]]()
        good &= passed
        for quantity, value in counts.items():
            report.add(f"{NAMES[name]}: {quantity}", value, device=processor())
        print(f"{NAMES[name]}: " + ", ".join(f"{quantity} {value}" for quantity, value in counts.items()))
        progress.show(number, name)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
