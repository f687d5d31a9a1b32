"""Does the model need its mixers? configs/tiny.py trained as it is, and with both mixers' outputs replaced by zero.

    python -m benchmarks.mixers_zeroed

Without mixers a token sees only itself, so no training brings the held-out loss below the bigram entropy of the
held-out text itself; with them it has to go below.
"""

import pathlib
import tempfile

import jax.numpy as jnp

from configs import tiny
from mm01_jax.model.lightning import Lightning
from mm01_jax.model.softmax import Softmax
from mm01_jax.train import loop
from mm01_jax.train.metrics import read_metrics


def held_out_loss() -> float:
    with tempfile.TemporaryDirectory() as workdir:
        loop.run(tiny.get_config(), workdir)
        return read_metrics(pathlib.Path(workdir))[-1]["held_out_loss"]


def zero_mixers() -> None:
    """From now on every mixer outputs zero and gets no gradient."""

    def lightning(self, x_BSD, slope_N, segments_BS, state_BNHH):
        heads = (x_BSD.shape[0], self.config.num_heads, self.config.head_dim, self.config.head_dim)
        return jnp.zeros_like(x_BSD), jnp.zeros(heads, jnp.float32)

    def softmax(self, x_BSD, positions_BS, segments_BS, cache):
        return jnp.zeros_like(x_BSD), cache

    Lightning.__call__, Softmax.__call__ = lightning, softmax


def main() -> None:
    with_mixers = held_out_loss()
    zero_mixers()
    print(f"held-out loss with mixers {with_mixers:.4f}, without {held_out_loss():.4f} nats a token")


if __name__ == "__main__":
    main()
