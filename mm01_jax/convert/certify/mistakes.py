"""The porting mistakes that are known to happen, each as one formula of the forward replaced (docs/model.md D).

Fifteen come from ports of this model; D1, D2 and D4 are differences of released implementations (D2 is the full-head
RoPE). A D-number names the page's row.
"""

import dataclasses

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np

from mm01_jax.config import ModelConfig
from mm01_jax.convert.certify.forward import CHUNK, Forward, silu


class EpsOfTheOtherNorms(Forward):
    def lightning_norm(self, heads_BSNH, gain_NH):
        flat = heads_BSNH.reshape(*heads_BSNH.shape[:2], -1)
        return self.rms_norm(flat, gain_NH.reshape(-1), self.config.norm_eps)


class ScaledQuery(Forward):
    def project(self, x_BSD, qkv_DN3H):
        q, k, v = super().project(x_BSD, qkv_DN3H)
        return q * self.dtype.type(self.config.head_dim**-0.5), k, v


class NoLayerFactor(Forward):
    def layer_factor(self, layer):
        return 1.0


class FactorOverAllLayers(Forward):
    def layer_factor(self, layer):
        return 1.0 - layer / self.config.num_layers + 1e-5


class FullHeadRope(Forward):
    def __init__(self, config: ModelConfig, dtype: str = "float32"):
        super().__init__(dataclasses.replace(config, rotary_dim=config.head_dim), dtype)


class NeighbouringPairs(Forward):
    def rotate(self, x_SNH):
        """Pairs (2i, 2i + 1) instead of (i, i + R/2)."""
        R = self.config.rotary_dim
        cos, sin = self.angles(len(x_SNH), R)
        turned, even, odd = x_SNH.copy(), x_SNH[..., 0:R:2], x_SNH[..., 1:R:2]
        turned[..., 0:R:2], turned[..., 1:R:2] = even * cos - odd * sin, odd * cos + even * sin
        return turned


class ThreeBlocks(Forward):
    def project(self, x_BSD, qkv_DN3H):
        """All heads' q, then all k, then all v, instead of q, k, v of head 0, of head 1, ..."""
        D, N, _, H = qkv_DN3H.shape
        z = silu(x_BSD @ qkv_DN3H.reshape(D, -1)).reshape(*x_BSD.shape[:2], 3, N, H)
        return z[:, :, 0], z[:, :, 1], z[:, :, 2]


class LinearValue(Forward):
    def project(self, x_BSD, qkv_DN3H):
        q, k, _ = super().project(x_BSD, qkv_DN3H)
        D, N, _, H = qkv_DN3H.shape
        return q, k, (x_BSD @ qkv_DN3H[:, :, 2].reshape(D, -1)).reshape(*x_BSD.shape[:2], N, H)


class SiluGate(Forward):
    def output_gate(self, z):
        return silu(z)


class DecayAfterUpdate(Forward):
    def recurrence(self, q_SH, k_SH, v_SH, slope):
        """S = e^-s (S + k v'): all of it, and all that is read, once more times e^-s."""
        out, state = super().recurrence(q_SH, k_SH, v_SH, slope)
        decay = self.dtype.type(np.exp(-slope))
        return decay * out, decay * state


class ReadBeforeUpdate(Forward):
    def decays(self, slope, m):
        """o_t = S_{t-1}' q_t: nothing of the token itself, everything older one decay less."""
        at_query, inside, at_end, all_through = super().decays(slope, m)
        return at_query * np.exp(slope), np.tril(inside, -1) * np.exp(slope), at_end, all_through


class ResidualBeforeNorm(Forward):
    def residual(self, h, x, out, alpha, beta):
        return super().residual(h, h, out, alpha, beta)


class AlphaOfOne(Forward):
    def residual(self, h, x, out, alpha, beta):
        return super().residual(h, x, out, 1.0, beta)


class WeightsAsChosen(Forward):
    def weights_of(self, chosen_TA):
        return chosen_TA


class NormPerHead(Forward):
    def lightning_norm(self, heads_BSNH, gain_NH):
        normed = self.rms_norm(heads_BSNH, gain_NH, self.config.lightning_norm_eps)
        return normed.reshape(*heads_BSNH.shape[:2], -1)


class HistoryDecayedOneStepLess(Forward):
    def decays(self, slope, m):
        """The state is as of the chunk's start, the query's decay as if it were one token younger (D1)."""
        at_query, inside, at_end, all_through = super().decays(slope, m)
        return at_query * np.exp(slope), inside, at_end, all_through


class DecaysInBfloat16(Forward):
    def slopes(self, layer):
        return _bfloat16(super().slopes(layer))

    def decays(self, slope, m):
        """Tables of a chunk rounded to bfloat16, as buffers of the model's dtype are (D4)."""
        return tuple(_bfloat16(np.asarray(table)) for table in super().decays(slope, m))


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype("bfloat16").astype(np.float64)


MISTAKES: dict[str, type[Forward]] = {
    "eps of the lightning norm is that of the other norms": EpsOfTheOtherNorms,
    "lightning q scaled by head_dim^-1/2": ScaledQuery,
    "slope without its layer factor": NoLayerFactor,
    "slope with l/L instead of l/(L-1)": FactorOverAllLayers,
    "RoPE over the whole head (D2, transformers' own class)": FullHeadRope,
    "RoPE over neighbouring pairs": NeighbouringPairs,
    "qkv split as three blocks": ThreeBlocks,
    "no silu on v": LinearValue,
    "silu instead of sigmoid in the output gate": SiluGate,
    "state decayed after the update": DecayAfterUpdate,
    "state read before the update": ReadBeforeUpdate,
    "residual from before the norm": ResidualBeforeNorm,
    "alpha of 1": AlphaOfOne,
    "router weights not renormalised": WeightsAsChosen,
    "lightning norm per head": NormPerHead,
    f"history decayed one step less in chunks of {CHUNK} (D1, vLLM's prefill)": HistoryDecayedOneStepLess,
    "decays in bfloat16 (D4, transformers in bfloat16)": DecaysInBfloat16,
}
