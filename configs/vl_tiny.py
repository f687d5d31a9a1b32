"""CPU size of MiniMax-VL-01: a quarter of tiny's text model, and a tower whose images take at most 16 tokens."""

import dataclasses

from mm01_jax.config import Config, VisionConfig

from . import tiny


def get_config() -> Config:
    text = tiny.get_config()
    deepnorm_alpha = (2 * 2) ** 0.25  # (2 x layers)^(1/4), paper 4.2
    model = dataclasses.replace(
        text.model,
        num_periods=1,
        period=("lightning", "softmax"),
        lightning_alpha=deepnorm_alpha,
        softmax_alpha=deepnorm_alpha,
        experts_alpha=deepnorm_alpha,
    )
    return dataclasses.replace(
        text,
        name="vl_tiny",
        model=model,
        vision=VisionConfig(
            embed_dim=64,
            num_layers=2,
            num_heads=4,
            mlp_dim=128,
            image_size=16,
            patch_size=8,  # 4 patches of a tile
            grids=((1, 1), (1, 2), (2, 1)),
            image_token=255,  # of data.tokenizer='bytes': a byte that UTF-8 never has
        ),
    )
