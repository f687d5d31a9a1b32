"""1.04 B parameters, 154 M of them multiplied by each token: the shape that throughput is compared on.

The shape of jax-linear-attention's `minimax-01-1b` preset: 16 layers, two of them softmax, 32 experts top-2.
"""

from mm01_jax.config import (
    ComputeConfig,
    Config,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Rules,
    ScheduleConfig,
    TrainConfig,
)


def get_config() -> Config:
    deepnorm_alpha = (2 * 16) ** 0.25  # (2 x layers)^(1/4), paper 4.2
    return Config(
        name="bench_1b",
        model=ModelConfig(
            vocab_size=50_304,
            embed_dim=768,
            num_periods=2,
            period=("lightning",) * 7 + ("softmax",),
            num_heads=8,
            num_kv_heads=1,
            head_dim=128,
            rotary_dim=64,
            rope_theta=10_000.0,
            num_experts=32,
            num_experts_per_token=2,
            expert_dim=768,
            lightning_alpha=deepnorm_alpha,
            softmax_alpha=deepnorm_alpha,
            experts_alpha=deepnorm_alpha,
        ),
        compute=ComputeConfig(dropless_bound=2.0),  # the worst case would be 16 times the balanced load
        mesh=MeshConfig(rules=Rules(kv_heads=())),  # one key head: every tensor shard holds it
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=3e-4, warmup_steps=100)),
        train=TrainConfig(steps=2000, batch_size=4, sequence_length=8192, loss_chunk=16_384),
    )
