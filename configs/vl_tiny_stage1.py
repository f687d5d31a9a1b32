"""Stage I of vl_tiny, alignment: tower and projector learn to speak to the text model, which stays as it is."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import vl_tiny


def get_config() -> Config:
    whole = vl_tiny.get_config()
    return dataclasses.replace(
        whole,
        name="vl_tiny_stage1",
        vision=dataclasses.replace(whole.vision, grids=((1, 1),)),  # one resolution, as the paper's 336 x 336
        data=DataConfig(source="runs/vl/data/stage1.arrayrecord", records="conversations", held_out=0.02),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(peak=1e-3, warmup_steps=20, decay_start=200, final=5e-5), frozen=("text",)
        ),
        train=TrainConfig(
            steps=600, batch_size=14, sequence_length=144, eval_every=600, checkpoint_every=600, loss_chunk=2048
        ),
    )
