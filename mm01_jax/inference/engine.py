"""The engine: requests join and leave a running batch, and each gets the bits that it gets alone (docs/engine.md).

    engine = Engine(model, num_slots=8, max_length=4096)
    id = engine.submit(Request(prompt=tokens))
    for token in engine.stream(id): ...

One thread drives it: `step` does a little of everything, `stream` and `run` call it. On a mesh every process makes the
same engine, asks the same of it and steps alike.
"""

import dataclasses
import time

import numpy as np

from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.inference import engine_pieces, masks
from mm01_jax.inference.engine_answers import end, job_of, note, note_prompt, share_prompt
from mm01_jax.inference.engine_arrays import to_host
from mm01_jax.inference.engine_calls import Call, begin, read
from mm01_jax.inference.engine_decode import Drawn
from mm01_jax.inference.engine_devices import Devices
from mm01_jax.inference.engine_memory import remembering
from mm01_jax.inference.engine_request import MOST_SAMPLES, Event, Request, Result, check, check_count
from mm01_jax.inference.engine_schedule import Job, Schedule, begin_at_once
from mm01_jax.inference.engine_sizes import Sizes, check_engine, check_kind, check_model
from mm01_jax.inference.engine_streams import Streams, between_steps, whole_step
from mm01_jax.inference.engine_turns import work_of
from mm01_jax.inference.nonfinite import report_texts
from mm01_jax.inference.sampling import seed_of_sample
from mm01_jax.model.decoder import TextModel

_COUNTED = ("finished", "cancelled", "preempted", "prefilled_tokens", "decoded_tokens", "guessed_tokens")


class Engine(Streams):
    """A model that answers many at once.

    Args:
      model: on its mesh; slots lie over `data` and `expert` (and `sequence`), heads over `tensor`.
      num_slots: requests that run at a time. max_length: positions of each. Both are needed; others: as in `Sizes`.
      tokenizer: gives answers a text, and ends them at texts.
      vocab_size: ids that may be chosen, all below it. None: the tokenizer's, or all of the model's.
      budget: tokens of prompts taken in between two calls of decode. None: as many as a call of prefill takes.
      prefix_bytes: of states, keys and values of earlier prompts and answers, kept on all devices together; 0: none.
      host_bytes: the same on the host, for what has no room there. path_states: at most, of one prompt.
      snapshots: states are kept after every so many pieces.
      poison: fill a slot with NaN when it is given back, so that a reader of it is seen.
      like: an engine of the same model and sizes, whose compiled programs this one takes, with slots of its own.

    Raises:
      ValueError: an argument that may not be so, named with what may; sizes that do not fit the mesh or the devices.
    """

    def __init__(
        self,
        model: TextModel,
        *,
        num_slots: int | None = None,
        max_length: int | None = None,
        tokenizer: Tokenizer | None = None,
        vocab_size: int | None = None,
        budget: int | None = None,
        prefix_bytes: int = 0,
        host_bytes: int = 0,
        path_states: int = 64,
        snapshots: int = 1,
        poison: bool = False,
        like: "Engine | None" = None,
        **sizes,
    ):
        self.sizes, self._tokenizer = Sizes.of(num_slots=num_slots, max_length=max_length, **sizes), tokenizer
        kept = {"prefix_bytes": prefix_bytes, "host_bytes": host_bytes}
        kept |= {"path_states": path_states, "snapshots": snapshots}
        check_engine(model, self.sizes.tiles, tokenizer, vocab_size, {**kept, "budget": budget}, {"poison": poison})
        check_kind("like", like, Engine | None)
        told = model, self.sizes, vocab_size or (tokenizer or model.config).vocab_size
        self.devices = Devices(*told, prefix_bytes) if like is None else like.devices.again(*told)
        self.memory = remembering(self.devices, **kept)
        begins = begin_at_once if self.memory is None else self.memory.begins
        self._schedule = Schedule(num_slots, self.devices.groups, self.sizes.lanes, begins)
        self.budget = budget or self.sizes.pieces * self.sizes.grid
        self._jobs: dict[int, Job] = {}
        self._poison, self.asked = poison, 0  # the next request's id
        self._ended: list[Job] = []
        self._calls: list[Call] = []  # of decode, begun and not read
        self.ask: masks.Ask = masks.ask_all
        self._counts, self._seconds = dict.fromkeys(_COUNTED, 0), 0.0
        self.limits = self.devices.limits(reads_text=tokenizer is not None)

    def use(self, model: TextModel) -> None:
        """New weights of the same model: what was remembered of the old ones is forgotten, nothing is compiled.

        Raises:
          ValueError: requests are under way, or the model is another, on another mesh.
        """
        if not self.idle:
            raise ValueError("use: got new weights, and requests are under way; allowed: after `run`, or `cancel` them")
        self.devices.use(check_model(model))
        if self.memory is not None:
            self.memory.prefix.clear("other weights")

    def submit(self, request: Request) -> int:
        """Takes a request; its id.

        Raises:
          ValueError: it can never be done (`engine_request.check`).
        """
        request, prompt = check(request, self.limits)
        job = job_of(self.asked, request, prompt, self._tokenizer, self.limits.vision)
        self.asked += 1
        self._jobs[job.id] = job
        self._schedule.waiting.append(job)
        return job.id

    def submit_samples(self, request: Request, count: int) -> list[int]:
        """So many answers to one prompt, which is taken in once; the first has the request's own seed."""
        check_count("count", count, 1, MOST_SAMPLES)
        request, _ = check(request, self.limits)
        seeds = [seed_of_sample(request.seed, number) for number in range(count)]
        ids = [self.submit(dataclasses.replace(request, seed=seed)) for seed in seeds]
        for id in ids[1:]:
            self._jobs[id].waits_for = self._jobs[ids[0]]
        return ids

    @between_steps
    def cancel(self, id: int) -> None:
        """Ends a request now; one that has finished stays as it is."""
        if (job := self._job(id)).result.finish is None:
            self._end(job, "cancelled")

    @between_steps
    def preempt(self, id: int) -> None:
        """Takes the slot of a request away; it goes on from where it was, when its turn comes again."""
        if (job := self._job(id)).slot is not None:
            self._take_away(job)

    def result(self, id: int) -> Result:
        """What a request has so far."""
        return self._job(id).result

    def forget(self, id: int) -> Result:
        """The result of a finished request, of which the engine then knows no more."""
        job = self._job(id)
        if job.result.finish is None:
            raise ValueError(f"request {id} goes on; cancel it first")
        return self._jobs.pop(id).result

    def statistics(self) -> dict:
        """Counts since the start, the seconds that steps have taken, and what there is now."""
        now = {
            "waiting": len(self._schedule.waiting),
            "running": sum(not job.background for job in self._schedule.running()),
            "free_slots": self.sizes.num_slots - len(self._schedule.running()),
            "programs": self.devices.num_programs,
            "slot_bytes": self.devices.row_bytes,
            "seconds": self._seconds,
            "decoded_per_second": self._counts["decoded_tokens"] / self._seconds if self._seconds else 0.0,
        }
        return now | self._counts | ({} if self.memory is None else {"prefix": self.memory.prefix.statistics()})

    @whole_step
    def step(self) -> list[Event]:
        """Admits who waits, takes in prompts within the budget, draws tokens; what that brought, in order of ids.

        Raises:
          nonfinite.NotFinite: logits of a request are no numbers; says in which layer and at which token that began.
        """
        began = time.monotonic()
        self._admit()
        self._take_in()
        drawn = self._decode()
        self._seconds += time.monotonic() - began
        ended, self._ended = self._ended, []
        events = [Event(job.id, drawn.pop(job.id, []), job.result.finish) for job in ended]
        return sorted(events + [Event(id, tokens, None) for id, tokens in drawn.items()])

    @property
    def idle(self) -> bool:
        """Whether nothing is asked that has not finished, and nothing is to be remembered that is not."""
        return self._schedule.is_empty and not (self._ended or self._calls)

    def _admit(self) -> None:
        while (job := self._schedule.next()) is not None:
            slot = self._schedule.free_slot()
            if slot is None:
                if (other := self._schedule.to_preempt(job)) is None:
                    return
                slot = other.slot
                self._take_away(other)
            self._schedule.place(job, slot)
            if job.row is not None:
                self.devices.put_row(slot, job.row)
                job.row = None
            else:
                self.devices.fill(slot, job.request, job.prompt)

    def _take_away(self, job: Job) -> None:
        """A slot from its job, which waits then."""
        if not job.background:
            job.row = to_host(self.devices.get_row(job.slot))
            self._counts["preempted"] += 1
        self._free(job)
        self._schedule.wait(job)

    def _take_in(self) -> None:
        """Calls of prefill within the budget, and one whatever it is; of the background one alone. A prompt that has
        more left has one turn a step, of one piece where others run: those with shorter ones do not wait for its end.
        """
        grid, taken = self.sizes.grid, 0
        while ready := list(self._schedule.to_take_in(self.budget if taken else None)):
            jobs, least = engine_pieces.alike(ready, self.sizes)
            share = min((self.budget - taken) // len(jobs), self.sizes.pieces * grid) // grid * grid
            if taken and share < least:
                return
            most, background = max(least, share), all(job.background for job in jobs)
            has_time = not background and all(len(job.prompt) - job.taken <= self.budget for job in jobs)
            if not has_time and len(self._schedule.running()) > len(jobs):
                most = least  # an answer is delayed by so much at most
            taken += self._prefill(jobs, most)
            if background:
                return

    def _prefill(self, jobs: list[Job], most: int) -> int:
        """Tokens taken in, `most` of each job at most."""
        counts = [engine_pieces.cut(job, most, self.sizes, self.memory and self.memory.every(job)) for job in jobs]
        work = [work_of(job, count) for job, count in zip(jobs, counts, strict=True)]
        said = self.devices.prefill(work)
        for job, one, row in zip(jobs, work, self.devices.rows_of(work), strict=True):
            note_prompt(job, one, row, said)
            job.taken += len(one.tokens)
            if self.memory is not None:
                self.memory.store(job)
            if job.background and job.taken == len(job.prompt):
                self._free(job)
            elif job.decodes:
                self._branch(job)
        self._counts["prefilled_tokens"] += (taken := sum(len(one.tokens) for one in work))
        return taken

    def _branch(self, job: Job) -> None:
        """Those that go on from this prompt may begin."""
        row = None  # one copy for all: what is told of each is its own
        for other in self._schedule.who_wait_for(job):
            row = self.devices.get_row(job.slot) if row is None else row
            other.row = self.devices.with_settings(row, other.request, other.prompt)
            other.taken, other.waits_for = job.taken, None
            share_prompt(job, other)

    def _decode(self) -> dict[int, list[int]]:
        """Begins calls of decode, then reads those before: new tokens by id. A hook is asked when all is read."""
        asks = any(job.decodes and job.request.mask is not None for job in self._schedule.running())
        new = self._read(len(self._calls)) if asks else {}
        begun, silent = begin(self._schedule, self._calls, self.devices, self.ask)
        self._calls += begun
        for job in silent:
            self._end(job, "masked")
        new |= self._read(len(self._calls) - len(begun))  # none where a hook was asked
        self._calls = [call for call in self._calls if call.is_awaited]
        return new

    def _read(self, count: int) -> dict[int, list[int]]:
        """New tokens by id of the first `count` calls."""
        new, broken = {}, []
        for job, slot, drawn in read(self._calls, count, self.devices):
            new[job.id], places = self._note(job, slot, drawn)
            broken += [] if np.isfinite(drawn.logprob[places, slot]).all() else [job]
        if broken:  # the others have what is theirs
            report_texts(self.devices.model, [[*job.prompt.tolist(), *job.result.tokens] for job in broken])
        return new

    def _note(self, job: Job, slot: int, drawn: Drawn) -> tuple[list[int], list[int]]:
        """Puts what was drawn into the result: (the new tokens, their places)."""
        new, places, finish = note(job, slot, drawn)
        self._counts["decoded_tokens"] += len(new)
        self._counts["guessed_tokens"] += sum(place % (1 + self.sizes.drafts) > 0 for place in places)
        if finish is not None:
            self._end(job, finish)
        return new, places

    def _end(self, job: Job, finish: str) -> None:
        end(job, finish)
        self._free(job)
        if self.memory is not None and finish != "cancelled" and (again := self.memory.again(job)) is not None:
            self._schedule.wait(again)
        job.row = None
        self._ended.append(job)
        self._counts["cancelled" if finish == "cancelled" else "finished"] += 1
        for other in self._schedule.who_wait_for(job):
            other.waits_for = None  # it will not get a prompt from here any more

    def _free(self, job: Job) -> None:
        if (slot := self._schedule.remove(job)) is not None and self._poison:
            self.devices.poison(slot)

    def _job(self, id: int) -> Job:
        if not isinstance(id, int | np.integer) or id not in self._jobs:
            raise ValueError(f"request {id!r}: the engine knows none of this id")
        return self._jobs[id]
