"""How many requests a server takes at a time, and how much it remembers, from what memory there is."""

import math
from typing import NamedTuple

import jax

from mm01_jax import cluster, sharding
from mm01_jax.inference import fitting
from mm01_jax.inference.engine_room import free_bytes
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel
from pallas_kernels import dispatch

_MOST_SLOTS, _SLOTS_UNTOLD = 64, 8  # at most unasked; where a device does not say what it has left
_PIECES = 8  # of a prompt in one call
_LANES, _MOVED = 8, 256 << 20  # prompts of which a call takes a piece, as long as it moves so many bytes at most
_SHARE = 0.85  # of what is left: programs need some, too


class Room(NamedTuple):
    """slots: requests at a time, of `context` tokens and `slot_bytes` each. prefix_bytes: for what is remembered of
    prompts. All bytes are of all devices together. cuts: how prompts are taken in, as `Engine` wants it.
    """

    slots: int
    context: int
    slot_bytes: int
    prefix_bytes: int
    cuts: dict[str, int]


def room_of(model: TextModel | VLModel, context: int, slots: int | None, memory: float | None) -> Room:
    """
    Args:
      context: tokens of a prompt and its answer, at least. slots: None takes what fits. memory: GiB for slots and what
        is remembered, on all devices together; None takes most of what is left.

    Raises:
      ValueError: not one request fits.
    """
    mesh, rules = sharding.mesh_of(model), model.rules
    sequence, rows = (math.prod(mesh.shape[axis] for axis in axes) for axes in (rules.seq, rules.batch))
    rows *= sequence
    cuts = fitting.cuts_of(context, sequence)
    # A piece a product: the bits of an answer then follow from its prompt alone, and others wait for a piece at most.
    cuts |= {"wide": 1, "pieces": _PIECES}
    context = -(-context // cuts["grid"]) * cuts["grid"]
    slot = fitting.slot_bytes(model, mesh, context)
    left = _left(mesh) if memory is None else int(memory * 2**30)
    if left is None:
        slots = slots or _SLOTS_UNTOLD
        left = slots * slot + slots * slot // 2
    slots = max(rows, (slots or min(_MOST_SLOTS, left * 3 // 4 // slot)) // rows * rows)
    if mesh.size == 1 and dispatch.platform() == "gpu" and not isinstance(model, VLModel):
        cuts["lanes"] = max(1, min(_LANES, slots, _MOVED // slot))
    if isinstance(model, VLModel):
        cuts["tiles"] = -(-fitting.MOST_TILES // rows) * rows
    if slots * slot > left:
        raise ValueError(
            f"--context={context}: {slots} requests take {slots * slot:,} bytes beside the weights; allowed: {left:,}; "
            f"nearest: a smaller --context, fewer --slots, more --memory"
        )
    return Room(slots, context, slot, left - slots * slot, cuts)


def _left(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes of all devices; None where one does not say."""
    free = [free_bytes(device) for device in mesh.local_devices]
    least = cluster.least(None if any(told is None for told in free) else min(free))
    return None if least is None else int(least * _SHARE) * mesh.size
