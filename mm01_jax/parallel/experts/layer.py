"""The expert layer on a mesh: route, dispatch over `expert`, grouped matmul, combine (docs/model.md A.6, E).

Paper 2.1, 4.1. Tokens are sharded over (data, expert) and sequence; experts over `expert`, their width over `tensor`.
Each device routes its own tokens and gives every expert shard its rows in a buffer of fixed size (`exchange.py`). With
`exchange_groups` the tokens go in groups that do not wait for each other: the exchange of one can run while the
experts compute on another. The result leaves with D sharded over `tensor`, as its sum over `tensor` left it.

Nothing is dropped silently. In dropless mode buffers hold the worst case, or a stated multiple of the balanced load;
rows beyond it are counted in `overflow` and the caller refuses the step. In capacity mode each expert keeps the first
`capacity` assignments of the whole global microbatch in the order (sequence, position, choice), the same on every mesh.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules, SequenceLayout
from mm01_jax.parallel.experts import router
from mm01_jax.parallel.experts.exchange import (
    Buffers,
    compute_without_exchange,
    exchange_and_compute,
    gather_and_compute,
)
from mm01_jax.parallel.experts.transports import TRANSPORTS
from mm01_jax.parallel.stored import entering
from pallas_kernels.expert_ffn import expert_ffn
from pallas_kernels.grouped_matmul import row_multiple
from pallas_kernels.int8 import Int8, shape_of
from pallas_kernels.varying import vary_over


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStats:
    """Sums over all tokens of the global batch that are not padding; equal on every device.

    assigned: (E,) float32, assignments the router made to each expert, dropped ones included.
    probability: (E,) float32, sum of router probabilities.
    z_square: float32, sum of logsumexp(router logits)^2.
    tokens: float32, number of tokens.
    dropped: float32, assignments dropped by capacity.
    overflow: float32, assignments that did not fit a stated dropless bound; a step with any must be refused.
    choice: int32 (B, S, A), the experts that each token was routed to, the best first, E of padding; they lie as the
    tokens do. None where nobody asked.
    """

    assigned: jax.Array
    probability: jax.Array
    z_square: jax.Array
    tokens: jax.Array
    dropped: jax.Array
    overflow: jax.Array
    choice: jax.Array | None = None


def expert_layer(
    x_BSD: jax.Array,
    documents_BS: jax.Array,
    weights: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    place: tuple[jax.Array, jax.Array] | None = None,
    *,
    config: ModelConfig,
    compute: ComputeConfig,
    rules: Rules,
    layout: SequenceLayout = "contiguous",
    tells: bool = False,
) -> tuple[jax.Array, RouterStats]:
    """x (B, S, D), rows in `layout` -> (y (B, S, D), statistics, every token's choice among them where it `tells`).

    Args:
      weights: router (D, E), gate (E, D, F), up (E, D, F), down (E, F, D), in their gradients' dtype; the last three
        or Int8.
      place: (period, layer), where the experts' three are those of a whole stack, (M, n, ...).
    """
    stack = () if place is None else (None, None)
    tokens, result = sharding.spec(rules, "batch", "seq", None), sharding.spec(rules, "batch", "seq", "ffn")
    inward = _with_scale(sharding.spec(rules, *stack, "expert", None, "ffn"))
    outward = _with_scale(sharding.spec(rules, *stack, "expert", "ffn", None))
    of_experts = zip(weights[1:], (inward, inward, outward), strict=True)
    specs = (jax.P(), *(spec if isinstance(weight, Int8) else spec.values for weight, spec in of_experts))
    weights, specs, whole = zip(*map(entering, weights, specs), strict=True)
    in_specs = (tokens, sharding.spec(rules, "batch", "seq"), specs, jax.P())
    told = {"config": config, "compute": compute, "rules": rules, "layout": layout, "tells": tells}

    def local(x, documents, parts, place):
        return _local(x, documents, tuple(make(part) for make, part in zip(whole, parts, strict=True)), place, **told)

    out_specs = result, RouterStats(*[jax.P()] * 6, choice=tokens if tells else None)
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)(x_BSD, documents_BS, weights, place)


def _with_scale(values: jax.P) -> Int8:
    """The specs of an int8 matrix, of which a scale is cut as its columns are."""
    return Int8(values, jax.P(*values[:-2], values[-1]))


def _local(
    x_BSD,
    documents_BS,
    weights,
    place,
    *,
    config: ModelConfig,
    compute: ComputeConfig,
    rules: Rules,
    layout: SequenceLayout,
    tells: bool,
):
    # Made to vary here, once: else every group would sum its weight gradients over all chips by itself.
    weights = jax.tree.map(lambda w: vary_over(w, (*rules.batch, *rules.seq)), weights)
    router_DE, *ffn_weights = (w if isinstance(w, Int8) else w.astype(x_BSD.dtype) for w in weights)
    B, S, D = x_BSD.shape
    E = config.num_experts
    x_TD, valid_T = x_BSD.reshape(B * S, D), (documents_BS >= 0).reshape(B * S)
    choice_TA, weight_TA, probability_TE, lse_T = router.route(x_TD, router_DE, config.num_experts_per_token)
    choice_TA = jnp.where(valid_T[:, None], choice_TA, E)  # padding goes to no expert
    served_TA = choice_TA
    if config.routing == "capacity":
        served_TA = router.keep_first(choice_TA, (B, S), config, rules, layout)
    y_TD, overflow = _in_groups((x_TD, served_TA, weight_TA), (ffn_weights, place), config, compute, rules)
    stats = RouterStats(
        assigned=router.count(choice_TA.reshape(-1), E).astype(jnp.float32),
        probability=jnp.sum(jnp.where(valid_T[:, None], probability_TE, 0.0), axis=0),
        z_square=jnp.sum(jnp.where(valid_T, lse_T * lse_T, 0.0)),
        tokens=jnp.sum(valid_T, dtype=jnp.float32),
        dropped=jnp.sum((choice_TA < E) & (served_TA == E), dtype=jnp.float32),
        overflow=overflow.astype(jnp.float32),
    )
    stats = lax.psum(stats, (*rules.batch, *rules.seq))
    return y_TD.reshape(B, S, -1), dataclasses.replace(stats, choice=choice_TA.reshape(B, S, -1) if tells else None)


def _in_groups(tokens, weights, config: ModelConfig, compute: ComputeConfig, rules: Rules):
    """(y (T, D / shards of ffn), overflow): tokens (x (T, D), choice (T, A), weight (T, A)) in groups, each routed by
    itself from here on.

    weights: (gate, up, down), and where in a stack they stand, or None.
    """
    (x_TD, choice_TA, _), (ffn_weights, place) = tokens, weights
    layer = None
    if place is not None:
        (M, n), (period, index) = shape_of(ffn_weights[0])[:2], place
        ffn_weights = jax.tree.map(lambda w: w.reshape(M * n, *w.shape[2:]), ffn_weights)
        layer = period * n + index
    buffers = Buffers.of(x_TD.shape[0], config, compute, rules)
    multiple = row_multiple(buffers.tokens * choice_TA.shape[1], x_TD.dtype, shape_of(ffn_weights[0])[-3:])
    buffers = dataclasses.replace(buffers, multiple=multiple)
    apply_experts = functools.partial(_expert_ffn, (tuple(ffn_weights), layer))
    if buffers.shards == 1:
        run = compute_without_exchange
    elif compute.exchange == "gathered":
        run = gather_and_compute
    else:
        run = functools.partial(exchange_and_compute, transport=TRANSPORTS[compute.exchange])
    parts = [
        run(x, choice, weight, apply_experts, buffers, rules)
        for x, choice, weight in zip(*(jnp.split(array, buffers.groups) for array in tokens), strict=True)
    ]
    return jnp.concatenate([y for y, _ in parts]), sum(overflow for _, overflow in parts)


@jax.named_scope("experts")
def _expert_ffn(weights, rows_RD, sizes_E, buffers: Buffers, weight_R: jax.Array | None) -> jax.Array:
    """SwiGLU of each row by its group's expert; rows sorted by expert, rows after the last group are 0."""
    ffn_weights, layer = weights
    sizes = {"capacity": buffers.per_expert, "multiple": buffers.multiple}
    return expert_ffn(rows_RD, ffn_weights, sizes_E, weight_R, layer=layer, **sizes)
