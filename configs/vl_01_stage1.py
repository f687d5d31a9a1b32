"""Stage I of VL-01, alignment: tower and projector learn to speak to Text-01, which stays as it is (paper 5.3).

The paper's 80 B tokens of descriptions are 19,000 of these steps. Its learning rates are not given; these are ours.
"""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig

from . import vl_01


def get_config() -> Config:
    whole = vl_01.get_config()
    return dataclasses.replace(
        whole,
        name="vl_01_stage1",
        vision=dataclasses.replace(whole.vision, grids=((1, 1),)),  # one resolution, 336 x 336
        data=DataConfig(
            source="data/descriptions/*.arrayrecord", tokenizer="data/tokenizer.json", records="conversations"
        ),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(peak=1e-4, warmup_steps=500, decay_start=2_000, final=1e-5), frozen=("text",)
        ),
        train=dataclasses.replace(whole.train, steps=19_000),
    )
