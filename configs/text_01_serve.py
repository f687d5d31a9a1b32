"""The 456 B model answering on one host of eight H200s: 48 conversations of 32 K tokens at a time.

Experts in int8, the rest in bfloat16: over tensor, which cuts everything but the router and norms by eight; over expert
the attention's would lie on every shard. Eight key/value heads on eight tensor shards.
"""

import dataclasses

from mm01_jax.config import Config, MeshConfig, OptimizerConfig, TrainConfig

from . import text_01


def get_config() -> Config:
    base = text_01.get_config()
    return dataclasses.replace(
        base,
        name="text_01_serve",
        compute=dataclasses.replace(
            base.compute,
            param_dtype="bfloat16",
            quantize="int8",
            exchange_groups=1,
            dropless_bound=None,
            dropless_shard_bound=None,
        ),
        mesh=MeshConfig(data=1, expert=1, tensor=8, sequence=1),
        optimizer=OptimizerConfig(),
        train=TrainConfig(steps=1, batch_size=48, sequence_length=32_768),  # slots, and the length of each
    )
