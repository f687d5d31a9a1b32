"""Bytes on one chip, before any compilation: exact for what a step is given, an estimate for what it makes.

The estimate of a training step: gradients as large as the parameters; the input of every layer, kept for the backward
pass (remat "full"), and beside it what has a name (remat "named", and at least so much with "none"); of one layer its
gathered weights, twice, because the next ones arrive while these are used, and the buffers of one group's experts,
forward and backward.
"""

import functools
import math
from typing import Any

import jax

from mm01_jax import sharding
from mm01_jax.config import Config
from mm01_jax.model.remat import named_bytes
from mm01_jax.parallel.experts.exchange import Buffers
from mm01_jax.plan.steps import Step


def per_chip(step: Step) -> dict[str, int]:
    """Part of the arguments -> bytes on one chip, by its shardings."""
    return {name: _bytes(part) for name, part in step.parts.items()}


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def estimated(kind: str, config: Config, tokens: int, parameters: int) -> dict[str, int]:
    """What the step makes on one chip: name -> bytes.

    Args:
      tokens: of one call, on all chips. parameters: bytes of the parameters on one chip.
    """
    model, compute, train = config.model, config.compute, config.train
    item, stored = (2 if name == "bfloat16" else 4 for name in (compute.dtype, compute.param_dtype))
    micro = train.num_microbatches if kind == "train" else 1
    chip_tokens = tokens // config.mesh.shards("batch", "seq") // micro
    width, passes = model.embed_dim, 2 if kind == "train" else 1
    layer_weights = parameters * config.mesh.shards("embed") * item // (stored if kind == "train" else item)
    layer_weights //= model.num_layers
    buffers = expert_buffers(config, chip_tokens)
    rows = buffers.shards * buffers.send
    expert_width = model.expert_dim // config.mesh.shards("ffn")
    sizes = {
        "gathered weights": 2 * layer_weights if config.mesh.shards("embed") > 1 else 0,
        # Rows arrive, are sorted, and come back; gate, up and their product between. float32 results: twice the bytes.
        "expert buffers": passes * rows * item * (4 * width + 4 * expert_width),
    }
    if kind == "train":
        sizes["gradients"] = parameters
        cut = config.mesh.shards("act_embed", "act_seq", "act_batch")
        sizes["layer inputs"] = model.num_layers * chip_tokens * width * item // cut
        if compute.remat in ("named", "none"):
            sizes["named values"] = named_bytes(config)
        sizes["loss"] = min(train.loss_chunk, chip_tokens) * model.vocab_size * 4 // config.mesh.shards("vocab")
    return sizes


def expert_buffers(config: Config, device_tokens: int) -> Buffers:
    """Of the experts' exchange when every chip has so many tokens."""
    axis_size = functools.partial(getattr, config.mesh)
    own = max(device_tokens // config.mesh.shards("act_seq", "act_batch"), 1)
    return Buffers.of(own, config.model, config.compute, sharding.of_stream(config.mesh.rules), axis_size)


def sequence_keys(config: Config) -> tuple[int, int, int]:
    """(bytes of one shard's keys and values in a softmax layer of a training step, of one number, sequence shards)."""
    model, train = config.model, config.train
    item, shard_count = 2 if config.compute.dtype == "bfloat16" else 4, config.mesh.shards("seq")
    rows = train.batch_size // config.mesh.shards("batch") // train.num_microbatches
    heads = max(1, model.num_kv_heads // config.mesh.shards("heads"))  # those that a shard's query heads use
    return 2 * rows * train.sequence_length // shard_count * heads * model.head_dim * item, item, shard_count
