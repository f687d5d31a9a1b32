"""Whether an engine's sizes fit its mesh, and its slots beside what lies there, asked before anything is compiled."""

import functools
import math

import jax

from mm01_jax.inference.engine_programs import Sizes, empty_slots, slot_specs
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.deterministic import CHUNK


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


def check_sizes(sizes: Sizes, row_shards: int, sequence_shards: int) -> None:
    """ValueError where a size is none, or does not fit the shards; names the nearest that does."""

    def refuse(name: str, allowed: str, nearest: int):
        raise ValueError(f"{name}: got {getattr(sizes, name)}; allowed: {allowed}; nearest: {nearest}")

    for name in ("num_slots", "max_length", "grid", "pieces", "wide", "steps", "stop_ids"):
        value = getattr(sizes, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            refuse(name, "a whole number at least 1", 1)
    if sizes.num_slots % row_shards:
        nearest = max(1, round(sizes.num_slots / row_shards)) * row_shards
        refuse("num_slots", f"a multiple of the {row_shards} shards of the rows", nearest)
    if sizes.grid > 256 or sizes.grid % sequence_shards:
        nearest = max(1, round(min(sizes.grid, 256) / sequence_shards)) * sequence_shards
        refuse("grid", f"up to 256, a multiple of the {sequence_shards} shards of the sequence", nearest)
    if sizes.max_length % sizes.grid:
        refuse("max_length", f"a multiple of grid={sizes.grid}", -(-sizes.max_length // sizes.grid) * sizes.grid)
    if sizes.pieces % sizes.wide:
        refuse("pieces", f"a multiple of wide={sizes.wide}", -(-sizes.pieces // sizes.wide) * sizes.wide)
    if not 0 <= sizes.drafts <= 16:
        refuse("drafts", "0 to 16", 4)
    if sizes.deterministic and sizes.grid % CHUNK:
        refuse("grid", f"a multiple of {CHUNK} with deterministic=True, up to 256", CHUNK)
    if sizes.deterministic and sizes.drafts:
        refuse("drafts", "0 with deterministic=True, which computes every token as training does", 0)
    if not 0 <= sizes.logprobs <= 100:
        refuse("logprobs", "0 to 100", 20)
