"""The tower of vl_tiny before it meets the text model: captions and contrast, with a small decoder (paper 5)."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import vl_tiny


def get_config() -> Config:
    whole = vl_tiny.get_config()
    return dataclasses.replace(
        whole,
        name="vl_tiny_tower",
        model=dataclasses.replace(
            whole.model, embed_dim=32, period=("softmax",), num_heads=2, num_kv_heads=1, expert_dim=32
        ),
        vision=dataclasses.replace(whole.vision, grids=((1, 1),)),
        data=DataConfig(
            source="runs/vl/data/captions.arrayrecord", records="conversations", template="plain", held_out=0.02
        ),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=3e-3, warmup_steps=20, decay_start=1000, final=1e-4)),
        train=TrainConfig(
            steps=2400,
            batch_size=12,
            sequence_length=128,  # seven captions
            objective="captions_and_contrast",
            eval_every=2400,
            checkpoint_every=2400,
            loss_chunk=2048,
        ),
    )
