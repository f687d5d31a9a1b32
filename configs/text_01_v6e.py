"""text_01 trained at 8 K on two slices of 256 v6e chips (v6e-256x2), which have 31 GiB each.

The first moment in bfloat16, four microbatches of one row a shard, and more of `data`, over which weights outside the
experts are stored in parts. `data` spans the slices.
"""

import dataclasses

from mm01_jax.config import Config, MeshConfig, Rules

from . import text_01


def get_config() -> Config:
    base = text_01.get_config()
    return dataclasses.replace(
        base,
        name="text_01_v6e",
        mesh=MeshConfig(data=16, expert=8, tensor=4, sequence=1, rules=Rules(act_embed=("tensor",))),
        optimizer=dataclasses.replace(base.optimizer, moment_dtype="bfloat16"),
        train=dataclasses.replace(base.train, num_microbatches=4),
    )
