"""The 456 B model serving contexts of a million tokens on the smallest TPU pod that holds it: 16 chips (v5p-32).

Weights in bfloat16 over expert and tensor, none gathered; two rows, one for each shard of the batch; eight key/value
heads on eight tensor shards.
"""

import dataclasses

from mm01_jax.config import Config, MeshConfig, OptimizerConfig, TrainConfig

from . import text_01


def get_config() -> Config:
    base = text_01.get_config()
    return dataclasses.replace(
        base,
        name="text_01_decode_1m",
        compute=dataclasses.replace(base.compute, param_dtype="bfloat16", exchange_groups=1),
        mesh=MeshConfig(data=1, expert=2, tensor=8, sequence=1),
        optimizer=OptimizerConfig(),
        train=TrainConfig(steps=1, batch_size=2, sequence_length=1_048_576),  # rows, and the length of their cache
    )
