"""text_01 at 1 M context: rows of 1,032,192 tokens, cut over a sequence axis of 16, on the same 512 chips.

The batch and the learning rate are those of the paper's long supervised stage (table 7, stage II), the tokens those of
its 1 M extension (table 6): 26 B.
"""

import dataclasses

from mm01_jax.config import Config, MeshConfig, OptimizerConfig, Rules, ScheduleConfig, TrainConfig

from . import text_01


def get_config() -> Config:
    base = text_01.get_config()
    # Weights are stored in parts over `sequence` too: data has one shard. With two, and 8 sequence shards, the compiler
    # needs 111.8 GiB of temporaries; a chip has 95.7.
    rules = Rules(embed=("data", "sequence"), act_embed=("tensor",))
    return dataclasses.replace(
        base,
        name="text_01_1m",
        # 64,512 tokens a chip, 32,256 of them early in the row and as many late, so that causality spares every chip
        # the same half of the attention; eight groups through the experts. By bytes, keys go round in a ring.
        compute=dataclasses.replace(base.compute, exchange_groups=8, sequence_layout="zigzag"),
        mesh=MeshConfig(data=1, expert=8, tensor=4, sequence=16, rules=rules),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(peak=3e-6, warmup_steps=0)),
        train=TrainConfig(
            steps=315,
            batch_size=80,
            num_microbatches=10,  # one row of each shard at a time
            sequence_length=1_032_192,
            checkpoint_every=50,
            eval_every=50,
        ),
    )
