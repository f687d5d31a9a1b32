"""What vl_tiny can read before it sees: its text model, on conversations whose pictures are told in letters."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import vl_tiny


def get_config() -> Config:
    return dataclasses.replace(
        vl_tiny.get_config(),
        name="vl_tiny_text",
        vision=None,
        data=DataConfig(source="runs/vl/data/text.jsonl", records="conversations", held_out=0.05),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=3e-3, warmup_steps=20, decay_start=150, final=3e-4)),
        train=TrainConfig(
            steps=400, batch_size=14, sequence_length=144, eval_every=400, checkpoint_every=400, loss_chunk=2048
        ),
    )
