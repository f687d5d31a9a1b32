"""text_01 trained at 8 K on 512 H100s (80 GB each, eight a host): `tensor` inside a host, on NVLink."""

import dataclasses

from mm01_jax.config import Config, MeshConfig, Rules

from . import text_01


def get_config() -> Config:
    return dataclasses.replace(
        text_01.get_config(),
        name="text_01_h100",
        # The network between hosts is what a step waits for: weights are gathered over four hosts.
        mesh=MeshConfig(data=4, expert=32, tensor=4, sequence=1, rules=Rules(act_embed=("tensor",))),
    )
