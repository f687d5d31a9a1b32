"""Other implementations' training steps on the 1 B shape, where they are installed, for the step's bench.

They are no dependencies: looked up by name when a benchmark asks, and nowhere else.
"""

import functools
import importlib

import jax
import jax.numpy as jnp

from benchmarks import mesh, train_parts
from mm01_jax.config import Config

# Settings of jax-linear-attention's step: as its preset comes, and with its kernels for head and loss and its cheaper
# guard of refused steps, which its documentation has for speed.
JLA = {
    "jla": {},
    "jla, its head kernel": {"ce_impl": "mosaic_gpu", "ce_grad_in_forward": True, "update_guard": "select"},
}


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
