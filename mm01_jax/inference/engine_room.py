"""Whether an engine's slots fit beside what lies on its devices, asked before anything is compiled."""

import functools
import math

import jax

from mm01_jax.inference.engine_programs import empty_slots, slot_specs
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.model.decoder import TextModel


def free_bytes(device: jax.Device) -> int | None:
    """What a device has left; None where it does not say (a CPU)."""
    told = device.memory_stats() or {}
    return told["bytes_limit"] - told["bytes_in_use"] if "bytes_limit" in told else None


def check_room(decoder: TextModel, mesh: jax.sharding.Mesh, sizes: Sizes, prefix_bytes: int) -> None:
    """ValueError where slots and what is remembered need more than the fullest device has left.

    Args:
      decoder: the model of one token a row (`views.decoding`), its weights on their devices.
      prefix_bytes: on all devices together.
    """
    told = [free_bytes(device) for device in mesh.local_devices]
    if any(free is None for free in told):
        return
    config, rules = decoder.config, decoder.rules
    with jax.set_mesh(mesh):
        slots = jax.eval_shape(functools.partial(empty_slots, config, decoder.compute, rules, sizes))
        specs = slot_specs(slots, config, rules)

    def on_a_device(x, spec) -> int:
        return math.prod(jax.sharding.NamedSharding(mesh, spec).shard_shape(x.shape)) * x.dtype.itemsize

    needed = sum(jax.tree.leaves(jax.tree.map(on_a_device, slots, specs)))
    kept, free = -(-prefix_bytes // mesh.size), min(told)
    if needed + kept > free:
        shards = math.prod(mesh.shape[axis] for axis in rules.batch)
        fitting = max(0, free - kept) * sizes.num_slots // needed // shards * shards
        nearest = f"num_slots={fitting}" if fitting else "fewer prefix_bytes, a smaller max_length or more devices"
        raise ValueError(
            f"num_slots={sizes.num_slots}, max_length={sizes.max_length}, prefix_bytes={prefix_bytes}: need {needed:,} "
            f"and {kept:,} bytes of a device; allowed: {free:,}, what it has left; nearest: {nearest}"
        )
