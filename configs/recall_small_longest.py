"""recall_small at 131,072 tokens a document (`--init-from`)."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import recall_small


def get_config() -> Config:
    return dataclasses.replace(
        recall_small.get_config(),
        name="recall_small_longest",
        data=DataConfig(source="recall:128k:codes", held_out=0.01),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(peak=1e-4, warmup_steps=5, decay_start=20, final=1e-5),
        ),
        train=TrainConfig(
            steps=60,
            batch_size=1,
            sequence_length=131_072,
            eval_every=60,
            eval_batches=4,
            loss_chunk=16_384,
            checkpoint_every=1000,
        ),
    )
