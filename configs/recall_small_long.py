"""recall_small at 32,768 tokens: its context extended by the base of the rotary positions (`--init_from`)."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import recall_small


def get_config() -> Config:
    config = recall_small.get_config()
    return dataclasses.replace(
        config,
        name="recall_small_long",
        model=dataclasses.replace(config.model, rope_theta=10_000_000.0),
        data=DataConfig(source="recall:32k", held_out=0.01),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(peak=3e-4, warmup_steps=30, decay_start=240, final=3e-5),
        ),
        train=TrainConfig(
            steps=300, batch_size=2, sequence_length=32_768, eval_every=150, eval_batches=8, loss_chunk=16_384
        ),
    )
