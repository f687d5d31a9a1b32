"""The valid config that every wrong one is made from; its numbers stay whatever `tiny` becomes."""

from mm01_jax.config import Config, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="base",
        model=ModelConfig(
            vocab_size=320,
            embed_dim=128,
            num_periods=2,
            period=("lightning", "lightning", "softmax"),
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            rotary_dim=16,
            num_experts=4,
            num_experts_per_token=2,
            expert_dim=256,
        ),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(
                peak=2e-4, warmup_steps=10, step_down_at=60, stepped=1.3e-4, decay_start=80, final=3e-5
            )
        ),
        train=TrainConfig(steps=100, batch_size=8, sequence_length=64, batch_ramp=((20, 16), (40, 32))),
    )
