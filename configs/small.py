"""About a billion parameters on bytes, for one host of 8 devices with 80 GB each.

By shapes a device holds 17 GiB. XLA's TPU compiler wants more than twice that and refuses v5e-8 and v6e-8; for GPUs of
80 GB it was planned by shapes alone.
"""

from mm01_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> Config:
    deepnorm_alpha = (2 * 16) ** 0.25  # (2 x layers)^(1/4), paper 4.2
    return Config(
        name="small",
        model=ModelConfig(
            vocab_size=320,
            embed_dim=1024,
            num_periods=2,
            period=("lightning",) * 7 + ("softmax",),
            num_heads=16,
            num_kv_heads=4,
            head_dim=64,
            rotary_dim=32,
            rope_theta=10_000.0,
            num_experts=8,
            num_experts_per_token=2,
            expert_dim=2048,
            lightning_alpha=deepnorm_alpha,
            softmax_alpha=deepnorm_alpha,
            experts_alpha=deepnorm_alpha,
        ),
        mesh=MeshConfig(data=2, expert=4),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=3e-4, warmup_steps=200)),
        train=TrainConfig(steps=5_000, batch_size=64, sequence_length=2048),
    )
