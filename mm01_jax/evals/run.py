"""Samples through the engine: the beginnings that prompts share are taken in once, and every question asked from there.

Answers are greedy. What an answer cost is counted in tokens: those of its prompt, and those that were taken in for it.
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from mm01_jax import sharding
from mm01_jax.evals.group import Group
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.sample import Sample
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.engine_room import free_bytes
from mm01_jax.inference.fitting import GRID, STOP_IDS, cuts_of
from mm01_jax.inference.sampling import Sampling
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.mixers import empty_cache

GREEDY = Sampling(temperature=0.0)
KEPT_STATES = 64  # of one shared beginning, evenly


class Answered(NamedTuple):
    """finish: why it ended, as `engine_request.Result` says it. tokens: of the prompt. cached: of them, taken in for
    others before."""

    sample: Sample
    text: str
    finish: str
    tokens: int
    cached: int


class Answerer(Protocol):
    """What answers samples: a model in this process, or a server."""

    prefilled: int

    def answers(self, prompts: Prompts, groups: Sequence[Group], skipped: int = 0) -> Iterator[Answered]:
        """Every answer in order, as soon as it and those before it are there, but for the first `skipped`."""


class InProcess:
    """A model that answers in this process; prefilled: tokens that it has taken in."""

    def __init__(self, model: TextModel, slots: int):
        self._model, self._slots, self._engine = model, slots, None

    @property
    def prefilled(self) -> int:
        return 0 if self._engine is None else self._engine.statistics()["prefilled_tokens"]

    def answers(self, prompts: Prompts, groups: Sequence[Group], skipped: int = 0) -> Iterator[Answered]:
        """As `answers`, of an engine for these groups."""
        self._engine = engine_for(self._model, prompts, groups, self._slots)
        yield from answers(self._engine, prompts, groups, skipped)


def engine_for(model: TextModel, prompts: Prompts, groups: Sequence[Group], slots: int) -> Engine:
    """An engine for these, `slots` at a time at least. It remembers where prompts begin alike."""
    sizes, memory = sizes_for(model, max(group.longest for group in groups), slots), {}
    if any(group.begins is not None for group in groups):
        mesh, max_length = sharding.mesh_of(model), sizes["max_length"]
        pieces = max_length // sizes["grid"]
        every = max(1, pieces // KEPT_STATES)
        needed, fitting = _bytes(model, mesh, max_length), _fitting(model, mesh)
        memory = {"snapshots": every, "path_states": pieces // every + 2, "prefix_bytes": min(needed, fitting)}
        memory["host_bytes"] = needed - memory["prefix_bytes"]
    stop_ids = max(STOP_IDS, len(prompts.ends))
    return Engine(model, tokenizer=prompts.pieces.tokenizer, stop_ids=stop_ids, **sizes, **memory)


def sizes_for(model: TextModel, longest: int, slots: int) -> dict[str, int]:
    """Of an engine for prompts that have at most `longest` tokens with their answers, `slots` at a time at least."""
    mesh, rules = sharding.mesh_of(model), model.rules
    shards = functools.reduce(lambda product, axis: product * mesh.shape[axis], rules.seq, 1)
    rows = functools.reduce(lambda product, axis: product * mesh.shape[axis], rules.batch, shards)
    cuts = cuts_of(longest, shards)
    max_length = _multiple(longest + 1, max(cuts["grid"], GRID * shards))
    return {"num_slots": _multiple(slots, rows), "max_length": max_length, **cuts}


def answers(engine: Engine, prompts: Prompts, groups: Iterable[Group], skipped: int = 0) -> Iterator[Answered]:
    """Every answer in order, as soon as it and those before it are there, but for the first `skipped`.

    Every process of the model's mesh calls it alike.
    """
    for group in groups:
        if skipped >= group.count:
            skipped -= group.count
            continue
        if group.begins is not None and engine.memory is not None:
            take_in(engine, prompts, group)
        yield from _answered(engine, prompts, group, skipped)
        skipped = 0


def take_in(engine: Engine, prompts: Prompts, group: Group) -> None:
    """What a group's prompts begin with; a prompt more than its states hold, since one token is always left over."""
    began = prompts.begun(group.begins)
    if len(began) <= engine.sizes.grid:
        return
    id = engine.submit(Request(prompt=began, max_tokens=1, sampling=GREEDY))
    while engine.result(id).finish is None:
        engine.step()
    engine.forget(id)


def _answered(engine: Engine, prompts: Prompts, group: Group, skipped: int) -> Iterator[Answered]:
    def asked() -> Iterator[tuple[Sample, Request]]:
        for sample in itertools.islice(group.samples, skipped, group.count):
            ids = prompts.ids(sample)
            settings = {"max_tokens": sample.max_tokens, "sampling": GREEDY, "stop_ids": prompts.ends}
            yield sample, Request(prompt=ids, remember=False, **settings)

    for sample, request, result in results(engine, asked()):
        yield Answered(sample, result.text, result.finish, len(request.prompt), result.cached)


def results(engine: Engine, asked: Iterator[tuple[Any, Request | None]]) -> Iterator[tuple[Any, Request, Result]]:
    """(what, request, its result) of every (what, request) in order; a few more than there are slots wait at a time.

    Of a request that is None the result is None, too.
    """
    waiting: collections.deque[tuple[Any, Request | None, int | None]] = collections.deque()
    more = True
    while more or waiting:
        while more and len(waiting) < 2 * engine.sizes.num_slots:
            if more := (one := next(asked, None)) is not None:
                what, request = one
                waiting.append((what, request, None if request is None else engine.submit(request)))
        engine.step()
        while waiting and ((id := waiting[0][2]) is None or engine.result(id).finish is not None):
            what, request, id = waiting.popleft()
            yield what, request, None if id is None else engine.forget(id)


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _slot_bytes(model: TextModel, mesh: jax.sharding.Mesh, length: int) -> int:
    empty = functools.partial(empty_cache, model.config, model.compute, model.rules, 1, length)
    with jax.set_mesh(mesh):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(empty)))


def _bytes(model: TextModel, mesh: jax.sharding.Mesh, length: int) -> int:
    """Of what two shared beginnings leave: keys and values of each position, and the states."""
    slot, short = (_slot_bytes(model, mesh, size) for size in (length, length // 2))
    positions = 2 * (slot - short)
    return 2 * (positions + (KEPT_STATES + 4) * max(slot - positions, 1))


def _fitting(model: TextModel, mesh: jax.sharding.Mesh) -> int:
    """Of what devices have left a third, for what is remembered; beyond it the host remembers."""
    free: Sequence[int | None] = [free_bytes(device) for device in mesh.local_devices]
    return 2**62 if any(told is None for told in free) else min(free) * mesh.size // 3
