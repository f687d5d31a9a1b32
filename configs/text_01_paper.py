"""MiniMax-Text-01's first stage as its paper tells it (4.1, 4.2): 8 K rows, 11.4 T tokens, on 2,048 chips (v5p-4096).

Beside text_01, the released model: experts of a bounded capacity that drop what is beyond it, filled over the whole
batch (the global router); RoPE's first base; batches that rise from 16 M to 128 M tokens; the learning rates at the
paper's shares of tokens. The paper names no capacity factor, no clipping and no epsilon: those are this project's.
"""

import dataclasses

from mm01_jax.config import Config, MeshConfig, OptimizerConfig, Rules, ScheduleConfig, TrainConfig

from . import text_01

_ROW = 8192
# (tokens seen, tokens a batch from there on)
_BATCHES = ((0.0, 2**24), (69e9, 2**25), (790e9, 2**26), (4.7e12, 2**27))
_STEP_DOWN, _DECAY, _END = 7.2e12, 10.4e12, 11.4e12  # tokens: 7.2 T at the peak, 3.2 T stepped down, 1 T decaying


def _step(tokens: float) -> int:
    """The step at which so many tokens were seen."""
    steps = 0.0
    for (start, size), (stop, _) in zip(_BATCHES, (*_BATCHES[1:], (tokens, 0)), strict=True):
        steps += max(0.0, min(stop, tokens) - start) / size
    return round(steps)


def get_config() -> Config:
    base = text_01.get_config()
    return dataclasses.replace(
        base,
        name="text_01_paper",
        model=dataclasses.replace(
            base.model, rope_theta=10_000.0, routing="capacity", capacity_factor=1.25, capacity_scope="global"
        ),
        # Eight rows a chip in a microbatch of the last batches: 64 K tokens, eight groups through the experts.
        compute=dataclasses.replace(base.compute, dropless_bound=None, dropless_shard_bound=None, exchange_groups=8),
        mesh=MeshConfig(data=32, expert=16, tensor=4, sequence=1, rules=Rules(act_embed=("tensor",))),
        optimizer=OptimizerConfig(
            schedule=ScheduleConfig(
                peak=2e-4,
                warmup_steps=500,
                step_down_at=_step(_STEP_DOWN),
                stepped=1.3e-4,
                decay_start=_step(_DECAY),
                final=3e-5,
            ),
            b1=0.9,
            b2=0.95,
            weight_decay=0.1,
        ),
        train=TrainConfig(
            steps=_step(_END),
            batch_size=_BATCHES[0][1] // _ROW,
            batch_ramp=tuple((_step(tokens), size // _ROW) for tokens, size in _BATCHES[1:]),
            num_microbatches=4,  # of one row a chip at first
            sequence_length=_ROW,
            balance_loss="paper",
            balance_coef=0.01,
            checkpoint_every=500,
            eval_every=1000,
        ),
    )
