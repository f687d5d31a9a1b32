"""Is it the mixers that learn? configs/tiny.py trained as it is, and with the output of every mixer held at zero.

    python -m benchmarks.mixers_zeroed [--steps=N] [--json=FILE]

A model whose mixers add nothing sees one token at a time: it cannot do better than the held-out bigram entropy of the
bytes. Prints both final held-out losses beside that entropy; exit code 1 unless the real model is below it and the
other above.
"""

import dataclasses
import pathlib
import re
import sys
import tempfile
import unittest.mock

import jax
import jax.numpy as jnp

from benchmarks.results import Report, add_json, device
from configs import tiny
from mm01_jax.train import loop, step
from tests.command_line import Parser, whole

COUNTED = re.compile(r"held-out loss ([0-9.]+) .* unigram ([0-9.]+), bigram ([0-9.]+)")


def without_mixers(state: step.TrainState) -> step.TrainState:
    """The output projection of every mixer set to zero: the residual is all that passes a mixer."""

    def zero(path, weight):
        return jnp.zeros_like(weight) if re.search(r"mixer.*out\b", jax.tree_util.keystr(path)) else weight

    return dataclasses.replace(state, model=jax.tree_util.tree_map_with_path(zero, state.model))


def frozen_step(state: step.TrainState, batch, *, config):
    """A training step that starts and ends with mixers that add nothing."""
    state, metrics = _train_step(without_mixers(state), batch, config=config)
    return without_mixers(state), metrics


_train_step = step.train_step


def train(steps: int | None, zeroed: bool) -> tuple[float, float, float]:
    """(final held-out loss, unigram, bigram entropy of the same targets), nats a token."""
    config = tiny.get_config()
    if steps:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
    said = []

    def log(line: str) -> None:
        said.append(line)
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        function = frozen_step if zeroed else _train_step
        with unittest.mock.patch.object(step, "train_step", function):
            loop.run(config, str(pathlib.Path(folder) / "run"), log=log)
    (found,) = filter(None, map(COUNTED.match, said))
    loss, unigram, bigram = map(float, found.groups())
    return loss, unigram, bigram


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.mixers_zeroed", __doc__)
    parser.add_argument("--steps", type=whole(1), help="fewer than the config's, for a trial")
    add_json(parser)
    arguments = parser.parse_args(argv)
    report = Report(arguments.json, "benchmarks.mixers_zeroed", argv)
    loss, unigram, bigram = train(arguments.steps, zeroed=False)
    loss_zeroed, _, _ = train(arguments.steps, zeroed=True)
    named = {"held-out loss": loss, "held-out loss, mixers zeroed": loss_zeroed}
    named |= {"held-out unigram entropy": unigram, "held-out bigram entropy": bigram}
    for quantity, value in named.items():
        report.add(f"configs/tiny.py: {quantity}", value, "nats a byte", device=device())
    print(f"held-out entropy, nats a byte: unigram {unigram:.4f}, bigram {bigram:.4f}")
    print(f"held-out loss: as it is {loss:.4f}, mixers zeroed {loss_zeroed:.4f}")
    return 0 if loss < bigram < loss_zeroed else 1


if __name__ == "__main__":
    sys.exit(main())
