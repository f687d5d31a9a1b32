"""Floating-point operations of a training step, counted for the hybrid, and the peak of the chip they ran on.

Model FLOPs: what the mathematics needs, 2 a multiply-add, backward = 2 x forward; recomputation (remat) is not work.

    experts, projections, head   2 x weights a token touches
    lightning, per head          4 H^2 a token: update the state, read it
    softmax, per head            4 H a token and visible key, on average (S + 1) / 2 keys
"""

import jax

from mm01_jax.config import ModelConfig

# Dense bfloat16 peak in FLOP/s by jax's device_kind; vendors' data sheets.
PEAK = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def active_weights(config: ModelConfig) -> int:
    """Matrix weights that one token multiplies, embedding lookup excluded, head included."""
    D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
    experts = D * config.num_experts + 3 * config.num_experts_per_token * D * config.expert_dim
    mixers = {"lightning": 5 * D * N * H, "softmax": 2 * D * N * H + 2 * D * K * H}
    period = sum(mixers[kind] + experts for kind in config.period)
    return config.num_periods * period + D * config.vocab_size


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Model FLOPs of forward and backward for one token of a full row."""
    N, H = config.num_heads, config.head_dim
    mixing = {"lightning": 4.0 * N * H * H, "softmax": 4.0 * N * H * (sequence_length + 1) / 2}
    forward = 2.0 * active_weights(config) + config.num_periods * sum(mixing[kind] for kind in config.period)
    return 3.0 * forward


def peak_flops(device: jax.Device) -> float | None:
    """The device's dense bfloat16 peak in FLOP/s, or None where it is not known (CPUs)."""
    names = [name for name in PEAK if device.device_kind.startswith(name)]
    return PEAK[max(names, key=len)] if names else None
