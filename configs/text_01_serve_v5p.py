"""text_01_serve on 16 v5p chips (v5p-32): 64 slots of 65,536 tokens, over two expert shards."""

import dataclasses

from mm01_jax.config import Config, MeshConfig, TrainConfig

from . import text_01_serve


def get_config() -> Config:
    return dataclasses.replace(
        text_01_serve.get_config(),
        name="text_01_serve_v5p",
        mesh=MeshConfig(data=1, expert=2, tensor=8, sequence=1),
        train=TrainConfig(steps=1, batch_size=64, sequence_length=65_536),
    )
