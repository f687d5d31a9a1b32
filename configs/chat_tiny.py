"""A chat model of CPU size: questions about the standard library, answers that end (benchmarks/train_chat.py)."""

import dataclasses

from mm01_jax.config import Config, DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig

from . import tiny


def get_config() -> Config:
    return dataclasses.replace(
        tiny.get_config(),
        name="chat_tiny",
        data=DataConfig(source="runs/chat/conversations.jsonl", records="conversations", held_out=0.02),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=4e-3, warmup_steps=20, decay_start=700, final=4e-4)),
        train=TrainConfig(
            steps=1600, batch_size=32, sequence_length=768, loss_chunk=24_576, eval_every=400, checkpoint_every=400
        ),
    )
