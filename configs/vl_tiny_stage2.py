"""Stage II of vl_tiny, understanding: all of it learns, at the images' own resolution, text mixed in (20 rows to 1)."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import vl_tiny


def get_config() -> Config:
    return dataclasses.replace(
        vl_tiny.get_config(),
        name="vl_tiny_stage2",
        data=DataConfig(
            source="runs/vl/data/stage2.arrayrecord",
            records="conversations",
            mixed_in="runs/vl/data/text.jsonl",
            held_out=0.02,
        ),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=6e-4, warmup_steps=20, decay_start=300, final=2e-5)),
        train=TrainConfig(
            steps=1100, batch_size=14, sequence_length=144, eval_every=1100, checkpoint_every=1100, loss_chunk=2048
        ),
    )
