"""The engine's devices: the slots, and the programs that change them, called with what the host knows.

Slots change in place: every call donates them to the next.
"""

import contextlib
import copy
import functools
from collections.abc import Sequence

import jax
import numpy as np

from mm01_jax import compile_cache, kept_programs, sharding
from mm01_jax.inference import engine_programs as programs
from mm01_jax.inference import masks, views
from mm01_jax.inference.engine_arrays import check_alike, like, nan, num_bytes, put, to_devices
from mm01_jax.inference.engine_compile import Compiler, threads
from mm01_jax.inference.engine_decode import CUT, DRAWN, PLAIN, Drawn, Turn, decode, drawn_like
from mm01_jax.inference.engine_prefill import WAITING, Prefill
from mm01_jax.inference.engine_programs import Said, Slots
from mm01_jax.inference.engine_request import Limits, Request
from mm01_jax.inference.engine_room import check_room
from mm01_jax.inference.engine_settings import row_of
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.inference.engine_turns import Work, turn_of
from mm01_jax.model import decode_step
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel
from mm01_jax.progress import saying
from pallas_kernels import dispatch

jit = jax.jit  # tests put one here that compiles faster
MANY_PAGES = 64  # in a call, of slots of four times as many: a call costs a GPU's host 1 ms, and a page nothing


class Devices:
    """groups: shards of the rows, each of which takes in tokens of one slot a call; slots of a group follow each other.

    ringed: whether rows that no hook is asked of decode in calls of all steps alone (`decode_step.rings_pay`): their
    bits depend on where a call begins. num_programs: compiled, all of them at the start (one jit serves engines of like
    shapes: a second one compiles nothing). allowed: bool (V,), ids that may ever be chosen.
    """

    def __init__(self, model: TextModel | VLModel, sizes: Sizes, vocab_size: int, prefix_bytes: int = 0):
        self.sizes, self._vocab_size = sizes, vocab_size
        self.page_like = self.state_like = self._put_pages = None  # of an engine that remembers
        self.mesh = sharding.mesh_of(model)
        kept = kept_programs.Kept.of_this_start() if compile_cache.keeps_traces() else None
        self._compiler = Compiler(self.mesh, jit, kept)
        self._view(model)
        self.groups = self._shards(self.model.rules.batch)
        sizes.check_mesh(self._shards(self._decoder.rules.batch), self._shards(self.model.rules.seq), self.mesh.size)
        check_room(self._decoder, self.mesh, sizes, prefix_bytes)
        with jax.set_mesh(self.mesh), saying("compiling") if jax.process_index() == 0 else contextlib.nullcontext():
            self._compile()

    def _viewed(self, model: TextModel) -> TextModel:
        model = views.answering(views.deterministic(model) if self.sizes.deterministic else model)
        return views.routed(model) if self.sizes.routed_experts else model

    def _view(self, model: TextModel) -> None:
        self.model = self._viewed(model)
        self._decoder = views.decoding(self.model, self.mesh)

    def again(self, model: TextModel, sizes: Sizes, vocab_size: int) -> "Devices":
        """The same programs for other slots, and other ids that may be chosen.

        Raises:
          ValueError: other sizes; and as `use`.
        """
        if sizes != self.sizes:
            raise ValueError(f"like: got an engine of {self.sizes}; allowed: one of {sizes}")
        other = copy.copy(self)
        other._vocab_size = vocab_size
        other.use(model)
        with jax.set_mesh(self.mesh):
            other._slots = self._new_slots()
        return other

    def use(self, model: TextModel) -> None:
        """Other weights of the same model, which the programs take as they are.

        Raises:
          ValueError: names the first weight that does not lie as the old one, or says that the model is another.
        """
        check_alike(self.model, self._viewed(model))
        self._view(model)
        with jax.set_mesh(self.mesh):
            self._allow()

    @property
    def num_programs(self) -> int:
        return self._compiler.count + 1  # `allowed_ids`

    def _shards(self, axes: Sequence[str]) -> int:
        return int(np.prod([self.mesh.shape[axis] for axis in axes], dtype=int))

    def _allow(self) -> None:
        self._allowed = programs.allowed_ids(self._decoder, self._vocab_size)
        self.allowed = np.asarray(self._allowed)

    def _compile(self) -> None:
        model, decoder, sizes = self.model, self._decoder, self.sizes
        config, compute, rules = decoder.config, decoder.compute, decoder.rules
        self._new_slots = self._compiler.program(
            functools.partial(programs.empty_slots, config=config, compute=compute, rules=rules, sizes=sizes)
        )
        self._slots = self._new_slots()
        self._allow()
        one = programs.row_layout(self._slots, config, rules, views.without_rows(rules))
        many = programs.row_layout(self._slots, config, rules, model.rules)
        self._told_before: dict[str, tuple[np.ndarray, jax.Array]] = {}
        self._layout, slots, zero = one, self._slots, self._scalar(0)
        of_rows, on = functools.partial(self._put, rules=model.rules), (dispatch.platform(), self.mesh.size)
        self._prefill = Prefill(model, sizes, self.groups, on, self._compiler, of_rows)
        free = np.full((sizes.num_slots, masks.num_words(len(self.allowed))), 0xFFFFFFFF, np.uint32)
        self._unmasked = self._put(free, "batch", None)
        going_on = functools.partial(decode, sizes=sizes, specs=one.whole)
        turn, *_ = turn_of([None] * sizes.num_slots, self.allowed, masks.ask_all)
        told = decoder, slots, self._turn(turn), self._allowed
        self.ringed = not sizes.drafts and decode_step.rings_pay(decoder, sizes.num_slots, sizes.steps)
        # Calls of all steps, where the host waits for a loop that ends by an argument. With rings all are such, and
        # there are not more programs: likeliest tokens are chosen by the one that draws.
        whole = (DRAWN, CUT) if self.ringed else (PLAIN, DRAWN) if dispatch.platform() in WAITING else ()
        with threads(2 + len(whole)) as pool:  # the next is traced while these compile
            begin = functools.partial(self._compiler.begin, pool)
            drawn = functools.partial(begin, like=(slots, drawn_like(sizes)))
            decoding = drawn(going_on, *told, zero)  # takes the longest
            self._prefill.begin(begin, model, slots, self._allowed, many)
            found = [drawn(functools.partial(going_on, count=sizes.steps, how=how), *told) for how in whole]
            self._compile_rows(one)
            self._decode = decoding.result()
            self._prefill.end()
            self._decode_whole = {how: one.result() for how, one in zip(whole, found, strict=True)}
        self.row_bytes = num_bytes(self._empty)

    def _compile_rows(self, layout) -> None:
        slots, zero = self._slots, self._scalar(0)
        getting = functools.partial(programs.get_row, layout=layout)
        self._get_row = self._compiler.program(getting, slots, zero, like=slots)
        self._empty = self._get_row(slots, zero)
        putting = functools.partial(programs.put_row, layout=layout)
        self._put_row = self._compiler.program(putting, slots, self._empty, zero, donate=0, like=slots)

    def compile_memory(self) -> None:
        """The programs that move pages and states, which an engine that remembers nothing has not."""
        if self.page_like is not None:
            return
        at, make = {"config": self._decoder.config, "layout": self._layout}, self._compiler.program
        with jax.set_mesh(self.mesh):
            slots, zero = self._slots, self._scalar(0)
            states, pages = (programs.stacks(slots, positions=positions, **at)[0] for positions in (False, True))
            getting = functools.partial(programs.get_piece, size=self.sizes.grid, **at)
            self._get_piece = make(getting, slots, zero, zero, like=(pages, states))
            (page, state), putting = self._get_piece(slots, zero, zero), functools.partial(programs.put_state, **at)
            self._put_state = make(putting, slots, state, zero, zero, donate=0, like=slots)
            putting = functools.partial(programs.put_page, size=self.sizes.grid, **at)
            self._put_page = make(putting, slots, page, zero, zero, donate=0, like=slots)
            if self.sizes.max_length >= 4 * MANY_PAGES * self.sizes.grid:
                putting = functools.partial(programs.put_pages, size=self.sizes.grid, **at)
                self._put_pages = make(putting, slots, (page,) * MANY_PAGES, zero, zero, donate=0, like=slots)
        self.page_like, self.state_like = (jax.tree.map(like, tree) for tree in (page, state))

    def limits(self, *, reads_text: bool) -> Limits:
        sizes, told = self.sizes, {"config": self._decoder.config, "layout": self._layout, "size": 1}
        with jax.set_mesh(self.mesh):
            position = num_bytes(jax.eval_shape(functools.partial(programs.get_page, **told), self._slots, 0, 0))
        state = self.row_bytes - position * sizes.max_length
        most = self.model.config.vocab_size, sizes.max_length, sizes.stop_ids, sizes.logprobs
        vision = self.model.vision.config if isinstance(self.model, VLModel) else None
        told = sizes.deterministic, sizes.routed_experts, vision, sizes.tiles
        return Limits(*most, position, state, reads_text, *told)

    # What the host knows, as arrays.

    def _put(self, array, *logical: str | None, rules=None) -> jax.Array:
        return put(np.asarray(array), self.mesh, rules or self._decoder.rules, *logical)

    def _scalar(self, value: int) -> jax.Array:
        return self._put(np.int32(value))

    def _turn(self, turn: Turn) -> Turn:
        """On the devices, where the same turn as last time is already."""
        for name in ("may_B", "guesses_B"):
            value, before = getattr(turn, name), self._told_before.get(name)
            if before is None or not np.array_equal(before[0], value):
                self._told_before[name] = value, self._put(value, "batch")
        mask = self._unmasked if turn.mask_BW is None else self._put(turn.mask_BW, "batch", None)
        return Turn(*(self._told_before[name][1] for name in ("may_B", "guesses_B")), mask)

    def everywhere(self, array: np.ndarray) -> jax.Array:
        """Whole on every device."""
        return self._put(array, *[None] * array.ndim)

    def array_like(self, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        """Of one that is `everywhere`."""
        whole = self.everywhere(np.zeros([1] * len(shape), dtype))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole.sharding)

    # What is done to the slots.

    def fill(self, slot: int, asked: Request, prompt: np.ndarray) -> None:
        """Zeroes a slot and gives it to a request."""
        with jax.set_mesh(self.mesh):
            empty, place = self._empty, self._put(np.full(1, asked.place, np.int32), None)
            empty = empty._replace(cache=DecodeCache(empty.cache.stacks, place))
            self._slots = self._put_row(self._slots, self.with_settings(empty, asked, prompt), self._scalar(slot))

    def with_settings(self, row: Slots, asked: Request, prompt: np.ndarray) -> Slots:
        """A row that draws its tokens so, with none drawn yet."""
        with jax.set_mesh(self.mesh):
            return row_of(row, self._empty, asked, prompt, self._put)

    def poison(self, slot: int) -> None:
        """A slot whose every number is NaN: what reads it shows it."""
        cache, hidden = jax.tree.map(nan, (self._empty.cache, self._empty.hidden_BD))
        self.put_row(slot, self._empty._replace(cache=cache, hidden_BD=hidden))

    def prefill(self, work: Sequence[Work]) -> Said | None:
        """At most one slot a group, or `lanes`, each from a multiple of the grid on and not past `pieces` of them.

        Returns:
          What the model says of each row's tokens (rows, tokens, ...), see `rows_of`; None where nobody wants it.
        """
        with jax.set_mesh(self.mesh):
            self._slots, said = self._prefill(self.model, self._slots, self._allowed, work)
            return said

    def rows_of(self, work: Sequence[Work]) -> list[int]:
        """Where `prefill` says what of each."""
        return self._prefill.rows_of(work)

    def decode(self, turn: Turn, *, count: int, how: str | None) -> Drawn:
        """Begins `count` steps of the slots whose turn it is; what they draw is on its way to the host.

        Args:
          how: as in `engine_decode.decode`.
        """
        how = DRAWN if how == PLAIN and self.ringed else how
        with jax.set_mesh(self.mesh):
            told = self._decoder, self._slots, self._turn(turn), self._allowed
            if count == self.sizes.steps and how in self._decode_whole:
                self._slots, drawn = self._decode_whole[how](*told)
            else:
                self._slots, drawn = self._decode(*told, self._scalar(count))
            jax.tree.map(lambda x: x.copy_to_host_async(), drawn)
            return drawn

    def read(self, drawn: Drawn, count: int) -> Drawn:
        """As NumPy arrays (count * (1 + drafts), slots, ...), when they are there."""
        return jax.tree.map(lambda x: np.asarray(x)[: count * (1 + self.sizes.drafts)], drawn)

    def get_row(self, slot: int) -> Slots:
        """A copy of all that a slot holds."""
        with jax.set_mesh(self.mesh):
            return self._get_row(self._slots, self._scalar(slot))

    def put_row(self, slot: int, row: Slots) -> None:
        """What `get_row` gave, wherever it is now."""
        with jax.set_mesh(self.mesh):
            self._slots = self._put_row(self._slots, to_devices(row), self._scalar(slot))

    def put_state(self, slot: int, state: tuple, length: int) -> None:
        with jax.set_mesh(self.mesh):
            self._slots = self._put_state(self._slots, state, self._scalar(slot), self._scalar(length))

    def get_piece(self, slot: int, start: int) -> tuple[tuple, tuple]:
        """(the page of the positions from `start` on, the states after all its tokens)."""
        with jax.set_mesh(self.mesh):
            return self._get_piece(self._slots, self._scalar(slot), self._scalar(start))

    def put_pages(self, slot: int, pages: Sequence[tuple]) -> None:
        """The pages of a slot from its begin on; many a call in a long slot, where the last may be put twice."""
        many = MANY_PAGES if self._put_pages is not None and len(pages) >= MANY_PAGES else 1
        with jax.set_mesh(self.mesh):
            for first in (min(first, len(pages) - many) for first in range(0, len(pages), many)):
                at = self._scalar(slot), self._scalar(first * self.sizes.grid)
                if many > 1:
                    self._slots = self._put_pages(self._slots, tuple(pages[first : first + many]), *at)
                else:
                    self._slots = self._put_page(self._slots, pages[first], *at)
