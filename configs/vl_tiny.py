"""CPU size of MiniMax-VL-01: tiny's text model, and a tower whose images take at most 56 tokens."""

import dataclasses

from mm01_jax.config import Config, VisionConfig

from . import tiny


def get_config() -> Config:
    return dataclasses.replace(
        tiny.get_config(),
        name="vl_tiny",
        vision=VisionConfig(
            embed_dim=64,
            num_layers=2,
            num_heads=4,
            mlp_dim=128,
            image_size=28,
            patch_size=7,  # 16 patches of a tile
            grids=((1, 1), (1, 2), (2, 1)),
            image_token=255,  # of data.tokenizer='bytes': a byte that UTF-8 never has
        ),
    )
