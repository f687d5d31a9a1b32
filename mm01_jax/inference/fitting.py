"""An engine as small as what is asked of it needs. Its shapes are few, so that its programs are, too."""

import functools
import math
from collections.abc import Sequence

import jax

from mm01_jax import sharding
from mm01_jax.data.image_grid import bucket
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference.asked import Job, ends
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.engine_room import free_bytes
from mm01_jax.inference.thoughts import Budget
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import empty_cache
from mm01_jax.model.multimodal import VLModel
from pallas_kernels import dispatch

GRID = 64  # tokens of a piece of a prompt; 256, the most that an engine takes, where products are made of several
PRODUCT = {"gpu": 4096, "tpu": 512}  # tokens of a prompt in one product, on a shard of the sequence
STEP = 256  # positions: a slot has a multiple of so many
STOP_IDS = 8
MOST_TILES = 8  # in a call of the tower
SNAPSHOTS = 16  # pieces between two states of a conversation's prompt that are kept


def request_of(job: Job, tokenizer: Tokenizer) -> Request:
    """What an engine is asked for a job."""
    settings, ending = job.settings, ends(tokenizer, job)
    budget = settings.thinking_tokens
    return Request(
        prompt=job.prompt,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
        seed=settings.seed,
        stop_ids=tuple(sorted(ending.ids)),
        stop=ending.strings,
        mask=None if budget is None else Budget(tokenizer, budget),
    )


def engine_for(
    model: TextModel | VLModel,
    tokenizer: Tokenizer | None,
    requests: Sequence[Request],
    slots: int,
    *,
    length: int = 0,
    tiles: int = 0,
    vocab_size: int | None = None,
) -> Engine:
    """An engine in which these run, `slots` at a time at least. Its answers are those of any other of its shapes.

    length: positions that a slot has at least. With one it is an engine for a conversation, and remembers what it took
    in as far as there is room for that. tiles: of the images of a prompt, at most. vocab_size: as of `Engine`.
    """
    mesh, rules = sharding.mesh_of(model), model.rules
    shards = _shards(mesh, rules.seq)
    rows = _shards(mesh, rules.batch) * shards
    longest = max(len(request.prompt) for request in requests)
    cuts = cuts_of(longest, shards)
    most = max(length, *(len(request.prompt) + request.max_tokens for request in requests))
    max_length = _multiple(most, STEP) if most > STEP else max(cuts["grid"], 1 << (most - 1).bit_length())
    max_length = _multiple(max_length, cuts["grid"])
    memory = {"prefix_bytes": _room(model, mesh, max_length), "snapshots": SNAPSHOTS} if length else {}
    return Engine(
        model,
        num_slots=_multiple(slots, rows),
        max_length=max_length,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        stop_ids=max(STOP_IDS, *(len(request.stop_ids) for request in requests)),
        tiles=_multiple(min(bucket(tiles), MOST_TILES), rows) if tiles else 0,
        **cuts,
        **memory,
    )


def cuts_of(longest: int, shards: int) -> dict[str, int]:
    """How an engine takes in prompts of at most `longest` tokens over so many shards of the sequence: one piece a
    product, whose bits depend on nothing else, or on an accelerator many pieces a product, which is much faster."""
    product = PRODUCT.get(dispatch.platform(), 0) * shards
    grid = _multiple(min(4 * GRID, product) if longest > GRID and product else GRID, shards)
    wide = 1
    while 2 * wide * grid <= min(longest, product):
        wide *= 2
    return {"grid": grid, "wide": wide, "pieces": max(wide, 8)}


def slot_bytes(model: TextModel | VLModel, mesh: jax.sharding.Mesh, max_length: int) -> int:
    """Bytes of a slot of so many positions, on all devices together."""
    empty = functools.partial(empty_cache, model.config, model.compute, model.rules, 1, max_length)
    with jax.set_mesh(mesh):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(empty)))


def _room(model: TextModel | VLModel, mesh: jax.sharding.Mesh, max_length: int) -> int:
    """Bytes on all devices for what is remembered of a conversation: two slots, or half of what is free beside one."""
    slot = slot_bytes(model, mesh, max_length)
    free = [free_bytes(device) for device in mesh.local_devices]
    if any(told is None for told in free):
        return 2 * slot
    return max(0, min(2 * slot, (min(free) * mesh.size - slot) // 2))


def _shards(mesh: jax.sharding.Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of
