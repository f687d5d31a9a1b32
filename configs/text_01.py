"""MiniMax-Text-01: 456 B parameters, 45.9 B activated, as released; trained at 8 K on 512 chips (v5p-1024).

The learning rates and the shares of tokens at each are the paper's (4.2): 7.2 T at the peak, 3.2 T stepped down, 1 T
decaying. Its batches (16 M tokens rising to 128 M) are for a larger machine than this one; these are 4.2 M.
"""

from mm01_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Rules,
    ScheduleConfig,
    TrainConfig,
)

_COMPUTE = ComputeConfig(
    remat="full",
    dropless_bound=2.0,  # the worst case would be 16 times the balanced load on every chip
    dropless_shard_bound=1.5,  # two experts of a shard even each other out
    exchange_groups=2,  # half the buffers; the exchange of one runs beside the experts of the other
)


def get_config() -> Config:
    deepnorm_alpha = (2 * 80) ** 0.25  # 3.5565588200778455, (2 x layers)^(1/4)
    return Config(
        name="text_01",
        model=ModelConfig(
            vocab_size=200_064,
            embed_dim=6144,
            num_periods=10,
            period=("lightning",) * 7 + ("softmax",),
            num_heads=64,
            num_kv_heads=8,
            head_dim=128,
            rotary_dim=64,
            rope_theta=10_000_000.0,  # the released model's; its first stage of training had 10,000
            num_experts=32,
            num_experts_per_token=2,
            expert_dim=9216,
            lightning_alpha=deepnorm_alpha,
            softmax_alpha=deepnorm_alpha,
            experts_alpha=deepnorm_alpha,
        ),
        compute=_COMPUTE,
        mesh=MeshConfig(data=8, expert=16, tensor=4, sequence=1, rules=Rules(act_embed=("tensor",))),
        data=DataConfig(source="data/*.arrayrecord", tokenizer="data/tokenizer.json"),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(
                peak=2e-4,
                warmup_steps=500,
                step_down_at=1_716_600,  # after 7.2 T tokens
                stepped=1.3e-4,
                decay_start=2_479_500,  # after 10.4 T
                final=3e-5,
            )
        ),
        train=TrainConfig(steps=2_718_000, batch_size=512, sequence_length=8192, checkpoint_every=500, eval_every=1000),
    )
