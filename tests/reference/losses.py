"""The losses of training (docs/model.md A.6, A.7).

cross-entropy  mean over tokens that have a next token in their document of  log sum_v e^{logit_v} - logit_next
paper balance  (1/E) sum_e f_e m_e in each layer; f_e share of tokens that chose e, m_e mean probability of e
transformers'  E sum_a sum_e f_{a,e} P_e over the tokens of all layers at once; A when balanced
router z       mean over tokens of (log sum_e e^{r_e})^2 in each layer

Padding takes part in none of them.
"""

import numpy as np

from tests.reference.elementary import log_sum_exp


def next_tokens(tokens_BS, documents_BS):
    """Targets (B, S), and whether each counts: the next place holds a token of the same document."""
    targets_BS, counts_BS = np.zeros_like(tokens_BS), np.zeros(tokens_BS.shape, bool)
    targets_BS[:, :-1] = tokens_BS[:, 1:]
    counts_BS[:, :-1] = (documents_BS[:, :-1] == documents_BS[:, 1:]) & (documents_BS[:, 1:] >= 0)
    return targets_BS, counts_BS


def cross_entropy(logits_BSV, targets_BS, weights_BS):
    picked_BS = np.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
    losses_BS = log_sum_exp(logits_BSV)[..., 0] - picked_BS
    return (losses_BS * weights_BS).sum() / weights_BS.sum()


def paper_balance(routing, real_R):
    """One layer's balance loss."""
    num_experts = routing.probs_RE.shape[-1]
    f_E = (routing.chosen_RA[real_R][..., None] == np.arange(num_experts)).sum(axis=1).mean(axis=0)
    return (f_E * routing.probs_RE[real_R].mean(axis=0)).sum() / num_experts


def transformers_balance(routings, real_R):
    num_experts = routings[0].probs_RE.shape[-1]
    chosen_RA = np.concatenate([routing.chosen_RA[real_R] for routing in routings])
    probs_RE = np.concatenate([routing.probs_RE[real_R] for routing in routings])
    f_AE = (chosen_RA[..., None] == np.arange(num_experts)).mean(axis=0)
    return num_experts * (f_AE * probs_RE.mean(axis=0)).sum()


def router_z(routing, real_R):
    """One layer's router z-loss."""
    return (log_sum_exp(routing.logits_RE[real_R]) ** 2).mean()
