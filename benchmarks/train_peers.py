"""Other implementations' training steps, and parts of one, where they are installed, for the step's bench.

They are no dependencies: looked up by name when a benchmark asks, and nowhere else.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import mesh, train_parts, train_torch
from mm01_jax.config import Config
from mm01_jax.model.flops import train_flops_per_token


def jla(config: Config, **settings) -> train_parts.Part:
    """jax-linear-attention 0.1.0, its preset `minimax-01-1b`: AdamW, float32 masters, full remat, as its trainer does.

    ValueError where its preset is not the shape of `config`.
    """
    models, step, settings_of = (
        importlib.import_module(f"jla.{name}") for name in ("models", "training.step", "config")
    )
    equinox = importlib.import_module("equinox")
    model_config = importlib.import_module("jla.models.presets").get_preset("minimax-01-1b")
    theirs = (model_config.vocab_size, model_config.d_model, model_config.n_layers, model_config.moe.num_experts)
    ours = (config.model.vocab_size, config.model.embed_dim, config.model.num_layers, config.model.num_experts)
    if theirs != ours:
        raise ValueError(f"jla's preset has vocabulary, width, layers and experts {theirs}, this config {ours}")
    rows, length = config.train.batch_size, config.train.sequence_length
    train = settings_of.TrainConfig(seq_len=length, micro_batch_per_replica=rows, **settings)
    optimizer = _jla_optimizer(settings_of.OptimConfig(), train.max_steps, model_config.d_model)
    train_step = step.build_train_step(
        optimizer, step.lm_loss(step.LossConfig.from_train_config(train)), update_guard=train.update_guard
    )

    def start():
        key, train_key = jax.random.split(jax.random.key(0))
        model = equinox.filter_jit(models.build_model)(model_config, key=key)
        return model, jax.jit(optimizer.init)(equinox.filter(model, equinox.is_inexact_array)), train_key

    @functools.cache
    def arrays(number: int) -> dict[str, jax.Array]:
        batch = mesh.rows(config, number)
        named = {"input_ids": batch.tokens, "labels": batch.targets, "positions": batch.positions}
        return {name: jnp.asarray(x)[None] for name, x in {**named, "segment_ids": batch.segments}.items()}

    def run(compiled, state, number: int):
        train_step.use_compiled(compiled)
        model, opt_state, key = state
        model, opt_state, metrics, key = train_step(model, opt_state, arrays(number % 8), key)
        return (model, opt_state, key), metrics["loss"]

    model, opt_state, key = start()
    ids = dict.fromkeys(arrays(0), jnp.zeros((1, rows, length), jnp.int32))
    return train_parts.Part(train_step.lower(model, opt_state, ids, key), start, run, rows * length, 0.0)


def _jla_optimizer(optim, steps: int, width: int):
    schedules = importlib.import_module("jla.training.schedulers")
    schedule = schedules.create_schedule(
        optim.lr,
        optim.schedule,
        total_steps=steps,
        warmup_steps=optim.warmup_steps,
        min_lr_ratio=optim.min_lr_ratio,
        stable_fraction=optim.stable_fraction,
        decay_type=optim.decay_type,
        d_model=width,
    )
    return importlib.import_module("jla.training.optimizers").optimizer_from_config(optim, schedule)


@dataclasses.dataclass(frozen=True)
class _Eager:
    """What is run as it is, in the place of a lowered program."""

    call: Callable[[], Any]

    def compile(self) -> Callable[[], Any]:
        return self.call


def torch_products(config: Config) -> train_parts.Part:
    """The sum of `torch._grouped_mm`'s products of one expert layer, forward and backward."""
    model = config.model
    flops = 18.0 * model.num_experts_per_token * model.embed_dim * model.expert_dim
    return _of_torch(config, train_torch.grouped_products(config), flops)


def transformers_model(config: Config) -> train_parts.Part:
    """transformers' model, forward and backward."""
    flops = train_flops_per_token(config.model, config.train.sequence_length)
    return _of_torch(config, train_torch.language_model(config), flops)


def _of_torch(config: Config, call: Callable[[], Any], flops_per_token: float) -> train_parts.Part:
    torch, tokens = importlib.import_module("torch"), config.train.batch_size * config.train.sequence_length

    def run(compiled, state, number: int):
        out = compiled()
        return state, out if isinstance(out, torch.Tensor) else 0.0

    flops = tokens * flops_per_token
    return train_parts.Part(_Eager(call), lambda: None, run, tokens, flops, lambda _: torch.cuda.synchronize())


_JLA_FAST = {"ce_impl": "mosaic_gpu", "ce_grad_in_forward": True, "update_guard": "select"}


class Peer(NamedTuple):
    """What a peer is called in results, the part of a step that it is a peer of, how that is made."""

    title: str
    part: str
    make: Callable[[Config], train_parts.Part]


# By name on the command line. jla's step as its preset comes, and with its kernels for head and loss and its cheaper
# guard of refused steps, which its documentation has for speed.
PEERS = {
    "jla": Peer("jla", "step", jla),
    "jla-head": Peer("jla, its head kernel", "step", functools.partial(jla, **_JLA_FAST)),
    "torch": Peer("torch, products alone", "experts", torch_products),
    "transformers": Peer("transformers", "forward_backward", transformers_model),
}
