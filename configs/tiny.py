"""CPU size: minutes on two cores, on the standard library's own source. Tests and first steps start here."""

from mm01_jax.config import ComputeConfig, Config, ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def get_config() -> Config:
    deepnorm_alpha = (2 * 8) ** 0.25  # (2 x layers)^(1/4), paper 4.2
    return Config(
        name="tiny",
        model=ModelConfig(
            vocab_size=320,  # 257 used: bytes and the end of a document; a multiple of 64 divides over any small mesh
            embed_dim=64,
            num_periods=2,
            period=("lightning",) * 3 + ("softmax",),
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            rotary_dim=8,
            rope_theta=10_000.0,
            num_experts=4,
            num_experts_per_token=2,
            expert_dim=128,
            lightning_alpha=deepnorm_alpha,
            softmax_alpha=deepnorm_alpha,
            experts_alpha=deepnorm_alpha,
        ),
        compute=ComputeConfig(dtype="float32", remat="none"),  # CPUs have no bfloat16 matmul worth the name
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=2e-3, warmup_steps=20, decay_start=600, final=2e-4)),
        train=TrainConfig(
            steps=1200, batch_size=4, sequence_length=128, loss_chunk=512, eval_every=600, eval_batches=256
        ),
    )
