"""MiniMax-M1 answering on one host of eight H200s: 16 conversations of 98,304 tokens, long thoughts among them.

M1 has MiniMax-Text-01's architecture and sizes, value by value: of its config.json a copy was seen, of its tokenizer
the size alone, its weights never. A slot holds a prompt of 16 K and, behind it, the 80 K tokens of thoughts and answer
that M1-80k is named after; its keys and values take 4.0 GB and its states 0.3 GB, over the eight chips.
"""

import dataclasses

from mm01_jax.config import Config, TrainConfig

from . import text_01_serve


def get_config() -> Config:
    return dataclasses.replace(
        text_01_serve.get_config(),
        name="m1_serve",
        train=TrainConfig(steps=1, batch_size=16, sequence_length=98_304),  # slots, and the length of each
    )
