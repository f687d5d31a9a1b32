"""How well a model predicts held-out text, beside what counting achieves on the same targets."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from mm01_jax import sharding
from mm01_jax.config import Config
from mm01_jax.data import pipeline
from mm01_jax.data.dataset import open_dataset
from mm01_jax.data.entropy import entropy
from mm01_jax.data.packing import PackedRows
from mm01_jax.inference import scoring
from mm01_jax.model.decoder import TextModel
from mm01_jax.parallel import sequence_layout
from mm01_jax.progress import Progress


class Perplexity(NamedTuple):
    """loss and the entropies that counting leaves, unigram and bigram, in nats a target, over the whole text."""

    loss: float
    bits_per_byte: float
    unigram: float
    bigram: float
    num_targets: int

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f} nats a token, perplexity {math.exp(self.loss):.3f}, {self.bits_per_byte:.3f} bits "
            f"a byte on {self.num_targets:,} targets; counting on the same targets: unigram {self.unigram:.4f}, "
            f"bigram {self.bigram:.4f}"
        )


def perplexity(model: TextModel, config: Config, source: str | None = None) -> Perplexity:
    """Scores every held-out row of the run's own data, or all of `source`.

    Args:
      config: of the run that the model is from, on the current mesh.

    Raises:
      ValueError: the run held nothing out and no source is named.
      DataError: the text is damaged.
    """
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
    score = jax.jit(functools.partial(scoring.score, chunk=config.train.loss_chunk))
    placed = sharding.named(jax.sharding.get_mesh(), config.mesh.rules, "batch", "seq")
    order = sequence_layout.order(config.train.sequence_length, config.mesh, config.compute.sequence_layout)
    progress, total = Progress(0, len(batches)), np.zeros(2)
    for number, batch in enumerate(batches, 1):
        total += jax.device_get(score(model, pipeline.whole_to_global(batch, placed, order)))
        progress.show(number, f"loss {total[0] / max(total[1], 1.0):.4f}")
    counted, loss = entropy(batches), total[0] / total[1]
    bits_per_byte = loss / math.log(2) * dataset.targets_per_byte
    return Perplexity(loss, bits_per_byte, counted.unigram, counted.bigram, counted.num_targets)
