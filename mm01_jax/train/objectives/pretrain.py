"""What training minimises: cross-entropy, plus a balance loss and a z-loss of the routers.

The cross-entropy is normalised by the target count of the whole global step, so that microbatches and padding change
nothing. Two balance losses exist under one name in the field; they differ by E^2 and by what they average
(docs/model.md D14):

    paper          sum over layers of (1/E) sum_e f_e m_e            coefficient 0.01
    transformers   E sum_e f_e P_e, f and P over all layers at once   coefficient 0.001
"""

import jax
import jax.numpy as jnp

from mm01_jax.config import TrainConfig
from mm01_jax.data.batch import Batch
from mm01_jax.inference.scoring import token_loss
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel, embeddings
from mm01_jax.parallel.experts.layer import RouterStats


def objective(
    model: TextModel | VLModel, batch: Batch, total_weight: jax.Array, share: float, config: TrainConfig
) -> tuple[jax.Array, tuple[dict[str, jax.Array], RouterStats]]:
    """The summand of one microbatch: (objective, (loss (mean cross-entropy, nats a target), balance_loss and z_loss
    without their coefficients; router statistics)).

    Args:
      total_weight: float32, sum of target weights of the whole global step.
      share: 1 / number of microbatches; router losses are means over microbatches.
    """
    x = embeddings(model, batch.tokens, batch.tiles, batch.image_index)
    hidden, _, stats = model.forward(x, batch.positions, batch.segments)
    loss = token_loss(model, hidden, batch, config.loss_chunk, total_weight)
    total, losses = with_router_losses(loss, stats, share, config)
    return total, (losses, stats)


def with_router_losses(
    loss: jax.Array, stats: RouterStats, share: float, config: TrainConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(`loss` and the routers' losses by their coefficients, each of them alone)."""
    balance = balance_loss(stats, config.balance_loss)
    z = jnp.mean(stats.z_square / jnp.maximum(stats.tokens, 1.0))
    losses = {"loss": loss, "balance_loss": share * balance, "z_loss": share * z}
    return loss + share * (config.balance_coef * balance + config.z_loss_coef * z), losses


@jax.named_scope("loss")
def balance_loss(stats: RouterStats, form: str) -> jax.Array:
    """The router balance loss in the form named ("paper", "transformers", "none"); float32 scalar."""
    if form == "none":
        return jnp.zeros((), jnp.float32)
    num_experts = stats.assigned.shape[-1]
    tokens = jnp.maximum(stats.tokens, 1.0)[:, None]
    if form == "paper":
        return jnp.sum((stats.assigned / tokens) * (stats.probability / tokens)) / num_experts
    total = jnp.sum(tokens)
    assigned, probability = stats.assigned.sum(0) / total, stats.probability.sum(0) / total
    return num_experts * jnp.sum(assigned * probability)
