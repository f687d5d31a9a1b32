"""recall_small's first stage: documents that say a stretch twice, of which it learns to look back."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import recall_small


def get_config() -> Config:
    return dataclasses.replace(
        recall_small.get_config(),
        name="recall_small_copies",
        data=DataConfig(source="recall:1k:twice", held_out=0.01),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=7e-4, warmup_steps=100)),
        train=TrainConfig(
            steps=300,
            batch_size=4,
            sequence_length=4096,
            eval_every=300,
            eval_batches=8,
            loss_chunk=16_384,
            checkpoint_every=1000,
        ),
    )
