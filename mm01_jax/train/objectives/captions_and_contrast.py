"""What a vision tower is pre-trained on, before there is a language model: captions, written and told apart (CoCa).

    captions   -log p(caption | image), by a small decoder: the text model of this run, which is left behind
    contrast   -log softmax_j(u_i . v_j / t)_i and the same over i, averaged, over the images of a microbatch

u is the mean of an image's projected thumbnail features; v is what the decoder makes of the caption's last token where
it cannot see the image; both of length 1. The paper trains its ViT-L/14 so (paper 5); its temperature, the weight of
either loss and the decoder are not given. A sample is one image and one caption, several to a row.
"""

import jax
import jax.numpy as jnp

from mm01_jax.config import TrainConfig
from mm01_jax.data.batch import Batch
from mm01_jax.data.image_grid import NEWLINE
from mm01_jax.inference.scoring import token_loss
from mm01_jax.model.multimodal import VLModel
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.train.objectives import pretrain

TEMPERATURE = 0.07


def objective(
    model: VLModel, batch: Batch, total_weight: jax.Array, share: float, config: TrainConfig
) -> tuple[jax.Array, tuple[dict[str, jax.Array], RouterStats]]:
    """As `pretrain.objective`: loss is that of the captions, contrast_loss the contrastive one."""
    if batch.tiles is None:  # rows of text alone, of which there may be a whole batch
        total, (losses, stats) = pretrain.objective(model, batch, total_weight, share, config)
        return total, (losses | {"contrast_loss": jnp.zeros((), jnp.float32)}, stats)
    features_BTPD = model.features(batch.tiles, training=True)
    x = model.place(batch.tokens, features_BTPD, batch.image_index)
    hidden, _, stats = model.forward(x, batch.positions, batch.segments)
    captions = token_loss(model, hidden, batch, config.loss_chunk, total_weight)
    # Image tokens become padding: what the decoder makes of the words alone.
    unseen = jnp.where(batch.image_index >= 0, -1, batch.segments)
    words_BSD, _, _ = model.forward(model.embed_tokens(batch.tokens), batch.positions, unseen)
    pairs = contrast(features_BTPD, words_BSD, batch)
    total, losses = pretrain.with_router_losses(captions, stats, share, config)
    return total + share * pairs, (losses | {"contrast_loss": share * pairs}, stats)


def contrast(features_BTPD: jax.Array, words_BSD: jax.Array, batch: Batch) -> jax.Array:
    """The contrastive loss of the samples of a batch that have an image, float32 nats.

    A sample is found by the last token that predicts some of its caption, its first image by the lowest tile. A row has
    at most as many as half its tiles. Nothing asks in which order a row's tokens lie (`parallel/sequence_layout`).
    """
    B, T, P, D = features_BTPD.shape
    slots = max(T // 2, 1)
    learnt_BS, index_BS = batch.weights > 0, batch.image_index
    last_BS = learnt_BS & (batch.positions == _most_of_sample(jnp.where(learnt_BS, batch.positions, -1), batch))
    none = T * P + 1
    first_BS = none - _most_of_sample(jnp.where(index_BS > NEWLINE, none - index_BS, 0), batch)
    found_BS = last_BS & (first_BS < none)
    at_BN = jax.vmap(lambda row: jnp.nonzero(row, size=slots, fill_value=0)[0])(found_BS)
    real = (jnp.arange(slots)[None, :] < jnp.sum(found_BS, axis=1)[:, None]).reshape(-1)
    tile_BN = jnp.where(real.reshape(B, slots), (jnp.take_along_axis(first_BS, at_BN, axis=1) - 1) // P, 0)
    pooled_BTD = jnp.mean(features_BTPD.astype(jnp.float32), axis=2)
    u = _unit(jnp.take_along_axis(pooled_BTD, tile_BN[..., None], axis=1)).reshape(-1, D)
    v = _unit(jnp.take_along_axis(words_BSD.astype(jnp.float32), at_BN[..., None], axis=1)).reshape(-1, D)
    similar = jnp.where(real[:, None] & real[None, :], u @ v.T / TEMPERATURE, -1e9)
    own = jnp.diagonal(similar)
    lost = jax.nn.logsumexp(similar, axis=0) + jax.nn.logsumexp(similar, axis=1) - 2.0 * own
    return 0.5 * jnp.sum(jnp.where(real, lost, 0.0)) / jnp.maximum(jnp.sum(real.astype(jnp.float32)), 1.0)


def _most_of_sample(values_BS: jax.Array, batch: Batch) -> jax.Array:
    """To each token the largest value that a token of its sample has."""
    S = values_BS.shape[1]
    most_of = jax.vmap(lambda values, segments: jax.ops.segment_max(values, segments, S)[segments])
    return most_of(values_BS, batch.segments)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
