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
from mm01_jax.inference.scoring import token_loss
from mm01_jax.model.multimodal import VLModel
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.train.objectives.pretrain import balance_loss

TEMPERATURE = 0.07


def objective(
    model: VLModel, batch: Batch, total_weight: jax.Array, share: float, config: TrainConfig
) -> tuple[jax.Array, tuple[dict[str, jax.Array], RouterStats]]:
    """As `pretrain.objective`: loss is that of the captions, contrast_loss the contrastive one."""
    features_BTPD = model.features(batch.tiles, training=True)
    x = model.place(batch.tokens, features_BTPD, batch.image_index)
    hidden, _, stats = model.forward(x, batch.positions, batch.segments)
    captions = token_loss(model, hidden, batch, config.loss_chunk, total_weight)
    # Image tokens become padding: what the decoder makes of the words alone.
    unseen = jnp.where(batch.image_index >= 0, -1, batch.segments)
    words_BSD, _, _ = model.forward(model.embed_tokens(batch.tokens), batch.positions, unseen)
    pairs = contrast(features_BTPD, words_BSD, batch)
    balance = balance_loss(stats, config.balance_loss)
    losses = {"loss": captions, "contrast_loss": share * pairs, "balance_loss": share * balance}
    return captions + share * (pairs + config.balance_coef * balance), (losses, stats)


def contrast(features_BTPD: jax.Array, words_BSD: jax.Array, batch: Batch) -> jax.Array:
    """The contrastive loss of the samples of a batch, float32 nats.

    A sample is found by the last token that predicts some of its caption. A row has at most as many as half its tiles.
    """
    B, T, P, D = features_BTPD.shape
    slots = max(T // 2, 1)
    learnt = batch.weights > 0
    last_BS = learnt & ~jnp.pad(learnt[:, 1:], ((0, 0), (0, 1)))
    at_BN = jax.vmap(lambda row: jnp.nonzero(row, size=slots, fill_value=0)[0])(last_BS)
    real_BN = jnp.arange(slots)[None, :] < jnp.sum(last_BS, axis=1)[:, None]
    segment_BN = jnp.take_along_axis(batch.segments, at_BN, axis=1)
    # The first image token of the same sample shows the first patch of its thumbnail.
    first_BN = jnp.argmax(
        (batch.segments[:, None, :] == segment_BN[..., None]) & (batch.image_index[:, None, :] > 0), axis=-1
    )
    tile_BN = (jnp.take_along_axis(batch.image_index, first_BN, axis=1) - 1) // P
    pooled_BTD = jnp.mean(features_BTPD.astype(jnp.float32), axis=2)
    u = _unit(jnp.take_along_axis(pooled_BTD, jnp.maximum(tile_BN, 0)[..., None], axis=1)).reshape(-1, D)
    v = _unit(jnp.take_along_axis(words_BSD.astype(jnp.float32), at_BN[..., None], axis=1)).reshape(-1, D)
    real = real_BN.reshape(-1)
    similar = jnp.where(real[:, None] & real[None, :], u @ v.T / TEMPERATURE, -1e9)
    own = jnp.diagonal(similar)
    lost = jax.nn.logsumexp(similar, axis=0) + jax.nn.logsumexp(similar, axis=1) - 2.0 * own
    return 0.5 * jnp.sum(jnp.where(real, lost, 0.0)) / jnp.maximum(jnp.sum(real), 1)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
