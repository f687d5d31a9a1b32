"""Configs with odd values that the rules allow, or refuse by name: the ends of every range, and several at once."""

import json
import pathlib
import random

from mm01_jax import command
from mm01_jax.config import Config, ConfigError, fields, rules
from mm01_jax.train import loop
from tests import small

COUNT = 200
_MOST = 2**31 - 1
# Field -> values at the ends of what it may be, or where a program may not expect them.
ODD = {
    "model.vocab_size": (257, 258, 511, 1000),
    "model.embed_dim": (1, 2, 3, 7, 17, 33),
    "model.num_periods": (2, 3),
    "model.period": (("lightning",), ("softmax",), ("softmax", "lightning", "lightning"), ("lightning",) * 5),
    "model.num_heads": (1, 3, 5),
    "model.num_kv_heads": (1, 2, 3),
    "model.head_dim": (2, 3, 5, 17, 64),
    "model.rotary_dim": (2, 6, 8),
    "model.rope_theta": (1.0, 1e15),
    "model.num_experts": (1, 2, 3, 17, 64),
    "model.num_experts_per_token": (1, 2, 3, 4),
    "model.expert_dim": (1, 3, 17),
    "model.norm_eps": (1e-30, 1.0),
    "model.lightning_norm_eps": (1e-30, 1.0),
    "model.lightning_alpha": (1e-30, 1e6),
    "model.softmax_alpha": (1e-30, 1e6),
    "model.experts_alpha": (1e-30, 1e6),
    "model.lightning_beta": (0.0, 1e6),
    "model.softmax_beta": (0.0, 1e6),
    "model.experts_beta": (0.0, 1e6),
    "model.routing": ("capacity",),
    "model.capacity_factor": (1e-30, 0.1, 1e6),
    "model.capacity_scope": ("expert_group",),
    "compute.dtype": ("bfloat16",),
    "compute.param_dtype": ("bfloat16",),
    "compute.reduce_dtype": ("bfloat16", "float32"),
    "compute.collectives": ("auto", "copies"),
    "compute.remat": ("auto", "named", "dots", "full"),
    "compute.dropless_bound": (1.0, 1e6),
    "compute.dropless_shard_bound": (1.0, 1e6),
    "compute.exchange_groups": (2, 3, 8),
    "compute.exchange": ("padded", "ragged", "gathered"),
    "compute.sequence_attention": ("gather", "ring"),
    "compute.sequence_layout": ("zigzag",),
    "data.held_out": (0.0, 0.5, 0.999),
    "data.seed": (_MOST,),
    "data.max_bad_records": (_MOST,),
    "data.prefetch": (0, 1024),
    "data.rows_between": (_MOST,),
    "optimizer.schedule.peak": (1e-30, 1.0),
    "optimizer.schedule.warmup_steps": (0, 1, _MOST),
    "optimizer.b1": (0.0, 1 - 2**-24),
    "optimizer.b2": (0.0, 1 - 2**-24),
    "optimizer.eps": (1e-30, 1.0),
    "optimizer.weight_decay": (0.0, 1000.0),
    "optimizer.clip_norm": (None, 1e-30, 1e30),
    "optimizer.moment_dtype": ("bfloat16",),
    "train.batch_size": (1, 3, 5),
    "train.sequence_length": (1, 2, 3, 31),
    "train.batch_ramp": (((1, 4),), ((1, 3), (2, 5))),
    "train.num_microbatches": (2, 3),
    "train.seed": (_MOST,),
    "train.loss_chunk": (1, 7, _MOST),
    "train.balance_loss": ("transformers", "none"),
    "train.balance_coef": (0.0, 1e6),
    "train.z_loss_coef": (1e-30, 1e6),
    "train.max_nonfinite_steps": (1, _MOST),
    "train.eval_every": (1, _MOST),
    "train.eval_batches": (1, _MOST),
    "train.checkpoint_every": (1, _MOST),
    "train.keep_checkpoints": (1, _MOST),
    "train.log_every": (2, _MOST),
    "train.tensorboard": (False,),
    "train.profile": ("1:2", "3:4"),
}


def cases(seed: int = 0) -> dict[str, dict[str, object]]:
    """Title -> what is odd: first every value by itself, then several together."""
    generator = random.Random(seed)
    alone = [{key: value} for key, values in ODD.items() for value in values]
    some = generator.sample(alone, COUNT // 2)
    together = [
        {key: generator.choice(ODD[key]) for key in generator.sample(list(ODD), generator.randint(2, 6))}
        for _ in range(COUNT - len(some))
    ]
    every = some + together
    return {f"{number:03} " + " ".join(f"{k}={v}" for k, v in odd.items()): odd for number, odd in enumerate(every)}


def config_of(odd: dict[str, object], text: pathlib.Path) -> Config:
    """A run of three steps of one layer, saved once; not checked yet."""
    least = {"train__checkpoint_every": 3, "train__tensorboard": False, "data__held_out": 0.0}
    kind = "softmax" if len(str(odd)) % 2 else "lightning"
    config = small.config(text, train__steps=3, model__period=(kind,), **least)
    for key, value in odd.items():
        config = fields.replace(config, key, value)
    return config


def run(odd: str, room: str) -> int:
    """Trains it in this process, as a child of the server of forked calls: 0 where it ran or was refused by name."""
    folder = pathlib.Path(room)
    text = small.write_text(folder / "in")
    plain = {key: fields.canonical(value, fields.leaf_types()[key]) for key, value in json.loads(odd).items()}
    config = config_of(plain, text)
    try:
        if problems := [*rules.problems(config), *rules.training_problems(config)]:
            raise ConfigError(problems)
        loop.report.draw = lambda *_: []  # pictures take longer than the steps
        loop.run(config, str(folder / "out" / "run"))
    except Exception as error:
        if not (code := command.exit_code(error)):
            raise
        print(f"refused with {code}: {error}")
        return 0
    return 0 if (folder / "out" / "run" / "checkpoints" / "00000003").is_dir() else 1
