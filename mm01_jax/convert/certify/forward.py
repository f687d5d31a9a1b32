"""The formulas of the text model in NumPy: what `logits` runs and `certify` varies (docs/model.md A).

    x = norm(h), h = a x + b mixer(x);  x = norm(h), h = a x + b experts(x);  logits = W_head norm(h)

Plain and whole-sequence: no cache, no packing, no mesh. Each method of `Forward` is one formula of the model, so that
a porting mistake is a subclass that replaces one of them (mistakes.py). Weights come in our layout, as chunks; walk.py
brings them layer by layer.
"""

import math
from collections.abc import Mapping

import numpy as np

from mm01_jax.config import ModelConfig

CHUNK = 256  # of lightning attention: any size gives the same function


class Forward:
    """The formulas of the model; every array has the dtype `dtype`."""

    def __init__(self, config: ModelConfig, dtype: str = "float32"):
        self.config, self.dtype = config, np.dtype(dtype)
        self.positions_S: np.ndarray | None = None  # of the tokens; None counts them

    def rms_norm(self, x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
        return gain * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.dtype.type(eps)))

    def residual(self, h: np.ndarray, x: np.ndarray, out: np.ndarray, alpha: float, beta: float) -> np.ndarray:
        """`h` went into the norm, `x` came out."""
        del h
        return self.dtype.type(alpha) * x + self.dtype.type(beta) * out

    # Lightning attention.

    def layer_factor(self, layer: int) -> float:
        return 1.0 - layer / max(self.config.num_layers - 1, 1) + 1e-5

    def slopes(self, layer: int) -> np.ndarray:
        """(N,), rounded to float32: constants of the released code."""
        N = self.config.num_heads
        lower = 2 ** int(math.log2(N))
        heads = [2.0 ** (-8.0 * (h + 1) / lower) for h in range(lower)]
        heads += [2.0 ** (-8.0 * (h + 1) / (2 * lower)) for h in range(0, 2 * lower, 2)]
        return (np.array(heads[:N]) * self.layer_factor(layer)).astype(np.float32).astype(np.float64)

    def project(self, x_BSD: np.ndarray, qkv_DN3H: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q, k, v (B, S, N, H)."""
        z = silu(x_BSD @ qkv_DN3H.reshape(len(qkv_DN3H), -1)).reshape(*x_BSD.shape[:2], *qkv_DN3H.shape[1:])
        return z[:, :, :, 0], z[:, :, :, 1], z[:, :, :, 2]

    def decays(self, slope: float, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """For m tokens: of the state at each query, of keys inside, of keys at the end, of the state at the end."""
        j = np.arange(1, m + 1.0)
        inside = np.where(j[:, None] >= j[None, :], np.exp(-slope * np.maximum(j[:, None] - j[None, :], 0)), 0.0)
        return np.exp(-slope * j), inside, np.exp(-slope * (m - j)), float(np.exp(-slope * m))

    def recurrence(self, q_SH, k_SH, v_SH, slope: float) -> tuple[np.ndarray, np.ndarray]:
        """One head: outputs (S, H) and the last state (H key, H value); S_t = e^-s S_{t-1} + k v', o_t = S_t' q."""
        out, state = np.empty_like(v_SH), np.zeros((q_SH.shape[1], v_SH.shape[1]), self.dtype)
        for start in range(0, len(q_SH), CHUNK):
            q, k, v = (x[start : start + CHUNK] for x in (q_SH, k_SH, v_SH))
            at_query, inside, at_end, all_through = self.decays(slope, len(q))
            at_query, inside, at_end = (x.astype(self.dtype) for x in (at_query, inside, at_end))
            out[start : start + CHUNK] = (q * at_query[:, None]) @ state + ((q @ k.T) * inside) @ v
            state = self.dtype.type(all_through) * state + (k * at_end[:, None]).T @ v
        return out, state

    def lightning_norm(self, heads_BSNH: np.ndarray, gain_NH: np.ndarray) -> np.ndarray:
        """One norm over all heads: (B, S, N*H)."""
        flat = heads_BSNH.reshape(*heads_BSNH.shape[:2], -1)
        return self.rms_norm(flat, gain_NH.reshape(-1), self.config.lightning_norm_eps)

    def output_gate(self, z: np.ndarray) -> np.ndarray:
        return sigmoid(z)

    def lightning(self, layer: int, x_BSD, w: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(output (B, S, D), state (B, N, H, H))."""
        q, k, v = self.project(x_BSD, w["mixer/qkv"])
        slopes = self.slopes(layer)
        done = [
            [self.recurrence(q[b, :, n], k[b, :, n], v[b, :, n], slopes[n]) for n in range(q.shape[2])]
            for b in range(len(q))
        ]
        heads = np.stack([np.stack([out for out, _ in row], axis=1) for row in done])
        state = np.stack([np.stack([state for _, state in row]) for row in done])
        D = x_BSD.shape[-1]
        gate = self.output_gate(x_BSD @ w["mixer/output_gate"].reshape(D, -1))
        return (gate * self.lightning_norm(heads, w["mixer/norm"])) @ w["mixer/out"].reshape(-1, D), state

    # Softmax attention.

    def rotate(self, x_SNH: np.ndarray) -> np.ndarray:
        """Pairs (i, i + R/2) of the first R dims of each head turn by position * theta^(-2i/R)."""
        R = self.config.rotary_dim
        cos, sin = self.angles(len(x_SNH), R)
        first, second, rest = np.split(x_SNH, [R // 2, R], axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)

    def angles(self, length: int, rotary_dim: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin (S, 1, R/2) of each position and pair."""
        frequency = self.config.rope_theta ** (-2.0 * np.arange(rotary_dim // 2) / rotary_dim)
        positions_S = np.arange(length) if self.positions_S is None else self.positions_S
        angle = (positions_S[:, None] * frequency)[:, None, :]
        return np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)

    def softmax(self, x_BSD: np.ndarray, w: Mapping[str, np.ndarray]) -> np.ndarray:
        """(B, S, D); one head of one row at a time, S x S scores."""
        B, S, D = x_BSD.shape
        group = self.config.num_heads // self.config.num_kv_heads
        heads = np.empty((B, S, self.config.num_heads, self.config.head_dim), self.dtype)
        future = np.triu(np.ones((S, S), bool), 1)
        for b in range(B):
            q, k, v = (
                (x_BSD[b] @ w[f"mixer/{name}"].reshape(D, -1)).reshape(S, -1, self.config.head_dim)
                for name in ("query", "key", "value")
            )
            q, k = self.rotate(q), self.rotate(k)
            for n in range(self.config.num_heads):
                scores = q[:, n] @ k[:, n // group].T / self.dtype.type(math.sqrt(self.config.head_dim))
                heads[b, :, n] = softmax(np.where(future, -np.inf, scores)) @ v[:, n // group]
        return heads.reshape(B, S, -1) @ w["mixer/out"].reshape(-1, D)

    # Experts.

    def route(self, x_TD: np.ndarray, router_DE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chosen experts (T, A), best first, and their weights (T, A)."""
        p = softmax(x_TD @ router_DE)
        chosen = np.argsort(-p, axis=-1, kind="stable")[:, : self.config.num_experts_per_token]
        return chosen, self.weights_of(np.take_along_axis(p, chosen, axis=-1))

    def weights_of(self, chosen_TA: np.ndarray) -> np.ndarray:
        return chosen_TA / chosen_TA.sum(axis=-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), without overflow."""
    shrunk = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, shrunk) / (1 + shrunk)


def silu(x: np.ndarray) -> np.ndarray:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
