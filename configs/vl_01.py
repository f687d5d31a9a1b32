"""MiniMax-VL-01: 456 B parameters as released, Text-01 with eyes; its stage II (paper 5) on 512 chips (v5p-1024).

The vision transformer is CLIP's ViT-L/14 at 336 pixels without its last norm. An image becomes 2 to 19 tiles and
1,152 to 11,088 tokens. The paper says which data the stage saw, 420 B tokens at 20 multimodal to 1 of text, and not
at which learning rate.
"""

import dataclasses

from mm01_jax.config import Config, VisionConfig

from . import text_01


def get_config() -> Config:
    text = text_01.get_config()
    return dataclasses.replace(
        text,
        name="vl_01",
        vision=VisionConfig(
            embed_dim=1024,
            num_layers=24,
            num_heads=16,
            mlp_dim=4096,
            image_size=336,
            patch_size=14,
        ),
    )
