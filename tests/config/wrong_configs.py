"""Sixty wrong configs by hand and five hundred generated ones, and the table of how each is refused.

python -m tests.config.wrong_configs [--count=500] > tests/config/wrong_configs.md
"""

import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from mm01_jax.config import MESH_AXES, Config, ConfigError, fields, rules
from mm01_jax.config.command_line import load_config
from mm01_jax.config.mesh import mesh_problems
from mm01_jax.config.saved import from_json, to_json
from tests.command_line import Parser, whole

ROOT = pathlib.Path(__file__).parents[2]
BASE = "tests/config/wrong_base.py"
NUM_GENERATED = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong:
    """One wrong config: how it is made, and what its refusal must name."""

    title: str
    make: Callable[[], Config]  # raises ConfigError
    key: str  # in the message
    got: str  # in the message
    nearest: str | None = None  # in the nearest of a problem; None: any nearest will do
    overrides: tuple[str, ...] | None = None  # what to type after --config=BASE, where it can be typed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    wrong: Wrong
    error: ConfigError | None
    seconds: float

    @property
    def in_full(self) -> bool:
        """Refused with the key, the value, what is allowed, and the nearest valid choice that the case names."""
        if self.error is None or not (self.wrong.key in str(self.error) and self.wrong.got in str(self.error)):
            return False
        near = [problem.nearest for problem in self.error.problems if problem.allowed and problem.nearest]
        return any((self.wrong.nearest or "") in nearest for nearest in near)


def refuse(wrong: Wrong) -> Refusal:
    start, error = time.perf_counter(), None
    try:
        wrong.make()
    except ConfigError as raised:
        error = raised
    return Refusal(wrong=wrong, error=error, seconds=time.perf_counter() - start)


def typed(text: str, nearest: str | None = None, *, key: str | None = None, got: str | None = None) -> Wrong:
    """Overrides on the command line, separated by blanks; `key` and `got` are those of the first unless given."""
    overrides = tuple(text.split(" "))
    first_key, _, first_value = overrides[0].partition("=")
    return Wrong(
        title=text,
        make=lambda: load_config(str(ROOT / BASE), overrides),
        key=key or first_key,
        got=first_value if got is None else got,
        nearest=nearest,
        overrides=overrides,
    )


def in_file(code: str, key: str, got: str, nearest: str) -> Wrong:
    """The body of get_config in a config file, after the imports and `base`, the valid config."""

    def make() -> Config:
        lines = ["import dataclasses", "from mm01_jax.config import *", "from tests.config import wrong_base", ""]
        lines += ["def get_config():", "    base = wrong_base.get_config()", f"    {code}", ""]
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "wrong.py")
            file.write_text("\n".join(lines))
            return load_config(str(file))

    return Wrong(title=f"file: {code}", make=make, key=key, got=got, nearest=nearest)


def saved(title: str, edit: Callable[[dict], None], key: str, got: str, nearest: str) -> Wrong:
    """A saved JSON config with one thing changed."""

    def make() -> Config:
        plain = json.loads(to_json(base()))
        edit(plain)
        return from_json(json.dumps(plain))

    return Wrong(title=f"json: {title}", make=make, key=key, got=got, nearest=nearest)


def on_devices(num_devices: int, *overrides: str, got: str, nearest: str) -> Wrong:
    """A config that is right by itself, on a machine with another number of devices."""

    def make() -> Config:
        config = load_config(str(ROOT / BASE), overrides)
        if found := mesh_problems(config, num_devices):
            raise ConfigError(found)
        return config

    title = f"{num_devices} devices: {' '.join(overrides) or 'mesh of 1'}"
    return Wrong(title=title, make=make, key="mesh", got=got, nearest=nearest)


def base() -> Config:
    return load_config(str(ROOT / BASE))


BY_HAND = (
    # Names.
    typed("train.stpes=3", "train.steps"),
    typed("trian.steps=3", "train.steps"),
    typed("model.steps=3", "train.steps"),
    typed("steps=3", "train.steps"),
    typed("model.hiden_dim=64", "model.head_dim"),
    typed("model.n_heads=8", "model.num_heads"),
    typed("model.num_expert=8", "model.num_experts"),
    typed("model.top_k_experts=2", "experts"),
    typed("optimizer.peak=1e-3", "optimizer.schedule.peak"),
    typed("optimizer.schedule.warmup=5", "optimizer.schedule.warmup_steps"),
    typed("mesh.tensors=2", "mesh.tensor"),
    typed("mesh.rules.head=('tensor',)", "mesh.rules.heads"),
    typed("data.tokeniser=bytes", "data.tokenizer"),
    typed("train=3", "train.steps"),
    typed("train.steps", "--config.train.steps=VALUE", got="no value"),
    # Types and choices.
    typed("train.steps=many", "1"),
    typed("train.steps=1e3", "1000"),
    typed("train.seed=1.5", "2"),
    typed("model.rope_theta=big", "10000000.0"),
    typed("compute.dtype=bf16", "'bfloat16'"),
    typed("model.routing=droples", "'dropless'"),
    typed("compute.remat=True", "'auto'"),
    typed("train.balance_loss=transformer", "'transformers'"),
    typed("model.period=lightning", "('lightning',)"),
    typed("model.period=('lightning','sofmax')", "('lightning', 'softmax')", got="sofmax"),
    typed("model.period=()", "('lightning',)"),
    typed("train.batch_ramp=20", "()"),
    typed("optimizer.clip_norm=off", "1.0"),
    # Ranges.
    typed("train.steps=-5", "1"),
    typed("train.steps=0", "1"),
    typed("train.steps=3000000000", "2147483647"),
    typed("optimizer.schedule.peak=nan", "0.0002"),
    typed("optimizer.eps=inf", "1e-08"),
    typed("optimizer.b2=1.0", "0.95"),
    typed("optimizer.weight_decay=-0.1", "0.0"),
    typed("data.held_out=1.5", "0.02"),
    typed("compute.dropless_bound=0.5", "1.0"),
    typed("model.capacity_factor=0", "1.25"),
    typed("train.loss_chunk=0", "1"),
    typed("name=my/run", "my_run"),
    # Values that do not go together.
    typed("model.num_kv_heads=3", "2"),
    typed("model.rotary_dim=15", "14"),
    typed("model.rotary_dim=64", "32"),
    typed("model.num_experts_per_token=5", "4"),
    typed("model.vocab_size=256", "257"),
    typed("model.routing=capacity compute.dropless_bound=2.0", "None", key="compute.dropless_bound", got="2.0"),
    typed("optimizer.schedule.stepped=None", "step_down_at=None"),
    typed("optimizer.schedule.warmup_steps=60", "61", key="optimizer.schedule.step_down_at"),
    typed("optimizer.schedule.decay_start=59", "61", key="optimizer.schedule.decay_start"),
    typed("optimizer.schedule.final=1e-3", "0.00013", got="0.001"),
    typed("train.batch_ramp=((40,16),(20,32))", "((20, 16), (40, 32))", got="((40, 16), (20, 32))"),
    # The mesh.
    typed("mesh.tensor=3", "2"),
    typed("mesh.data=3", "2"),
    typed("mesh.rules.ffn=['tensr']", "('tensor',)", got="tensr"),
    typed("mesh.rules.embed=('tensor',)", "()"),
    on_devices(8, "mesh.data=4", got="data=4", nearest="--config.mesh.data=8"),
    on_devices(6, "mesh.data=4", got="data=4", nearest="none of the meshes of 6 devices"),
    # Files.
    in_file("return dataclasses.replace(base, train=TrainConfig(stpes=3))", "line 7", "stpes", "steps"),
    in_file("return dataclasses.asdict(base)", "get_config()", "{'name': 'base'", "configs/tiny.py"),
    saved("stpes for steps", lambda c: c["train"].update(stpes=c["train"].pop("steps")), "train.stpes", "100", "steps"),
)


def generated(count: int = NUM_GENERATED, seed: int = 1) -> Iterator[Wrong]:
    """Wrong configs without end of invention: the same ones for the same seed."""
    rng = random.Random(seed)
    makers = (_mistyped_key, _wrong_text, _not_a_number, _too_small, _wrong_object, _indivisible)
    for index in range(count):
        yield makers[index % len(makers)](rng)


def _mistyped_key(rng: random.Random) -> Wrong:
    known = fields.leaf_types()
    while True:
        key = rng.choice([leaf for leaf in known if len(leaf.rpartition(".")[2]) > 3])
        section, dot, name = key.rpartition(".")
        at = rng.randrange(len(name) - 1)
        swapped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
        typo = rng.choice([name[:at] + name[at + 1 :], name[: at + 1] + name[at:], swapped])
        if section + dot + typo not in known:
            return typed(f"{section}{dot}{typo}=1", key)


def _numbers() -> list[str]:
    return [key for key, kind in fields.leaf_types().items() if fields.fits(1, kind)]


def _wrong_text(rng: random.Random) -> Wrong:
    keys = [key for key, kind in fields.leaf_types().items() if kind is not str]
    return typed(f"{rng.choice(keys)}={rng.choice(['many', '[1,', '{}', 'yes', '0x', '1..2', 'b7', '--'])}")


def _not_a_number(rng: random.Random) -> Wrong:
    return typed(f"{rng.choice(_numbers())}={rng.choice(['nan', 'inf', '-inf'])}")


def _too_small(rng: random.Random) -> Wrong:
    return typed(f"{rng.choice(_numbers())}={-rng.choice([1, 2, 7, 10**6])}")


def _wrong_object(rng: random.Random) -> Wrong:
    key = rng.choice([key for key, kind in fields.leaf_types().items() if kind is not bool])  # True is none's value
    value = rng.choice([True, b"8", [1], {"a": 1}, {8}, 1j, object, (None,), 10**5000])
    wrong = fields.replace(base(), key, value)
    got = "" if type(value) is int else repr(value)  # Python prints no number of 5000 digits
    title = f"file: {key} = {got or '10**5000'}"
    return Wrong(title=title, make=lambda: rules.check(wrong), key=key, got=got)


def _indivisible(rng: random.Random) -> Wrong:
    axis, prime = rng.choice(MESH_AXES), rng.choice([3, 5, 7, 11, 13])
    return typed(f"mesh.{axis}={prime}", got=f"{prime}")


def command_line(wrong: Wrong) -> tuple[int, str, float]:
    """Exit code, stderr and seconds of train_main.py started with this config."""
    command = [sys.executable, "train_main.py", f"--config={BASE}", "--workdir=runs/refused"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, *(f"--config.{text}" for text in wrong.overrides)], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stderr, time.perf_counter() - start


def table(count: int = NUM_GENERATED) -> Iterator[str]:
    """The refusals as Markdown: sixty by hand, `count` generated."""
    yield "# Wrong configs\n"
    yield "`python -m tests.config.wrong_configs > tests/config/wrong_configs.md`, all before jax is imported.\n"
    yield "| what was typed, or done in a file | key | got | allowed | nearest | ms | process, s (exit) |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for refusal in map(refuse, BY_HAND):
        problem = refusal.error.problems[0]
        code, _, seconds = command_line(refusal.wrong) if refusal.wrong.overrides else (None, "", 0.0)
        process = f"{seconds:.2f} ({code})" if code is not None else "–"
        key = problem.key.rpartition("/")[2]  # of a path, the file
        cells = (refusal.wrong.title, key, repr(problem.got), problem.allowed, problem.nearest)
        short = (cell if len(cell) <= 90 else f"{cell[:87]}..." for cell in map(str, cells))
        yield f"| {' | '.join(c.replace('|', '¦') for c in short)} | {refusal.seconds * 1e3:.1f} | {process} |"
    made = [refuse(wrong) for wrong in generated(count)]
    slowest = max(refusal.seconds for refusal in made)
    yield f"\nGenerated: {len(made)}, refused {sum(refusal.error is not None for refusal in made)}, with key, value, "
    yield f"allowed and nearest {sum(refusal.in_full for refusal in made)}; slowest {slowest * 1e3:.1f} ms."


def main(argv: list[str] | None = None) -> None:
    parser = Parser("tests.config.wrong_configs", __doc__)
    parser.add_argument("--count", type=whole(1), default=NUM_GENERATED, help="generated ones")
    for line in table(parser.parse_args(argv).count):
        print(line, flush=True)


if __name__ == "__main__":
    main()
    assert "jax" not in sys.modules
