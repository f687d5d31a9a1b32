"""text_01_serve on 64 v6e chips (v6e-64) of 31 GiB each: 128 slots of 32,768 tokens, over eight expert shards."""

import dataclasses

from mm01_jax.config import Config, MeshConfig, TrainConfig

from . import text_01_serve


def get_config() -> Config:
    return dataclasses.replace(
        text_01_serve.get_config(),
        name="text_01_serve_v6e",
        mesh=MeshConfig(data=1, expert=8, tensor=8, sequence=1),
        train=TrainConfig(steps=1, batch_size=128, sequence_length=32_768),
    )
