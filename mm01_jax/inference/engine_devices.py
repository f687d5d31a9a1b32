"""The engine's devices: the slots, and the programs that change them, called with what the host knows.

Slots change in place: every call donates them to the next.
"""

import concurrent.futures
import copy
import functools
from collections.abc import Sequence

import jax
import numpy as np

from mm01_jax import compile_cache, kept_programs, sharding
from mm01_jax.inference import engine_programs as programs
from mm01_jax.inference import masks, sampling, views
from mm01_jax.inference.engine_arrays import check_alike, like, nan, num_bytes, to_devices
from mm01_jax.inference.engine_compile import Compiler
from mm01_jax.inference.engine_decode import Drawn, Turn, decode, drawn_like
from mm01_jax.inference.engine_images import Tower
from mm01_jax.inference.engine_programs import Said, Slots, Told
from mm01_jax.inference.engine_request import Limits, Request
from mm01_jax.inference.engine_room import check_room
from mm01_jax.inference.engine_sizes import Sizes
from mm01_jax.inference.engine_turns import Work, arrays_of, turn_of
from mm01_jax.model import decode_step
from mm01_jax.model.cache import DecodeCache
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel
from pallas_kernels import dispatch

jit = jax.jit  # tests put one here that compiles faster
# Where calls of all steps have programs of their own, and one for rows that take their likeliest token as it is: a loop
# whose end depends on an argument makes the host of a GPU wait for every step, as a branch does.
WHOLE = ("gpu",)


class Devices:
    """groups: shards of the rows, each of which takes in tokens of one slot a call; slots of a group follow each other.

    ringed: whether rows that no hook is asked of decode in calls of all steps alone (`decode_step.rings_pay`): their
    bits depend on where a call begins. num_programs: compiled, all of them at the start (one jit serves engines of like
    shapes: a second one compiles nothing). allowed: bool (V,), ids that may ever be chosen.
    """

    def __init__(self, model: TextModel | VLModel, sizes: Sizes, vocab_size: int, prefix_bytes: int = 0):
        self.sizes, self._vocab_size = sizes, vocab_size
        self.page_like = self.state_like = None  # of an engine that remembers
        self.mesh = sharding.mesh_of(model)
        kept = kept_programs.Kept.of_this_start() if compile_cache.keeps_traces() else None
        self._compiler = Compiler(self.mesh, jit, kept)
        self._view(model)
        self.groups = self._shards(self.model.rules.batch)
        sizes.check_mesh(self._shards(self._decoder.rules.batch), self._shards(self.model.rules.seq))
        check_room(self._decoder, self.mesh, sizes, prefix_bytes)
        with jax.set_mesh(self.mesh):
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
        put = functools.partial(self._put, rules=model.rules)
        self._tower = Tower(model, sizes, self.groups, self._compiler.program, put) if sizes.tiles else None
        free = np.full((sizes.num_slots, masks.num_words(len(self.allowed))), 0xFFFFFFFF, np.uint32)
        self._unmasked = self._put(free, "batch", None)
        prefill = functools.partial(programs.prefill, sizes=sizes, layout=many)
        going_on = functools.partial(decode, sizes=sizes, specs=one.whole)
        turn, *_ = turn_of([None] * sizes.num_slots, self.allowed, masks.ask_all)
        told = decoder, slots, self._turn(turn), self._allowed
        self.ringed = not sizes.drafts and decode_step.rings_pay(decoder, sizes.num_slots, sizes.steps)
        whole = (False, True) if self.ringed or dispatch.platform() in WHOLE else ()
        with concurrent.futures.ThreadPoolExecutor(2 + len(whole)) as pool:  # the next is traced while these compile
            begin = functools.partial(self._compiler.begin, pool)
            drawn = functools.partial(begin, like=(slots, drawn_like(sizes)))
            decoding = drawn(going_on, *told, zero)  # takes the longest
            taking = model, slots, self._allowed, self._told([], (0, 0))
            prefilling = begin(prefill, *taking, like=(slots, programs.said_like(sizes)))
            found = [drawn(functools.partial(going_on, count=sizes.steps, plain=plain), *told) for plain in whole]
            self._compile_rows(one)
            self._decode, self._prefill = decoding.result(), prefilling.result()
            self._decode_whole = {plain: one.result() for plain, one in zip(whole, found, strict=True)}
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
            self._get_state = make(functools.partial(programs.get_state, **at), slots, zero, like=states)
            state, putting = self._get_state(slots, zero), functools.partial(programs.put_state, **at)
            self._put_state = make(putting, slots, state, zero, zero, donate=0, like=slots)
            at |= {"size": self.sizes.grid}
            self._get_page = make(functools.partial(programs.get_page, **at), slots, zero, zero, like=pages)
            page, putting = self._get_page(slots, zero, zero), functools.partial(programs.put_page, **at)
            self._put_page = make(putting, slots, page, zero, zero, donate=0, like=slots)
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
        return sharding.put(np.asarray(array), rules or self._decoder.rules, *logical)

    def _scalar(self, value: int) -> jax.Array:
        return self._put(np.int32(value))

    def _told(self, work: Sequence[Work], trips: tuple[int, int]) -> Told:
        index, tokens, count = arrays_of(work, self.sizes, self.groups)
        put = functools.partial(self._put, rules=self.model.rules)
        says = self._put(np.bool_(any(one.says for one in work)))
        seen = None if self._tower is None else self._tower.look(self.model, work)
        rows = put(index, "batch"), put(tokens, "batch", None), put(count, "batch")
        return Told(*rows, put(np.array(trips, np.int32), None), says, seen)

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

    def group(self, slot: int) -> int:
        return slot // (self.sizes.num_slots // self.groups)

    def fill(self, slot: int, asked: Request, prompt: np.ndarray) -> None:
        """Zeroes a slot and gives it to a request."""
        with jax.set_mesh(self.mesh):
            empty, place = self._empty, self._put(np.full(1, asked.place, np.int32), None)
            empty = empty._replace(cache=DecodeCache(empty.cache.stacks, place))
            self._slots = self._put_row(self._slots, self.with_settings(empty, asked, prompt), self._scalar(slot))

    def with_settings(self, row: Slots, asked: Request, prompt: np.ndarray) -> Slots:
        """A row that draws its tokens so, with none drawn yet."""
        seen = np.zeros((1, self._decoder.config.vocab_size), bool)
        seen[0, prompt] = True
        with jax.set_mesh(self.mesh):
            settings = jax.tree.map(self.everywhere, sampling.rows([asked.sampling], [asked.seed]))
            history = sampling.History(*map(self.everywhere, (seen, np.zeros(seen.shape, np.int32))))
            tokens = np.full(row.tokens_BT.shape, -1, np.int32)
            known = np.concatenate([prompt, np.asarray(asked.expected, np.int32)])[: tokens.shape[1]]
            tokens[0, : len(known)] = known
            counts = {"place_B": asked.place, "number_B": 0, "left_B": asked.max_tokens}
            counts = {name: self._put(np.full(1, value, np.int32), None) for name, value in counts.items()}
            stops = np.full(row.stop_BK.shape, -1, np.int32)
            stops[0, : len(asked.stop_ids)] = asked.stop_ids
            lists = {"stop_BK": self._put(stops, None, None), "tokens_BT": self._put(tokens, None, None)}
            return row._replace(rows=settings, history=history, **counts, **lists)

    def poison(self, slot: int) -> None:
        """A slot whose every number is NaN: what reads it shows it."""
        cache, hidden = jax.tree.map(nan, (self._empty.cache, self._empty.hidden_BD))
        self.put_row(slot, self._empty._replace(cache=cache, hidden_BD=hidden))

    def prefill(self, work: Sequence[Work]) -> Said | None:
        """One call: at most one slot a group, each from a multiple of the grid on and not past `pieces` of them.

        Returns:
          What the model says of each group's tokens (groups, pieces * grid, ...); None where nobody wants it.
        """
        pieces = max(-(-len(one.tokens) // self.sizes.grid) for one in work)
        wide = pieces // self.sizes.wide if self.sizes.wide > 1 else 0
        with jax.set_mesh(self.mesh):
            told = self._told(work, (wide, pieces - wide * self.sizes.wide))
            self._slots, said = self._prefill(self.model, self._slots, self._allowed, told)
            return jax.tree.map(np.asarray, said) if any(one.says or one.routed for one in work) else None

    def decode(self, turn: Turn, *, count: int, plain: bool) -> Drawn:
        """Begins `count` steps of the slots whose turn it is; what they draw is on its way to the host.

        Args:
          plain: as in `engine_decode.decode`.
        """
        with jax.set_mesh(self.mesh):
            told = self._decoder, self._slots, self._turn(turn), self._allowed
            if count == self.sizes.steps and turn.mask_BW is None and plain in self._decode_whole:
                self._slots, drawn = self._decode_whole[plain](*told)
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

    def get_state(self, slot: int) -> tuple:
        with jax.set_mesh(self.mesh):
            return self._get_state(self._slots, self._scalar(slot))

    def put_state(self, slot: int, state: tuple, length: int) -> None:
        with jax.set_mesh(self.mesh):
            self._slots = self._put_state(self._slots, state, self._scalar(slot), self._scalar(length))

    def get_page(self, slot: int, start: int) -> tuple:
        with jax.set_mesh(self.mesh):
            return self._get_page(self._slots, self._scalar(slot), self._scalar(start))

    def put_page(self, slot: int, page: tuple, start: int) -> None:
        with jax.set_mesh(self.mesh):
            self._slots = self._put_page(self._slots, page, self._scalar(slot), self._scalar(start))
