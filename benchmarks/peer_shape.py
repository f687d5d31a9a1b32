"""2.64 B parameters, 0.34 B of them multiplied by each token: the shape on which transformers is a peer."""

import dataclasses

from configs import bench_1b
from mm01_jax.config import Config, Rules


def get_config() -> Config:
    config = bench_1b.get_config()
    model = dataclasses.replace(
        config.model, vocab_size=32_768, embed_dim=1024, num_heads=16, num_kv_heads=4, expert_dim=1536
    )
    mesh = dataclasses.replace(config.mesh, rules=Rules())
    train = dataclasses.replace(config.train, batch_size=2)
    return dataclasses.replace(config, name="peer_2.64b", model=model, mesh=mesh, train=train)
