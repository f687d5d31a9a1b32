"""The text model: DeepNorm layers of lightning or softmax attention and experts (docs/model.md 0, A.3).

    x = N_in(h);    h = alpha x + beta mixer(x)
    x = N_post(h);  h = alpha x + beta experts(x)
    logits = W_lm N_final(h)

The residual comes from the normed input. Weights carry their names in the released checkpoint.
"""

import dataclasses

import numpy as np

from tests.reference import documents as docs
from tests.reference.config import LIGHTNING
from tests.reference.elementary import rms_norm
from tests.reference.experts import Routing, experts
from tests.reference.lightning import lightning
from tests.reference.softmax import softmax_attention


@dataclasses.dataclass(frozen=True)
class Cache:
    """What earlier calls leave: a state (B, N, H, H) or keys and values (B, T, K, H) per layer."""

    layers: tuple
    documents_BT: np.ndarray
    next_position_B: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    logits_BSV: np.ndarray
    cache: Cache
    states: tuple  # of the lightning layers, in order
    heads: tuple  # outputs (B, S, N, H) of the lightning layers' recurrences, before their norm
    routings: tuple[Routing, ...]  # of all layers
    documents_BS: np.ndarray

    @property
    def real_R(self):
        return self.documents_BS.reshape(-1) >= 0


def empty_cache(config, batch: int) -> Cache:
    n, h = config.num_attention_heads, config.head_dim
    nothing = np.zeros((batch, 0, config.num_key_value_heads, h))
    layers = [np.zeros((batch, n, h, h)) if kind == LIGHTNING else (nothing, nothing) for kind in config.attn_type_list]
    return Cache(tuple(layers), np.zeros((batch, 0), int), np.zeros(batch, int))


def residual(h_BSD, x_BSD, out_BSD, alpha: float, beta: float):
    """`h_BSD` went into the norm, `x_BSD` came out: the residual is x."""
    return alpha * x_BSD + beta * out_BSD


def forward(
    config, weights, tokens_BS, *, segments_BS=None, positions_BS=None, cache=None, embeddings_BSD=None
) -> Result:
    """Logits (B, S, V) of `tokens_BS`, continuing from `cache`.

    `segments_BS` marks packed documents (a change starts one, negative is padding; default one document);
    positions default to counting in each document, on from the cache. `embeddings_BSD` in place of the tokens' own.
    """
    cache = empty_cache(config, len(tokens_BS)) if cache is None else cache
    documents_BS = docs.document_numbers(np.zeros_like(tokens_BS) if segments_BS is None else segments_BS)
    documents_BT = np.concatenate([docs.as_past(cache.documents_BT), documents_BS], axis=1)
    counted_BS, next_position_B = docs.positions_in_documents(documents_BS, cache.next_position_B)
    place = (documents_BS, documents_BT, counted_BS if positions_BS is None else positions_BS)
    w = {name: np.asarray(weight, np.result_type(weight, np.float64)) for name, weight in weights.items()}

    h_BSD = w["model.embed_tokens.weight"][tokens_BS] if embeddings_BSD is None else embeddings_BSD
    layers, heads, routings = [], [], []
    for layer, past in enumerate(cache.layers):
        h_BSD, left, mixed = mixer_layer(config, layer, w, h_BSD, place, past)
        h_BSD, routing = experts_layer(config, layer, w, h_BSD, documents_BS)
        layers.append(left)
        heads.append(mixed)
        routings.append(routing)
    logits_BSV = rms_norm(h_BSD, w["model.norm.weight"], config.rms_norm_eps) @ w["lm_head.weight"].T
    return Result(
        logits_BSV=logits_BSV,
        cache=Cache(tuple(layers), documents_BT, next_position_B),
        states=tuple(left for left in layers if not isinstance(left, tuple)),
        heads=tuple(mixed for mixed in heads if mixed is not None),
        routings=tuple(routings),
        documents_BS=documents_BS,
    )


def mixer_layer(config, layer: int, w, h_BSD, place, past):
    """New hidden vectors, what the cache keeps, and a lightning layer's heads before their norm."""
    x_BSD = rms_norm(h_BSD, w[f"model.layers.{layer}.input_layernorm.weight"], config.rms_norm_eps)
    if config.attn_type_list[layer] == LIGHTNING:
        alpha, beta = config.layernorm_linear_attention_alpha, config.layernorm_linear_attention_beta
        out_BSD, left, heads_BSNH = lightning(config, layer, w, x_BSD, place[0], past)
    else:
        alpha, beta = config.layernorm_full_attention_alpha, config.layernorm_full_attention_beta
        (out_BSD, left), heads_BSNH = softmax_attention(config, layer, w, x_BSD, place, past), None
    return residual(h_BSD, x_BSD, out_BSD, alpha, beta), left, heads_BSNH


def experts_layer(config, layer: int, w, h_BSD, documents_BS):
    x_BSD = rms_norm(h_BSD, w[f"model.layers.{layer}.post_attention_layernorm.weight"], config.rms_norm_eps)
    out_BSD, routing = experts(config, layer, w, x_BSD, documents_BS)
    return residual(h_BSD, x_BSD, out_BSD, config.layernorm_mlp_alpha, config.layernorm_mlp_beta), routing
