"""How well a model predicts given text: cross-entropies, of which training's objective and the evaluations are made."""

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax.data.batch import Batch
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel, embeddings
from mm01_jax.model.weights import for_product
from mm01_jax.parallel.vocabulary import cross_entropy

BANDS = 31  # of positions, each twice as long as the one before


def score(model: TextModel | VLModel, batch: Batch, *, chunk: int) -> tuple[jax.Array, jax.Array]:
    """(weighted sum of cross-entropies in nats, sum of weights) of a batch, float32; `chunk` as in `token_loss`."""
    x = embeddings(model, batch.tokens, batch.tiles, batch.image_index)
    hidden, _, _ = model.forward(x, batch.positions, batch.segments)
    return token_loss(model, hidden, batch, chunk), jnp.sum(batch.weights)


def score_by_position(model: TextModel | VLModel, batch: Batch, *, chunk: int) -> tuple[jax.Array, jax.Array]:
    """The same for each band of positions in a document, float32 (BANDS,): from 2^k - 1 on, 2^k of them."""
    x = embeddings(model, batch.tokens, batch.tiles, batch.image_index)
    hidden, _, _ = model.forward(x, batch.positions, batch.segments)
    # The sum is linear in the weights, so its gradient by them is what each token adds.
    loss_BS = jax.grad(lambda weights: token_loss(model, hidden, batch._replace(weights=weights), chunk))(batch.weights)
    band_BS = 31 - lax.clz(batch.positions + 1)

    def summed(x_BS: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(jnp.where(band_BS == band, x_BS, 0.0)) for band in range(BANDS)])

    return summed(loss_BS * batch.weights), summed(batch.weights)


def token_loss(
    model: TextModel | VLModel,
    hidden_BSD: jax.Array,
    batch: Batch,
    chunk: int,
    total_weight: jax.Array | float = 1.0,
) -> jax.Array:
    """Weighted sum of cross-entropies of a batch over `total_weight`, float32 nats.

    chunk: tokens of one device whose float32 logits exist at a time.
    """
    head = for_product(model.head, hidden_BSD.dtype, model.rules)
    return cross_entropy(hidden_BSD, head, batch.targets, batch.weights, total_weight, chunk=chunk, rules=model.rules)
