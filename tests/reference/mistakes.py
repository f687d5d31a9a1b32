"""The typical porting mistakes, each as one part of the reference replaced (docs/model.md D).

Two are a wrong number in the config; the others put another function in the place of one of the reference's.
"""

import dataclasses
import unittest.mock
from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

from tests.reference import experts, lightning, model, softmax
from tests.reference.elementary import rms_norm, silu
from tests.reference.model import forward


@dataclasses.dataclass(frozen=True)
class Mistake:
    """`config` fields of a wrong value, and one function `name` of `module` replaced by `wrong`."""

    config: Mapping[str, object] = dataclasses.field(default_factory=dict)
    module: ModuleType | None = None
    name: str = ""
    wrong: Callable | None = None


def forward_with(mistake: Mistake, config, weights, tokens_BS):
    """The reference's forward, with the mistake in it."""
    config = dataclasses.replace(config, **mistake.config)
    if mistake.module is None:
        return forward(config, weights, tokens_BS)
    with unittest.mock.patch.object(mistake.module, mistake.name, mistake.wrong):
        return forward(config, weights, tokens_BS)


right_project = lightning.project


def scaled_query(config, x_BSD, weight):
    q, k, v = right_project(config, x_BSD, weight)
    return q * config.head_dim**-0.5, k, v


def three_blocks(config, x_BSD, weight):
    """All heads' q, then all k, then all v."""
    z = silu(x_BSD @ weight.T).reshape(*x_BSD.shape[:2], 3, config.num_attention_heads, config.head_dim)
    return z[:, :, 0], z[:, :, 1], z[:, :, 2]


def linear_value(config, x_BSD, weight):
    q, k, _ = right_project(config, x_BSD, weight)
    z_BSN3H = (x_BSD @ weight.T).reshape(*x_BSD.shape[:2], config.num_attention_heads, 3, config.head_dim)
    return q, k, z_BSN3H[..., 2, :]


def no_layer_factor(layer: int, num_layers: int) -> float:
    return 1.0


def factor_over_all_layers(layer: int, num_layers: int) -> float:
    return 1.0 - layer / num_layers + 1e-5


def decay_after_update(state_NHH, q_NH, k_NH, v_NH, decay_N11):
    state_NHH = decay_N11 * (state_NHH + k_NH[:, :, None] * v_NH[:, None, :])
    return state_NHH, np.einsum("nk,nkv->nv", q_NH, state_NHH)


def read_before_update(state_NHH, q_NH, k_NH, v_NH, decay_N11):
    out_NH = np.einsum("nk,nkv->nv", q_NH, state_NHH)
    return decay_N11 * state_NHH + k_NH[:, :, None] * v_NH[:, None, :], out_NH


def silu_gate(x_BSD, weight):
    return silu(x_BSD @ weight.T)


def norm_per_head(config, heads_BSNH, gain):
    gain_NH = gain.reshape(heads_BSNH.shape[2:])
    return rms_norm(heads_BSNH, gain_NH, config.lightning_norm_eps).reshape(*heads_BSNH.shape[:2], -1)


def neighbouring_pairs(config, x_BSNH, positions_BS):
    """Pairs (2i, 2i+1) instead of (i, i + R/2)."""
    r = config.rotary_dim
    angle_BS1R = (positions_BS[..., None] * config.rope_theta ** (-np.arange(0, r, 2) / r))[:, :, None, :]
    x1, x2 = x_BSNH[..., 0:r:2], x_BSNH[..., 1:r:2]
    turned = np.array(x_BSNH)
    turned[..., 0:r:2] = x1 * np.cos(angle_BS1R) - x2 * np.sin(angle_BS1R)
    turned[..., 1:r:2] = x2 * np.cos(angle_BS1R) + x1 * np.sin(angle_BS1R)
    return turned


def residual_before_norm(h_BSD, x_BSD, out_BSD, alpha: float, beta: float):
    return alpha * h_BSD + beta * out_BSD


def as_chosen(chosen_probs_RA):
    return chosen_probs_RA


ALPHAS_OF_ONE = dict.fromkeys(
    ("layernorm_linear_attention_alpha", "layernorm_full_attention_alpha", "layernorm_mlp_alpha"), 1.0
)

MISTAKES = {
    "lightning norm eps 1e-5": Mistake(config={"lightning_norm_eps": 1e-5}),
    "lightning q scaled": Mistake(module=lightning, name="project", wrong=scaled_query),
    "slope without layer factor": Mistake(module=lightning, name="layer_factor", wrong=no_layer_factor),
    "slope with l/L": Mistake(module=lightning, name="layer_factor", wrong=factor_over_all_layers),
    "RoPE over the full head": Mistake(config={"rotary_dim": 16}),
    "RoPE over neighbouring pairs": Mistake(module=softmax, name="rotate", wrong=neighbouring_pairs),
    "qkv split as three blocks": Mistake(module=lightning, name="project", wrong=three_blocks),
    "no silu on v": Mistake(module=lightning, name="project", wrong=linear_value),
    "silu gate": Mistake(module=lightning, name="output_gate", wrong=silu_gate),
    "state decayed after update": Mistake(module=lightning, name="token", wrong=decay_after_update),
    "state read before update": Mistake(module=lightning, name="token", wrong=read_before_update),
    "residual before norm": Mistake(module=model, name="residual", wrong=residual_before_norm),
    "alpha 1": Mistake(config=ALPHAS_OF_ONE),
    "top-2 weights not renormalised": Mistake(module=experts, name="renormalised", wrong=as_chosen),
    "norm per head": Mistake(module=lightning, name="norm", wrong=norm_per_head),
}
