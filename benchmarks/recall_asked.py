"""Evaluations of one model through one engine, which is compiled once for all of them; cells asked again from cold."""

import importlib.util
import json
import pathlib
from collections.abc import Iterator, Sequence

from mm01_jax import arguments
from mm01_jax.evals import __main__ as evals
from mm01_jax.evals import asking, run, tasks
from mm01_jax.evals.group import Group
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.sample import Sample
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.loading import digest_of, load_as_asked


class Asked:
    """A checkpoint that is asked; its engine takes prompts of at most `longest` tokens, `slots` at a time."""

    def __init__(self, checkpoint: pathlib.Path, longest: int, slots: int):
        self._checkpoint, self._longest, self._slots = checkpoint, longest, slots
        self._loaded = self._engine = None
        self._before = 0

    @property
    def prefilled(self) -> int:
        """Tokens taken in since the last task began."""
        return self._engine.statistics()["prefilled_tokens"] - self._before

    def scores(self, task: str, flags: Sequence[str], out: pathlib.Path) -> dict:
        """What `mm01-eval TASK --json=out` writes; the table is printed. What is there already is not done again."""
        if not out.exists():
            figure = [f"--figure={out.with_suffix('.png')}"] if importlib.util.find_spec("matplotlib") else []
            given = self._given(task, [*flags, f"--json={out}", *figure])
            facts = {"weights": digest_of(given.checkpoint), "dtype": self._loaded.config.compute.dtype}
            print(asking.ask(tasks.read(task, given), self, self._loaded.tokenizer, facts))
        return json.loads(out.read_text())

    def answers(self, prompts: Prompts, groups: Sequence[Group], skipped: int = 0) -> Iterator[run.Answered]:
        """As `run.Answerer`."""
        self._begin(prompts, groups)
        self._before = self._engine.statistics()["prefilled_tokens"]
        yield from run.answers(self._engine, prompts, groups, skipped)

    def cold(self, task: str, flags: Sequence[str]) -> list[tuple[int, bool]]:
        """(length, whether tokens and their log-probabilities are to the bit those of a cold run) of a cell of the
        shortest, the middle and the longest length."""
        asked = tasks.read(task, self._given(task, flags))
        prompts = asked.prompts(self._loaded.tokenizer)
        groups, found = list(asked.make(prompts)), []
        self._begin(prompts, groups)
        for group in (groups[-1], groups[len(groups) // 2], groups[0]):  # after `scores` the last is still remembered
            sample = list(group.samples)[group.count // 3]
            run.take_in(self._engine, prompts, group)
            shared = self._asked_alone(prompts, sample)
            self._engine.memory.prefix.clear("asked from cold")
            alone = self._asked_alone(prompts, sample)
            assert alone.cached == 0 < shared.cached
            same = (alone.tokens, alone.logprobs) == (shared.tokens, shared.logprobs)
            found.append((sample.length, same))
        return found[::-1]

    def _begin(self, prompts: Prompts, groups: Sequence[Group]) -> None:
        if self._engine is None:
            room = Group([], (), 0, 0, self._longest)
            self._engine = run.engine_for(self._loaded.model, prompts, [*groups, room], self._slots)

    def _asked_alone(self, prompts: Prompts, sample: Sample) -> Result:
        settings = {"max_tokens": sample.max_tokens, "sampling": run.GREEDY, "stop_ids": prompts.ends, "logprobs": 0}
        id = self._engine.submit(Request(prompt=prompts.ids(sample), remember=False, **settings))
        while self._engine.result(id).finish is None:
            self._engine.step()
        return self._engine.forget(id)

    def _given(self, task: str, flags: Sequence[str]):
        given = arguments.read(evals.COMMAND, [task, f"--checkpoint={self._checkpoint}", *flags])
        if self._loaded is None:
            self._loaded = load_as_asked(given)
        return given
