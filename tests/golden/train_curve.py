"""Twenty steps of the smallest model on fixed weights and tokens: their losses, and the metrics of the first.

    python -m tests.golden.train_curve > tests/golden/train_curve.json

The numbers come with their own tolerance: how far they move when every weight is moved by two to four units in its
last place. Another version of jax, or another CPU, rounds differently and moves them about as much.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax.config import Config
from mm01_jax.train import step
from tests import small
from tests.command_line import Parser

STEPS = 20
SEGMENTS = [[0] * 20 + [1] * 12, [0] * 31 + [-1], [3] * 5 + [4] * 27, [-1] * 10 + [1] * 22]
CONFIG = small.config(train__steps=STEPS, train__batch_size=4, train__num_microbatches=2, train__z_loss_coef=1e-3)
METRICS = ("loss", "grad_norm", "learning_rate", "expert_load")


def start(config: Config, perturb: float) -> step.TrainState:
    """Weights from NumPy, whose generators never change: normal, std 0.2; norms about one."""
    state = small.unoptimised(functools.partial(step.init_state, config))(jax.random.key(0))
    random, noise = np.random.RandomState(0), np.random.RandomState(1)

    def fill(weight):
        values = 0.2 * random.standard_normal(weight.shape) + float(weight.ravel()[0] == 1.0)
        values *= 1 + perturb * noise.choice([-1, 1], size=weight.shape)
        return jnp.asarray(values, weight.dtype)

    return step.state_of(config, jax.tree.map(fill, state.model))


def curve(perturb: float = 0.0) -> dict[str, list]:
    """ "losses" of all steps, and each of METRICS after the first."""
    run = small.unoptimised(functools.partial(step.train_step, config=CONFIG))
    state, found = start(CONFIG, perturb), {"losses": []}
    for number in range(STEPS):
        state, metrics = run(state, small.batch(SEGMENTS, seed=number % 3))
        found["losses"].append(float(metrics["loss"]))
        if number == 0:
            found |= {name: np.asarray(metrics[name]).tolist() for name in METRICS}
    return found


def main(argv: list[str] | None = None) -> None:
    Parser("tests.golden.train_curve", __doc__).parse_args(argv)
    with small.one_device():
        golden, moved = curve(), curve(perturb=2.0**-22)
    moves = {name: np.abs(np.subtract(golden[name], moved[name])).max() for name in golden}
    json.dump({"values": golden, "moves": {name: float(move) for name, move in moves.items()}}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
