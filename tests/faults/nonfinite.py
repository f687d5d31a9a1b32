"""Runs that go bad at their third step: a learning rate, weights or a batch that no number survives.

Steps 1 and 2 are good and saved one at a time (`train.keep_checkpoints=1`), so that whatever is saved later retires
them. The step is the real one.
"""

import json
import math
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import checkpoint, command
from mm01_jax.train import loop, step
from tests import small

COUNT = 50
STEPS = 6
GOOD = 2  # steps before the fault
_VALUES = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 1e20)


def cases(seed: int = 0) -> dict[str, dict[str, object]]:
    """Title -> what goes bad: the rate of a step, a weight of the model begun from, a field of a batch."""
    generator = random.Random(seed)
    found = []
    for _ in range(20):
        rate = generator.choice([math.nan, math.inf, 1e308, 10 ** generator.uniform(0, 300), -1e300, 3e38])
        found.append({"kind": "rate", "value": rate})
    for _ in range(15):
        found.append({"kind": "weight", "value": generator.choice(_VALUES), "seed": generator.randrange(10**6)})
    for _ in range(15):
        value = generator.choice([math.nan, math.inf, 3e38, 1e30, -1])
        field = generator.choice(["weights", "weights", "tokens", "targets"])
        found.append({"kind": "batch", "value": value, "field": field, "seed": generator.randrange(10**6)})
    return {f"{n:02} {bad['kind']} {bad.get('field', '')} {bad['value']:.3g}": bad for n, bad in enumerate(found)}


def run(bad: str, room: str) -> int:
    """Trains with the fault in this process, a child of the server of forked calls; the exit code of the run."""
    bad, folder = json.loads(bad), pathlib.Path(room)
    config = small.config(
        small.write_text(folder / "in"),
        train__steps=STEPS,
        train__checkpoint_every=1,
        train__keep_checkpoints=1,
        train__tensorboard=False,
        data__held_out=0.0,
        model__period=("lightning",),
    )
    loop.report.draw = lambda *_: []
    workdir, init_from = folder / "out" / "run", None
    if bad["kind"] == "rate":
        _spoil_rate(bad["value"])
    elif bad["kind"] == "batch":
        _spoil_batch(bad)
    else:
        init_from = str(folder / "out" / "origin")
        _save_spoilt(pathlib.Path(init_from), config, bad)
    taken = command.run(lambda _: loop.run(config, str(workdir), init_from), [])
    problem = _kept(workdir, config, taken)
    if problem:
        print(f"WRONG: {problem}")
    return 1 if problem else 0


def _spoil_rate(value: float) -> None:
    # 1e308 is infinity to a device; NumPy would warn of the cast.
    bad = np.float32(value) if not abs(value) > 3e38 else np.float32(math.copysign(math.inf, value))

    def learning_rate(schedule, steps):
        return lambda taken: jnp.where(jnp.asarray(taken) >= GOOD, bad, np.float32(schedule.peak))

    step.learning_rate = learning_rate
    step.make_optimizer.__globals__["learning_rate"] = learning_rate


def _spoil_batch(bad: dict[str, object]) -> None:
    original, generator = loop._Loop._on_devices, random.Random(bad["seed"])

    def on_devices(self, batch, at):
        if at >= GOOD:
            array = np.array(getattr(batch, bad["field"]))
            value = bad["value"] if array.dtype.kind == "f" or abs(bad["value"]) < 2**31 else 2**31 - 1
            array.flat[generator.randrange(array.size)] = value
            batch = batch._replace(**{bad["field"]: array})
            loop.pipeline.check_batch(batch, self.config.model.vocab_size, self.row)
        return original(self, batch, at)

    loop._Loop._on_devices = on_devices


def _save_spoilt(origin: pathlib.Path, config, bad: dict[str, object]) -> None:
    """A sound checkpoint of weights one of which is bad."""
    generator = np.random.default_rng(bad["seed"])
    with small.one_device():
        state = jax.jit(lambda key: step.init_state(config, key))(jax.random.key(0))
        leaves, structure = jax.tree.flatten(state.model)
        at = generator.integers(len(leaves))
        spoilt = np.array(leaves[at])
        spoilt.flat[generator.integers(spoilt.size)] = bad["value"]
        leaves[at] = jax.device_put(spoilt, leaves[at].sharding)
        state = step.TrainState(state.step, jax.tree.unflatten(structure, leaves), state.opt_state)
        with checkpoint.Checkpoints(origin, keep=1) as checkpoints:
            checkpoints.save(1, state, {"config": json.loads(loop.saved.to_json(config)), "row": 0})
            checkpoints.wait()


def _kept(workdir: pathlib.Path, config, code: int) -> str | None:
    """What is wrong with what a run has left: finite numbers alone, and a newest step that restores."""
    if code not in (0, 3, 4):
        return f"exit {code}"
    steps = sorted(workdir.glob("checkpoints/[0-9]*"))
    for directory in steps:
        found = checkpoint.Checkpoint(directory)
        for path, leaf in found.leaves.items():
            for index in np.ndindex(leaf.shape[: leaf.stack]):
                if not np.isfinite(np.asarray(found.read(path, index), np.float64)).all():
                    return f"{directory.name}: {path} {index} is not finite"
    if not steps:
        return None if code in (3, 4) else f"exit {code} and nothing saved"
    with small.one_device(), checkpoint.Checkpoints(workdir, keep=1) as checkpoints:
        restored = checkpoints.restore_latest(step.abstract_state(config, jax.sharding.get_mesh()))
    return None if restored.step == int(steps[-1].name) else f"restored {restored.step} of {[s.name for s in steps]}"
