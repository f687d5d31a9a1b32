"""How much of a layer's forward pass is kept for its backward pass, where `compute.remat` leaves that open.

The most that fits: nothing made again ("none"), else nothing dear ("named"), else all from a layer's input ("full").
On an H200 the 1 B shape takes 105, 111 and 129 ms a step so, in 34, 26 and 16 GiB (benchmarks/train_step.md). Without
remat a scan stacks every intermediate value, in 76 GiB and slower than all others: "none" is for unrolled layers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mm01_jax import cluster
from mm01_jax.config import Config
from mm01_jax.model.decoder import unrolls
from mm01_jax.model.mixers import MIXERS

Remat = Literal["none", "named", "full"]
OF_MEMORY = 0.85  # that the count may reach: it is an estimate, and pieces do not fit into one another
# What XLA keeps of an unrolled layer without remat, as a multiple of what has a name: 18.5 GiB beside 10.1 (H200).
NONE_OVER_NAMED = 2.0


def named_bytes(config: Config) -> int:
    """Bytes on one device of what `pallas_kernels/kept.py` names, of all layers for one microbatch."""
    model, mesh, item = config.model, config.mesh, jnp.dtype(config.compute.dtype).itemsize
    mixers = sum(MIXERS[kind].kept(model) for kind in model.period) // mesh.shards("heads")
    expanded = 2 * model.num_experts_per_token * model.expert_dim // mesh.shards("ffn")
    # A layer's input, the stream between mixer and experts, the experts' results; float32 logits of its router.
    others = ((2 + model.num_experts_per_token) * model.embed_dim + expanded) // mesh.shards("act_seq", "act_batch")
    period = item * (mixers + len(model.period) * others) + len(model.period) * 4 * model.num_experts
    return config.device_tokens * model.num_periods * period


def settle(config: Config, state: Any, memory: int | None) -> Remat:
    """What `compute.remat` asks for; of "auto" the most that a device's memory holds beside the rest of the step.

    Args:
      state: the training state with shardings, abstract or not. memory: bytes of one device; None where nobody knows,
        and then it is "full".
    """
    if config.compute.remat != "auto":
        return config.compute.remat
    kept, least = named_bytes(config), _rest(config, state)
    costs: dict[Remat, float] = {"none": NONE_OVER_NAMED * kept} if unrolls(config.model, "none") else {}
    costs["named"] = kept
    room = OF_MEMORY * (memory or 0) - least
    return next((remat for remat, cost in costs.items() if cost <= room), "full")


def _rest(config: Config, state: Any) -> int:
    """Bytes of a step beside what its layers keep: state, gradients, the loss's logits."""
    sizes = [(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize) for x in jax.tree.leaves(state)]
    weights = sum(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(state.model))
    chunk = min(config.train.loss_chunk, config.device_tokens)
    logits = chunk * config.model.vocab_size // config.mesh.shards("vocab") * 10  # float32, a copy of it, bfloat16
    return sum(sizes) + weights + logits


def with_remat_settled(config: Config, state: Any, log: Callable[[str], None]) -> Config:
    """The config that a step is made of on the current mesh; what "auto" became is said."""
    device = jax.sharding.get_mesh().local_devices[0]  # another process's says nothing of its memory
    memory = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    memory = cluster.least(memory)
    remat = settle(config, state, memory)
    if config.compute.remat == "auto":
        room = f"{memory / 2**30:.0f} GiB a device" if memory else "a device's memory is not known"
        log(f"remat: {remat} (auto; named values take {named_bytes(config) / 2**30:.1f} GiB; {room})")
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat=remat))
