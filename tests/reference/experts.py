"""Mixture of experts (docs/model.md A.6, paper section 2.1).

    p = softmax(W_g x);  the A largest are chosen, w_a = p_a / sum of the chosen
    y = sum_a w_a W2_a( silu(W1_a x) * (W3_a x) )

With a capacity, an expert serves its first ceil(factor * assignments / E) assignments in the order of (row, position),
then choice; what comes later adds nothing, and the weights of the rest stay as they are.
"""

import dataclasses
import math

import numpy as np

from tests.reference.elementary import silu, softmax


@dataclasses.dataclass(frozen=True)
class Routing:
    """What the router of one layer did, tokens in order (R = B*S)."""

    logits_RE: np.ndarray
    probs_RE: np.ndarray
    chosen_RA: np.ndarray  # expert ids, best first
    weights_RA: np.ndarray
    kept_RA: np.ndarray  # False where a capacity, or padding, dropped the assignment


def top_k(probs_RE, k: int):
    """Ids of the k largest, best first; the smaller id wins a tie."""
    return np.argsort(-probs_RE.real, axis=-1, kind="stable")[:, :k]


def renormalised(chosen_probs_RA):
    return chosen_probs_RA / chosen_probs_RA.sum(axis=-1, keepdims=True)


def capacity(config, num_tokens: int) -> int:
    """Assignments one expert serves. Padding counts here: it is the size of a buffer, known before the data."""
    return math.ceil(config.capacity_factor * num_tokens * config.num_experts_per_tok / config.num_local_experts)


def within_capacity(chosen_RA, real_R, num_experts: int, limit: int):
    kept_RA, served_E = np.zeros(chosen_RA.shape, bool), np.zeros(num_experts, int)
    for r in np.flatnonzero(real_R):
        for a, expert in enumerate(chosen_RA[r]):
            kept_RA[r, a] = served_E[expert] < limit
            served_E[expert] += 1
    return kept_RA


def route(config, x_RD, gate, real_R) -> Routing:
    logits_RE = x_RD @ gate.T
    probs_RE = softmax(logits_RE)
    chosen_RA = top_k(probs_RE, config.num_experts_per_tok)
    weights_RA = renormalised(np.take_along_axis(probs_RE, chosen_RA, axis=-1))
    dropless = config.capacity_factor is None
    limit = chosen_RA.size if dropless else capacity(config, len(x_RD))
    kept_RA = within_capacity(chosen_RA, real_R, config.num_local_experts, limit)
    return Routing(logits_RE, probs_RE, chosen_RA, weights_RA, kept_RA)


def experts(config, layer: int, weights, x_BSD, documents_BS):
    """Output (B, S, D) and the layer's Routing; padding gets 0."""
    prefix = f"model.layers.{layer}.block_sparse_moe"
    x_RD = x_BSD.reshape(-1, x_BSD.shape[-1])
    routing = route(config, x_RD, weights[f"{prefix}.gate.weight"], documents_BS.reshape(-1) >= 0)
    y_RD = np.zeros_like(x_RD, dtype=routing.weights_RA.dtype)
    for e in range(config.num_local_experts):
        w1, w2, w3 = (weights[f"{prefix}.experts.{e}.w{i}.weight"] for i in (1, 2, 3))
        rows, choice = np.nonzero((routing.chosen_RA == e) & routing.kept_RA)
        x = x_RD[rows]
        out = (silu(x @ w1.T) * (x @ w3.T)) @ w2.T
        y_RD = y_RD.astype(np.result_type(y_RD, out))
        y_RD[rows] += routing.weights_RA[rows, choice][:, None] * out
    return y_RD.reshape(x_BSD.shape), routing
