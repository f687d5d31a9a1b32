"""Runs with a training step that costs nothing in the place of the real one, and what they leave behind."""

import jax
import jax.numpy as jnp

from mm01_jax import command
from mm01_jax.train import loop, step
from mm01_jax.train.metrics_file import read_metrics
from tests import small

BAD_STEPS: set[int] = set()  # steps that the cheap step reports as refused
BROKEN_STEPS: set[int] = set()  # steps that it reports as broken


def cheap_step(state, batch, *, config):
    """Adds what depends on the batch, the step and the old weights, so that a step lost or done twice shows."""
    seen = jnp.sum(batch.tokens * (1 + batch.positions)).astype(jnp.float32) * 1e-6
    step_number = state.step.astype(jnp.float32)
    bad, broken = (
        jnp.any(jnp.asarray(sorted(steps) or [-1], jnp.int32) == state.step + 1) for steps in (BAD_STEPS, BROKEN_STEPS)
    )
    model = jax.tree.map(lambda x: jnp.where(bad, x, x * 0.99 + seen * (1 + step_number)), state.model)
    loss = jnp.where(bad, jnp.nan, jnp.sum(state.model.embed[...]) + seen)
    zero = jnp.zeros((), jnp.float32)
    names = ("grad_norm", "learning_rate", "overflow", "dropped")
    load = jnp.ones((config.model.num_layers, config.model.num_experts), jnp.float32)
    flags = {"refused": bad.astype(jnp.float32), "broken": broken.astype(jnp.float32)}
    metrics = dict.fromkeys(names, zero) | flags | {"loss": loss, "expert_load": load}
    return step.TrainState(state.step + 1, model, state.opt_state), metrics


def cheap_score(model, batch, *, chunk):
    del chunk
    return jnp.sum(jnp.abs(model.embed[...])), jnp.sum(batch.weights)


def use(monkeypatch) -> None:
    """Puts the cheap step in place, on one device."""
    monkeypatch.setattr(loop.step, "train_step", cheap_step)
    monkeypatch.setattr(loop.scoring, "score", cheap_score)
    small.use_one_device(monkeypatch)
    BAD_STEPS.clear()
    BROKEN_STEPS.clear()


def run(workdir, config, said=None, init_from=None):
    """What was said, the losses by step, the digest of the last checkpoint."""
    said = [] if said is None else said
    loop.run(config, str(workdir), init_from, said.append)
    return said, losses(workdir), digest(workdir)


def exit_code(workdir, config, init_from=None) -> int:
    """Of the training command; what went wrong is on stderr."""
    return command.run(lambda _: loop.run(config, str(workdir), init_from), [])


def losses(workdir) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(workdir)]


def steps_saved(workdir) -> list[int]:
    return [int(p.name) for p in sorted((workdir / "checkpoints").iterdir()) if p.name.isdecimal()]


def digest(workdir) -> str:
    return small.tree_digest(workdir / "checkpoints" / f"{steps_saved(workdir)[-1]:08d}")


def damage(workdir, step_number: int, leaf: str = "") -> None:
    """Turns over one byte of the largest file of a step, or of one leaf."""
    arrays = workdir / "checkpoints" / f"{step_number:08d}" / "state" / "arrays" / leaf
    files = [p for p in arrays.rglob("*") if p.is_file()]
    file = max(files, key=lambda p: p.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    file.write_bytes(raw)


def after_step(monkeypatch, at: int, act) -> None:
    """Calls `act` when the batch of step `at` goes to the device."""
    original = loop._Loop._on_devices

    def on_devices(self, batch, step_number):
        if step_number + 1 == at:
            act()
        return original(self, batch, step_number)

    monkeypatch.setattr(loop._Loop, "_on_devices", on_devices)
