"""recall_small at 32,768 tokens (`--init-from`)."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import recall_small


def get_config() -> Config:
    return dataclasses.replace(
        recall_small.get_config(),
        name="recall_small_long",
        data=DataConfig(source="recall:32k", held_out=0.01),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(peak=3e-4, warmup_steps=10),
        ),
        train=TrainConfig(
            steps=300,
            batch_size=2,
            sequence_length=32_768,
            eval_every=150,
            eval_batches=8,
            loss_chunk=16_384,
            checkpoint_every=1000,
        ),
    )
