"""Learns to find and to copy: about 100 M parameters on bytes, for one accelerator of 80 GB, in minutes.

Documents of 1,024 bytes, of which the answers alone are learnt (`mm01_jax/data/recall.py`). It goes on from
`recall_small_copies` (`--init-from`), and `recall_small_long` from there at a longer context.
"""

from mm01_jax.config import (
    Config,
    DataConfig,
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
        name="recall_small",
        model=ModelConfig(
            vocab_size=320,
            embed_dim=512,
            num_periods=2,
            period=("lightning",) * 7 + ("softmax",),
            num_heads=4,
            num_kv_heads=1,
            head_dim=128,
            rotary_dim=64,
            rope_theta=10_000_000.0,  # of the long context from the beginning
            num_experts=8,
            num_experts_per_token=2,
            expert_dim=384,
            lightning_alpha=deepnorm_alpha,
            softmax_alpha=deepnorm_alpha,
            experts_alpha=deepnorm_alpha,
        ),
        mesh=MeshConfig(rules=Rules(kv_heads=())),  # one key head: every tensor shard holds it
        data=DataConfig(source="recall:1k:codes", held_out=0.01),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(peak=7e-4, warmup_steps=100),
        ),
        train=TrainConfig(
            steps=700,
            batch_size=4,
            sequence_length=4096,
            eval_every=700,
            eval_batches=16,
            loss_chunk=16_384,
            checkpoint_every=1000,
        ),
    )
