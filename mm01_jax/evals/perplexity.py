"""How well a checkpoint predicts held-out text: python -m mm01_jax.evals.perplexity --checkpoint=runs/tiny

Scores every held-out row of the run's own data, or all of `--source`, and prints nats a token, perplexity and bits a
byte beside what counting achieves on the same targets.
"""

import dataclasses
import functools
import math
import sys

import jax
import numpy as np
from absl import flags

from mm01_jax import checkpoint, sharding
from mm01_jax.config import MeshConfig
from mm01_jax.data import pipeline
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.entropy import entropy
from mm01_jax.data.packing import PackedRows
from mm01_jax.data.text import DataError
from mm01_jax.loading import load
from mm01_jax.parallel import sequence_layout
from mm01_jax.train import step
from mm01_jax.train.metrics import Progress


def evaluate(directory: str, source: str | None) -> dict[str, float]:
    """loss, unigram and bigram entropy (nats a target), bits_per_byte and num_targets over the whole text."""
    model, _, config = load(directory)
    if source is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, held_out=0.0))
    dataset = open_dataset(config.data, config.train.sequence_length, config.model.vocab_size)
    rows = dataset.held_out
    if source is not None:
        rows = PackedRows(dataset.train.documents, config.train.sequence_length, config.data.seed, epochs=1)
    if rows is None:
        raise ValueError("data.held_out=0: this run kept no text for evaluation; name some with --source")
    size = config.train.batch_size
    batches = [b for _, b in pipeline.batches(rows, 0, lambda _: size, vocab_size=config.model.vocab_size)]
    score = jax.jit(functools.partial(step.eval_step, config=config))
    placed = sharding.named(jax.sharding.get_mesh(), config.mesh.rules, "batch", "seq")
    order = sequence_layout.order(config.train.sequence_length, config.mesh, config.compute.sequence_layout)
    progress, total = Progress(0, len(batches)), np.zeros(2)
    for number, batch in enumerate(batches, 1):
        total += jax.device_get(score(model, pipeline.whole_to_global(batch, placed, order)))
        progress.show(number, f"loss {total[0] / max(total[1], 1.0):.4f}")
    counted, loss = entropy(batches), total[0] / total[1]
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2) * dataset.targets_per_byte,
        "unigram": counted.unigram,
        "bigram": counted.bigram,
        "num_targets": counted.num_targets,
    }


def main(argv: list[str]) -> int:
    flags.DEFINE_string("checkpoint", None, "a run's work directory, one of its steps, or a conversion")
    flags.DEFINE_string("source", None, "text to score instead of the run's held-out split")
    try:
        flags.FLAGS(argv)
        if flags.FLAGS.checkpoint is None:
            raise ValueError("--checkpoint is missing; e.g. --checkpoint=runs/tiny")
        with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
            found = evaluate(flags.FLAGS.checkpoint, flags.FLAGS.source)
    except (ValueError, flags.Error) as error:
        print(error, file=sys.stderr)
        return 2
    except (DataError, checkpoint.CheckpointError) as error:
        print(error, file=sys.stderr)
        return 3
    print(
        f"\nloss {found['loss']:.4f} nats a token, perplexity {math.exp(found['loss']):.3f}, "
        f"{found['bits_per_byte']:.3f} bits a byte on {found['num_targets']:,} targets; counting on the same targets: "
        f"unigram {found['unigram']:.4f}, bigram {found['bigram']:.4f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
