"""Grouped-query softmax attention with rotary positions on part of each head (docs/model.md A.5).

    q, k rotated:  [x1, x2] -> [x1 cos - x2 sin, x2 cos + x1 sin],  angle_i = position * theta^{-2i/R},  i < R/2
    o_t = sum_j softmax_j( q_t . k_j / sqrt(H) ) v_j    over j <= t of the same document

x1 and x2 are the first and second half of the R = rotary_dim leading dims; query head n reads kv head n // (N/K).
"""

import numpy as np

from tests.reference.elementary import softmax


def rotate(config, x_BSNH, positions_BS):
    half = config.rotary_dim // 2
    frequency = config.rope_theta ** (-2.0 * np.arange(half) / config.rotary_dim)
    angle_BS1R = (positions_BS[..., None] * frequency)[:, :, None, :]
    cos, sin = np.cos(angle_BS1R), np.sin(angle_BS1R)
    x1, x2, rest = np.split(x_BSNH, [half, 2 * half], axis=-1)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1)


def visible(documents_BS, documents_BT):
    """(B, S, T): the keys are those of a cache, then the queries' own; padding sees nothing and is not seen."""
    past = documents_BT.shape[1] - documents_BS.shape[1]
    causal_ST = np.arange(documents_BT.shape[1]) <= past + np.arange(documents_BS.shape[1])[:, None]
    same_BST = documents_BS[:, :, None] == documents_BT[:, None, :]
    return causal_ST & same_BST & (documents_BS[:, :, None] >= 0)


def attend(q_BSNH, k_BTNH, v_BTNH, visible_BST):
    scores_BNST = np.einsum("bsnh,btnh->bnst", q_BSNH, k_BTNH) / np.sqrt(q_BSNH.shape[-1])
    # A finite floor: a row that sees nothing stays finite here and is zeroed below.
    probs_BNST = softmax(np.where(visible_BST[:, None], scores_BNST, -1e30)) * visible_BST[:, None]
    return np.einsum("bnst,btnh->bsnh", probs_BNST, v_BTNH)


PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


def softmax_attention(config, layer: int, weights, x_BSD, place, past):
    """Output (B, S, D) and the keys and values (B, T, K, H) up to now.

    `place` is (documents_BS, documents_BT, positions_BS); `past` the keys and values of earlier calls.
    """
    documents_BS, documents_BT, positions_BS = place
    w = {part: weights[f"model.layers.{layer}.self_attn.{part}.weight"] for part in PARTS}
    in_heads = (*x_BSD.shape[:2], -1, config.head_dim)
    q, k, v = ((x_BSD @ w[part].T).reshape(in_heads) for part in ("q_proj", "k_proj", "v_proj"))
    keys_BTKH = np.concatenate([past[0], rotate(config, k, positions_BS)], axis=1)
    values_BTKH = np.concatenate([past[1], v], axis=1)
    group = config.num_attention_heads // config.num_key_value_heads
    heads_BSNH = attend(
        rotate(config, q, positions_BS),
        np.repeat(keys_BTKH, group, axis=2),
        np.repeat(values_BTKH, group, axis=2),
        visible(documents_BS, documents_BT),
    )
    out_BSD = heads_BSNH.reshape(*x_BSD.shape[:2], -1) @ w["o_proj"].T
    return out_BSD, (keys_BTKH, values_BTKH)
