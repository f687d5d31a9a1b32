"""How well a model predicts held-out text, beside what counting achieves on the same targets."""

import dataclasses
import math
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from mm01_jax import sharding
from mm01_jax.config import Config, MeshConfig
from mm01_jax.data import pipeline
from mm01_jax.data.dataset import check_unchanged, open_dataset
from mm01_jax.data.entropy import entropy
from mm01_jax.data.packing import PackedRows, Rows
from mm01_jax.inference import nonfinite, scoring
from mm01_jax.model.decoder import TextModel
from mm01_jax.parallel import sequence_layout
from mm01_jax.progress import Progress

TOKENS = 2**16  # of a batch on one device, at most
_LEAST = 2**10  # as many at least, where rows are shorter
_BLOCK = 2**11  # positions; a multiple of the mixers' own blocks
_MOST_NATS = math.log(sys.float_info.max)


class Band(NamedTuple):
    """Targets whose position in their document is from `first` to `last`; loss in nats a target."""

    first: int
    last: int
    loss: float
    num_targets: int


class Perplexity(NamedTuple):
    """loss and the entropies that counting leaves, unigram and bigram, in nats a target, over the whole text; bands: of
    positions, where asked for."""

    loss: float
    bits_per_byte: float
    unigram: float
    bigram: float
    num_targets: int
    bands: tuple[Band, ...] = ()

    def __str__(self) -> str:
        said = (
            f"loss {self.loss:.4f} nats a token, perplexity {of_loss(self.loss):.3f}, {self.bits_per_byte:.3f} bits "
            f"a byte on {self.num_targets:,} targets; counting on the same targets: unigram {self.unigram:.4f}, "
            f"bigram {self.bigram:.4f}"
        )
        if not self.bands:
            return said
        lines = [f"{'position in the document':>25}{'nats a token':>15}{'perplexity':>13}{'targets':>13}"]
        for band in self.bands:
            where = f"{band.first:,} to {band.last:,}"
            lines.append(f"{where:>25}{band.loss:>15.4f}{of_loss(band.loss):>13.3f}{band.num_targets:>13,}")
        return "\n".join([*lines, "", said])


def of_loss(nats: float) -> float:
    """exp(nats), infinite where float64 has no such number: a model may be as wrong as its weights are large."""
    return math.exp(nats) if nats < _MOST_NATS else math.inf


def perplexity(
    model: TextModel,
    config: Config,
    source: str | None = None,
    *,
    trained_on: dict[str, Any] | None = None,
    by_position: bool = False,
) -> Perplexity:
    """Scores every held-out row of the run's own data, or all of `source`, on the mesh that the model lies on.

    Every process of the mesh calls it alike; rows of padding fill up the last batch.

    Args:
      config: of the run that the model is from.
      trained_on: the manifest of its data (`Dataset.manifest`), with which the run's own data is compared.
      by_position: score each band of positions by itself, too.

    Raises:
      ValueError: the run held nothing out and no source is named; its rows cannot be cut over `sequence`.
      DataError: the text is damaged, or the run's own data is not what it was trained on.
      NotFinite: the loss is no number; says in which layer that began.
    """
    mesh = sharding.mesh_of(model)
    sizes = MeshConfig(**mesh.shape, rules=model.rules)
    rows, targets_per_byte = _rows(config, source, trained_on)
    rows, length = _no_longer(rows, config.train.sequence_length, sizes)
    order = sequence_layout.order(length, sizes, model.compute.sequence_layout)
    size = _batch_size(config, sizes, length)
    batches = [b for _, b in pipeline.batches(rows, 0, lambda _: size, vocab_size=config.model.vocab_size)]
    placed = sharding.named(mesh, model.rules, "batch", "seq")
    progress, total = Progress(0, len(batches)) if jax.process_index() == 0 else None, np.zeros((2, 1))
    score = _score_by_position if by_position else _score
    for number, batch in enumerate(batches, 1):
        with jax.set_mesh(mesh):
            scored = score(model, pipeline.whole_to_global(batch, placed, order), chunk=config.train.loss_chunk)
        total = total + np.array(jax.device_get(scored), np.float64).reshape(2, -1)
        if not np.isfinite(total).all():
            nonfinite.report(model, batches[number - 1].tokens, batches[number - 1].segments)
        if progress:
            progress.show(number, f"loss {total[0].sum() / max(total[1].sum(), 1.0):.4f}")
    counted, loss = entropy(batches), total[0].sum() / total[1].sum()
    bits_per_byte = loss / math.log(2) * targets_per_byte
    return Perplexity(loss, bits_per_byte, counted.unigram, counted.bigram, counted.num_targets, _bands(total))


_score = jax.jit(scoring.score, static_argnames="chunk")
_score_by_position = jax.jit(scoring.score_by_position, static_argnames="chunk")


def _bands(total: np.ndarray) -> tuple[Band, ...]:
    """total: losses and weights, (2, BANDS), or (2, 1) where no bands were asked for."""
    if total.shape[1] == 1:
        return ()
    return tuple(
        Band(2**number - 1, 2 ** (number + 1) - 2, loss / weight, round(weight))
        for number, (loss, weight) in enumerate(total.T)
        if weight
    )


def _rows(config: Config, source: str | None, trained_on: dict[str, Any] | None) -> tuple[Rows, float]:
    """(what is scored, targets a byte of it)."""
    data, length = config.data, config.train.sequence_length
    if source is not None:
        data = dataclasses.replace(data, source=source, held_out=0.0)
    dataset = open_dataset(data, length, config.model.vocab_size, vision=config.vision)
    rows = dataset.held_out
    if source is None and trained_on is not None:
        check_unchanged(trained_on, dataset.manifest)
    if source is not None:
        rows = PackedRows(dataset.train.documents, length, data.seed, epochs=1)
    if rows is None:
        raise ValueError("data.held_out=0: this run kept no text for evaluation; name some with --source")
    return rows, dataset.targets_per_byte


def _no_longer(rows: Rows, length: int, mesh: MeshConfig) -> tuple[Rows, int]:
    """(rows that hold what is in those, their length): a checkpoint's own may be any number, for a text of any size."""
    tokens_D = rows.documents.num_tokens_D
    needed = int(tokens_D.sum(dtype=np.int64)) + len(tokens_D)  # an end behind each
    unit = _BLOCK * 2 * mesh.shards("seq", "act_seq")  # stripes and slices of whole blocks
    if (enough := -(-needed // unit) * unit) >= length:
        return rows, length
    stream = getattr(rows, "stream", rows)
    return type(stream)(rows.documents, enough, stream.seed, epochs=1), enough


def _batch_size(config: Config, mesh: MeshConfig, length: int) -> int:
    """Rows of a batch: a multiple of the shards of `batch`; each at most as many as in training and as TOKENS allow.

    Of short rows more than in training: a checkpoint that says one token a row would have a batch made of each.
    """
    shards = mesh.shards("batch")
    of_training = max(-(-config.train.batch_size // shards), _LEAST // length)
    return shards * max(1, min(of_training, TOKENS * mesh.shards("seq") // length))
