"""Stage III of VL-01, user experience: one epoch of 44.8 B tokens of what people send (paper 5.3). Rates are ours."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig

from . import vl_01


def get_config() -> Config:
    whole = vl_01.get_config()
    return dataclasses.replace(
        whole,
        name="vl_01_stage3",
        data=DataConfig(
            source="data/experience/*.arrayrecord", tokenizer="data/tokenizer.json", records="conversations"
        ),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=1e-5, warmup_steps=200, decay_start=1_000, final=1e-6)),
        train=dataclasses.replace(whole.train, steps=10_700, batch_size=256, sequence_length=16_384),
    )
