"""A trained model in int8 beside bfloat16, both beside float32: routers, layers' outputs, perplexity.

    python -m benchmarks.int8_agreement --checkpoint=runs/tiny --json=benchmarks/results/int8_agreement.json

Every layer is given the float32 model's input (the same), and what the layers before it made (its own). int8 is
computed in float32, so that what is apart is the int8 of its matrices alone.
"""

import pathlib
import sys

import jax.numpy as jnp
import numpy as np

from benchmarks.results import Report, add_json, device
from mm01_jax.convert import int8_layers
from mm01_jax.evals.perplexity import of_loss, perplexity
from mm01_jax.loading import data_of, load
from tests.command_line import Parser, whole

KINDS = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantize": "int8"},
    "int8_attention": {"dtype": "float32", "quantize": "int8_attention"},
}
SEED = 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.int8_agreement", __doc__)
    add_json(parser)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="a run of text, in float32")
    parser.add_argument("--tokens", type=whole(1), default=256, help="drawn at random, on which layers are compared")
    arguments = parser.parse_args(argv)
    report = Report(arguments.json, "benchmarks.int8_agreement", argv)

    def add(subject: str, quantity: str, value: float, unit: str = "") -> None:
        print(f"{subject}: {quantity} {value:.6g} {unit}".rstrip(), flush=True)
        report.add(f"{subject}: {quantity}", value, unit, device=device())

    exact = load(arguments.checkpoint, dtype="float32")
    shape = 1, arguments.tokens
    ids = jnp.asarray(np.random.default_rng(SEED).integers(0, exact.config.model.vocab_size, shape, np.int32))
    trained_on = data_of(arguments.checkpoint)
    expected = of_loss(perplexity(exact.model, exact.config, trained_on=trained_on).loss)
    add("float32", "perplexity", expected)
    for kind, how in KINDS.items():
        other = load(arguments.checkpoint, **how)
        for number, layer in enumerate(int8_layers.compare(exact.model, other.model, ids)):
            add(f"{kind}, layer {number}", "routers agree on the same inputs", 100 * layer.same_inputs, "%")
            add(f"{kind}, layer {number}", "routers agree on their own inputs", 100 * layer.own_inputs, "%")
            add(f"{kind}, layer {number}", "output apart", layer.output)
        found = of_loss(perplexity(other.model, other.config, trained_on=trained_on).loss)
        add(kind, "perplexity", found)
        add(kind, "perplexity over float32's", 100 * (found / expected - 1), "%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
