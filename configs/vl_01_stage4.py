"""Stage IV of VL-01, preference: 40,000 pairs with images and much text, stopped before one epoch (paper 5.3).

The paper minimises DPO's loss. This is its data, pairs of answers, and its schedule; learnt are the preferred ones
alone, by cross-entropy, until there is an objective of pairs.
"""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig

from . import vl_01


def get_config() -> Config:
    whole = vl_01.get_config()
    return dataclasses.replace(
        whole,
        name="vl_01_stage4",
        data=DataConfig(
            source="data/pairs/*.arrayrecord",
            tokenizer="data/tokenizer.json",
            records="pairs",
            mixed_in="data/pairs_of_text/*.arrayrecord",
            rows_between=1,
        ),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=5e-7, warmup_steps=20, decay_start=100, final=5e-8)),
        train=dataclasses.replace(whole.train, steps=300, batch_size=128, sequence_length=16_384),
    )
