"""Whether queries meet the keys of other sequence shards gathered or in a ring, by what each sends and holds.

k = 2 B S K H x bytes: keys and values of one shard. w: float32 bytes over theirs. n: shards. Of one layer on one shard,
positions and documents (4 bytes a token each) left out:

              sent, forward    sent, backward             held at most (in the backward pass)
    gather    (n - 1) k        (n - 1) k                  n k (1 + w)      all keys and values, float32 gradients
    ring      (n - 1) k        (n - 1) k + n w k          2 k (1 + w)      one shard's, and what arrives meanwhile

and with remat "full" the forward pass is sent twice. The ring always sends more, as gradients travel with their keys
in float32; gathering is the choice until it holds more than `MOST_HELD`.
"""

import dataclasses
from typing import Literal

# A sixteenth of the memory of the smallest chip that is planned for (v5e, 16 GiB); one layer's keys are in use at once.
MOST_HELD = 2**30


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes of one layer on one shard, forward and backward."""

    sent: int
    held: int


def costs(own: int, item: int, shards: int, remat: str) -> dict[Literal["gather", "ring"], Cost]:
    """Args:
    own: bytes of the keys and values of one shard. item: bytes of one number of theirs.
    """
    wide = own * 4 // item
    forward = (shards - 1) * own * (2 if remat in ("auto", "full") else 1)
    return {
        "gather": Cost(forward + (shards - 1) * own, shards * (own + wide)),
        "ring": Cost(forward + (shards - 1) * own + shards * wide, 2 * (own + wide)),
    }


def choose(own: int, item: int, shards: int, remat: str) -> Literal["gather", "ring"]:
    """What sends least of those that hold at most `MOST_HELD`; the ring, which holds least, where none does."""
    cost_of = costs(own, item, shards, remat)
    small = [name for name, cost in cost_of.items() if cost.held <= MOST_HELD]
    return min(small, key=lambda name: cost_of[name].sent, default="ring")
