"""The engine's prefill as the host calls it: in a loop on the devices, or piece by piece (`engine_lanes.py`)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax.inference import engine_lanes, engine_turns
from mm01_jax.inference import engine_programs as programs
from mm01_jax.inference.engine_compile import Compiler
from mm01_jax.inference.engine_images import Tower
from mm01_jax.inference.engine_programs import Said, Slots, Told
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.inference.engine_turns import Work

WAITING = ("gpu",)  # platforms whose host waits for each turn of a loop that ends by an argument, and for a branch


class Prefill:
    """
    Args:
      groups: shards of the rows. on: the platform, and how many devices. put: puts an array there by its logical axes.
    """

    def __init__(self, model, sizes: Sizes, groups: int, on: tuple[str, int], compiler: Compiler, put: Callable):
        self._sizes, self._groups, self._compiler, self._put = sizes, groups, compiler, put
        self.by_piece = sizes.lanes > 1 or (on[0] in WAITING and on[1] == sizes.wide == 1)
        a_call = dataclasses.replace(sizes, pieces=1) if self.by_piece else sizes
        self.tower = Tower(model, a_call, groups, compiler.program, put) if sizes.tiles else None

    def begin(self, begin: Callable, model, slots: Slots, allowed_V, layout) -> None:
        """Begins to compile, by `begin` (`Compiler.begin`)."""
        if not self.by_piece:
            looped = functools.partial(programs.prefill, sizes=self._sizes, layout=layout)
            like = slots, programs.said_like(self._sizes)
            self._begun = begin(looped, model, slots, allowed_V, self._told(model, [], (0, 0)), like=like)
            return
        told, shape = self._pieces(model, []), (self._sizes.lanes, self._sizes.grid, model.config.embed_dim)
        single = functools.partial(engine_lanes.prefill_lanes, sizes=self._sizes, specs=layout.whole)
        self._begun = begin(single, model, slots, told, like=(slots, engine_lanes.left_like(self._sizes)))
        hidden = self._put(np.zeros(shape, jnp.dtype(model.compute.dtype)), None, None, None)
        saying = functools.partial(engine_lanes.say, top=self._sizes.logprobs)
        self._say = self._compiler.program(saying, model, hidden, allowed_V, told.tokens_RS)

    def end(self) -> None:
        """Waits until it is compiled."""
        self._program = self._begun.result()

    def rows_of(self, work: Sequence[Work]) -> list[int]:
        """Where a call says what of each."""
        per_group = self._sizes.num_slots // self._groups
        return [number if self.by_piece else one.slot // per_group for number, one in enumerate(work)]

    def __call__(self, model, slots: Slots, allowed_V, work: Sequence[Work]) -> tuple[Slots, Said | None]:
        """(the slots, as `Devices.prefill`)."""
        wants = any(one.says or one.routed for one in work)
        if self.by_piece:
            return self._by_piece(model, slots, allowed_V, work)
        pieces = max(-(-len(one.tokens) // self._sizes.grid) for one in work)
        wide = pieces // self._sizes.wide if self._sizes.wide > 1 else 0
        told = self._told(model, work, (wide, pieces - wide * self._sizes.wide))
        slots, said = self._program(model, slots, allowed_V, told)
        return slots, jax.tree.map(np.asarray, said) if wants else None

    def _by_piece(self, model, slots: Slots, allowed_V, work: Sequence[Work]) -> tuple[Slots, Said | None]:
        said, left = [], []
        for some in engine_lanes.pieces_of(work, self._sizes.grid):
            told = self._pieces(model, some)
            slots, new = self._program(model, slots, told)
            if any(one.routed for one in work):
                left.append(new.routed)
            if any(one.says for one in work):
                said.append(self._say(model, new.hidden_RGD, allowed_V, told.tokens_RS))
        return slots, engine_lanes.joined(said, left) if said or left else None

    def _told(self, model, work: Sequence[Work], trips: tuple[int, int]) -> Told:
        index, tokens, count = engine_turns.arrays_of(work, self._sizes, self._groups)
        says = self._put(np.bool_(any(one.says for one in work)))
        seen = None if self.tower is None else self.tower.look(model, work)
        rows = self._put(index, "batch"), self._put(tokens, "batch", None), self._put(count, "batch")
        return Told(*rows, self._put(np.array(trips, np.int32), None), says, seen)

    def _pieces(self, model, work: Sequence[Work]) -> engine_lanes.Pieces:
        index, tokens, count = engine_lanes.arrays_of(work, self._sizes)
        seen = None if self.tower is None else self.tower.look(model, work)
        return engine_lanes.Pieces(self._put(index, None), self._put(tokens, None, None), self._put(count, None), seen)
