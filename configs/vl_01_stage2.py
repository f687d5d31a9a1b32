"""Stage II of VL-01, understanding: all of it learns from instructions, at the images' own resolution (paper 5.3).

420 B tokens, a row of Text-01's post-training conversations after every 20 with images. Samples are never cut, and an
image takes up to 11,088 tokens: rows are twice as long as the text model's. Learning rates are ours.
"""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig

from . import vl_01


def get_config() -> Config:
    whole = vl_01.get_config()
    return dataclasses.replace(
        whole,
        name="vl_01_stage2",
        data=DataConfig(
            source="data/instructions/*.arrayrecord",
            tokenizer="data/tokenizer.json",
            records="conversations",
            mixed_in="data/post_training/*.arrayrecord",
        ),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=2e-5, warmup_steps=500, decay_start=10_000, final=2e-6)),
        train=dataclasses.replace(whole.train, steps=100_000, batch_size=256, sequence_length=16_384),
    )
