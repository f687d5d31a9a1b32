"""Lightning attention as the recurrence that defines it (docs/model.md A.4).

    per head [q | k | v] = silu(W_qkv x)
    S_t = e^{-s} S_{t-1} + k_t v_t^T        o_t = S_t^T q_t
    y = W_out( sigmoid(W_gate x) * RMSNorm(all heads of o) )

The slope s of head h in layer l is ALiBi's, shrinking with depth: 2^{-8(h+1)/N} (1 - l/(L-1) + 1e-5).
"""

import math

import numpy as np

from tests.reference.elementary import rms_norm, sigmoid, silu


def head_slopes(num_heads: int):
    """ALiBi's rule: powers of 2^{-8/N}; between powers of two, every other slope of the next one fills up."""
    lower = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (h + 1) / lower) for h in range(lower)]
    between = [2.0 ** (-8.0 * (h + 1) / (2 * lower)) for h in range(0, 2 * lower, 2)]
    return np.array((slopes + between)[:num_heads])


def slopes(config, layer: int):
    """(N,), rounded to float32 once: the original's slopes are float32 constants, part of the function."""
    exact_N = head_slopes(config.num_attention_heads) * layer_factor(layer, config.num_hidden_layers)
    return exact_N.astype(np.float32).astype(np.float64)


def layer_factor(layer: int, num_layers: int) -> float:
    return 1.0 - layer / max(num_layers - 1, 1) + 1e-5


def project(config, x_BSD, weight):
    """q, k, v, each (B, S, N, H): the rows of W_qkv are q, k and v of head 0, then of head 1, ..."""
    z_BSN3H = silu(x_BSD @ weight.T).reshape(*x_BSD.shape[:2], config.num_attention_heads, 3, config.head_dim)
    return z_BSN3H[..., 0, :], z_BSN3H[..., 1, :], z_BSN3H[..., 2, :]


def recurrence(q_BSNH, k_BSNH, v_BSNH, slope_N, documents_BS, state_BNHH):
    """Outputs (B, S, N, H) and the state after the last real token."""
    out_BSNH, state_BNHH = np.zeros_like(q_BSNH), np.array(state_BNHH, q_BSNH.dtype)
    decay_N11 = np.exp(-slope_N)[:, None, None]
    for b, documents_S in enumerate(documents_BS):
        current = 0
        for t, document in enumerate(documents_S):
            if document < 0:
                continue
            if document != current:
                current, state_BNHH[b] = document, 0.0
            state_BNHH[b], out_BSNH[b, t] = token(state_BNHH[b], q_BSNH[b, t], k_BSNH[b, t], v_BSNH[b, t], decay_N11)
    return out_BSNH, state_BNHH


def token(state_NHH, q_NH, k_NH, v_NH, decay_N11):
    state_NHH = decay_N11 * state_NHH + k_NH[:, :, None] * v_NH[:, None, :]
    return state_NHH, np.einsum("nk,nkv->nv", q_NH, state_NHH)


def norm(config, heads_BSNH, gain):
    """One norm over all heads together, head-major."""
    return rms_norm(heads_BSNH.reshape(*heads_BSNH.shape[:2], -1), gain, config.lightning_norm_eps)


def output_gate(x_BSD, weight):
    return sigmoid(x_BSD @ weight.T)


PARTS = ("qkv_proj", "output_gate", "norm", "out_proj")


def lightning(config, layer: int, weights, x_BSD, documents_BS, state_BNHH):
    """Output (B, S, D), state (B, N, H key, H value), and the heads' outputs before their norm (B, S, N, H)."""
    w = {part: weights[f"model.layers.{layer}.self_attn.{part}.weight"] for part in PARTS}
    q, k, v = project(config, x_BSD, w["qkv_proj"])
    heads_BSNH, state_BNHH = recurrence(q, k, v, slopes(config, layer), documents_BS, state_BNHH)
    y = output_gate(x_BSD, w["output_gate"]) * norm(config, heads_BSNH, w["norm"])
    return y @ w["out_proj"].T, state_BNHH, heads_BSNH
