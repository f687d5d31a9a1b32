"""Wrong configs in which one mistake breaks several rules, or several mistakes meet: as many problems as mistakes.

python -m tests.config.wrong_together > tests/config/wrong_together.md
"""

import itertools
from collections.abc import Iterator

from mm01_jax.config import MESH_AXES, Rules, fields
from tests.command_line import Parser
from tests.config.wrong_configs import Wrong, refuse, typed

PRIMES = (3, 5, 7)
# What changes which dims an axis cuts, and into how many parts.
LAYOUTS = (
    "",
    " compute.sequence_layout=zigzag",
    " train.batch_ramp=()",
    " train.num_microbatches=2",
    " mesh.rules.kv_heads=()",
    " mesh.rules.act_embed=('tensor',)",
    " mesh.rules.embed=('data','sequence')",
    " mesh.rules.embed=() mesh.rules.expert=('data',)",
    " mesh.rules.seq=() mesh.rules.batch=('data','expert','sequence')",
)
WIDE = " mesh.data=2 mesh.expert=2 mesh.tensor=2 mesh.sequence=2"
INDIVISIBLE = (
    "model.vocab_size=321",
    "model.embed_dim=129",
    "model.num_heads=5",
    "model.num_kv_heads=1",
    "model.expert_dim=255",
    "model.num_experts=3",
    "train.sequence_length=63",
    "train.batch_size=7",
    "train.num_microbatches=3",
)
RULE = "mesh.rules.{}=('{}',)"
DTYPES = ("bf16", "fp32", "float16", "half", "f32", "Float32", "32")
# Mistakes that have nothing to do with one another.
APART = (
    "mesh.tensor=3",
    "mesh.data=3",
    "mesh.expert=3",
    "mesh.sequence=3",
    "mesh.rules.embed=('tensor',)",
    "model.rotary_dim=15",
    "train.steps=0",
    "data.held_out=1.5",
    "optimizer.schedule.final=1e-3",
    "train.seeds=1",
)


def families() -> dict[str, list[Wrong]]:
    """What they are -> wrong configs, of which `mistakes` says how many each has."""
    sizes = itertools.product(MESH_AXES, PRIMES, LAYOUTS)
    rules = itertools.product(fields.field_types(Rules), MESH_AXES)
    dtypes = [key for key in fields.leaf_types() if key.endswith("dtype")]
    numbers = [key for key, kind in fields.leaf_types().items() if fields.fits(1, kind)]
    return {
        "a mesh axis of 3, 5 or 7, in nine layouts": [typed(f"mesh.{axis}={n}{more}") for axis, n, more in sizes],
        "a size that a mesh of 2 × 2 × 2 × 2 does not divide": [typed(text + WIDE) for text in INDIVISIBLE],
        "a logical axis on another mesh axis": [wrong for pair in rules if refused(wrong := typed(RULE.format(*pair)))],
        "words for a dtype": [typed(f"{key}={word}") for key, word in itertools.product(dtypes, DTYPES)],
        "negative numbers": [
            typed(f"{WIDE.strip()} {key}=-{n}", key=key, got=f"-{n}")
            for key, n in itertools.product(numbers, (1, 2, 1000))
        ],
        "two mistakes": [typed(" ".join(two)) for two in itertools.combinations(APART, 2)],
        "three mistakes": [typed(" ".join(three)) for three in itertools.combinations(APART, 3)],
    }


def refused(wrong: Wrong) -> bool:
    return refuse(wrong).error is not None


def mistakes(family: str) -> int:
    """How many each wrong config of a family has."""
    return {"two": 2, "three": 3}.get(family.split()[0], 1)


def problems(wrong: Wrong) -> int:
    """How many are told."""
    error = refuse(wrong).error
    return len(error.problems) if error else 0


def table() -> Iterator[str]:
    """A line for each family: how many problems are told of how many mistakes."""
    yield "# One cause is one problem\n"
    yield "`python -m tests.config.wrong_together > tests/config/wrong_together.md`\n"
    yield "| wrong configs | how many | mistakes in each | problems told of each | other than mistakes |"
    yield "| --- | --- | --- | --- | --- |"
    for family, wrongs in families().items():
        told, wanted = [problems(wrong) for wrong in wrongs], mistakes(family)
        counts = ", ".join(f"{n} ({told.count(n)}×)" for n in sorted(set(told)))
        yield f"| {family} | {len(wrongs)} | {wanted} | {counts} | {sum(n != wanted for n in told)} |"


def main(argv: list[str] | None = None) -> None:
    Parser("tests.config.wrong_together", __doc__).parse_args(argv)
    for line in table():
        print(line)


if __name__ == "__main__":
    main()
