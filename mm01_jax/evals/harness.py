"""lm-evaluation-harness in this process: its tasks and scores, of a model on the engine.

A document begins without a token of its own in training, so by default its first token is given and every other one
predicted, its end among them: what `mm01-eval perplexity` counts. With `bos` it begins with that token, and its text is
predicted, as the harness has it for most models.
"""

import json
import logging
import math
import pathlib
import types
from collections.abc import Iterator, Sequence
from typing import Any

import lm_eval
from lm_eval import tasks, utils
from lm_eval.api.model import TemplateLM

from mm01_jax import cluster
from mm01_jax.arguments import refused
from mm01_jax.config.fields import nearest_name
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.evals import report, run
from mm01_jax.files import shown, write
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling
from mm01_jax.model.decoder import TextModel
from mm01_jax.progress import Progress

_MAX_TOKENS = 256  # of an answer whose task names no other number, as the harness has it
_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class EngineLM(TemplateLM):
    """A model as the harness asks it: log-likelihoods of texts, and answers.

    Args:
      context: tokens of a text, or of a prompt and its answer, at most; a longer text is cut into windows, of a longer
        prompt its end is taken, and half is left for an answer at most. slots: texts under way at a time, at least.
      bos: the token that texts begin with.
    """

    def __init__(self, model: TextModel, words: Tokenizer, context: int = 4096, slots: int = 8, bos: str | None = None):
        super().__init__()
        self._words, self._context = words, context
        self._bos = None if bos is None else words.special(bos)
        sizes = run.sizes_for(model, context, slots)
        self._engine = Engine(model, tokenizer=words, logprobs=1, **sizes)

    @property
    def eot_token_id(self) -> int:
        return self._words.end_of_document

    @property
    def prefix_token_id(self) -> int | None:
        """What a text without a context begins with."""
        return self._bos

    @property
    def tokenizer_name(self) -> str:
        return self._words.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return self._words.encode(string).tolist()

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, nats; one longer than the context is cut into windows."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            first, scored = self._bos, ids
            if first is None and ids:
                first, scored = ids[0], [*ids[1:], self.eot_token_id]
            for begins, ends in utils.get_rolling_token_windows(scored, first, self._context - 1, 1):
                windows.append((("", ""), *utils.make_disjoint_window((begins, ends))))
                owners.append(number)
        parts: list[list[float]] = [[] for _ in requests]
        for owner, (found, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            parts[owner].append(found)
        return [math.fsum(found) for found in parts]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, or drawn as a task's `generation_kwargs` say, without the text that ends them."""
        asked = (self._question(*request.args) for request in requests)
        return [result.text for _, result in self._results(asked, len(requests))]

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **_) -> list[tuple[float, bool]]:
        """requests: (texts, ids of the context, ids of what is scored)."""
        return [_scored(count, result) for count, result in self._results(self._scorings(requests), len(requests))]

    def _scorings(self, requests: Sequence[tuple]) -> Iterator[tuple[int, Request | None]]:
        """(how many of a prompt's last tokens are scored, what the engine is asked); of none it is asked nothing."""
        for _, context, continuation in requests:
            begins = [id for id in context if id is not None]
            ids = [*begins, *continuation][-self._context :]
            count = min(len(continuation), len(ids) - 1)  # what comes first is given
            asked = Request(prompt=ids, max_tokens=1, sampling=run.GREEDY, prompt_logprobs=1) if count > 0 else None
            yield count, asked

    def _question(self, text: str, options: dict[str, Any]) -> tuple[None, Request]:
        known = dict(options)
        until, wanted = known.pop("until", None) or [], known.pop("max_gen_toks", _MAX_TOKENS)
        count = min(wanted, self._context // 2)
        if not known.pop("do_sample", known.get("temperature", 0.0) > 0):
            known["temperature"] = 0.0
        for name in known.keys() - set(_SETTINGS):
            raise refused(f"generation_kwargs.{name}", shown(known[name]), f"{', '.join(_SETTINGS)} beside until", None)
        if count < 1:
            raise refused("max_gen_toks", wanted, "at least 1", None)
        ids = self.tok_encode(text) if self._bos is None else [self._bos, *self.tok_encode(text)]
        if not ids:
            raise ValueError("a question without any text, and no token to begin with; allowed: --bos=TOKEN")
        stops = [until] if isinstance(until, str) else list(until)
        return None, Request(
            prompt=ids[-(self._context - count) :],
            max_tokens=count,
            sampling=Sampling(**{"temperature": 1.0, **known}),
            stop_ids=(self.eot_token_id,),
            stop=[stop for stop in stops if stop],
        )

    def _results(self, asked: Iterator[tuple[Any, Request | None]], count: int) -> Iterator[tuple[Any, Result]]:
        progress = Progress(0, count) if cluster.is_first() else None
        for number, (what, _, result) in enumerate(run.results(self._engine, asked), start=1):
            if progress:
                progress.show(number, "requests")
            yield what, result


def evaluate(given: types.SimpleNamespace, model: TextModel, words: Tokenizer) -> str:
    """What the harness finds of the tasks that are named; its table.

    Raises:
      ConfigError: a task that it does not know.
    """
    manager = tasks.TaskManager(include_path=given.include)
    names = list(dict.fromkeys(name.strip() for name in given.tasks.split(",")))
    for name in names:
        if name not in manager.all_tasks:
            allowed = "a task of the harness, or of the folder in --include"
            raise refused("--tasks", shown(name), allowed, nearest_name(name, manager.all_tasks))
    adapter = EngineLM(model, words, given.context, given.slots, given.bos)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    options = {"num_fewshot": given.fewshot, "limit": given.limit, "task_manager": manager, "log_samples": False}
    found = lm_eval.simple_evaluate(adapter, tasks=names, **options)
    if not cluster.is_first():
        return ""
    if given.json is not None:
        kept = {name: found[name] for name in ("results", "n-shot", "n-samples") if name in found}
        kept |= {"versions": report.versions() | {"lm_eval": lm_eval.__version__}, "task_versions": found["versions"]}
        told = json.dumps(kept, indent=1, default=utils.handle_non_serializable)
        write(pathlib.Path(given.json), told.encode())
    return utils.make_table(found)


def _scored(count: int, result: Result | None) -> tuple[float, bool]:
    """(log-likelihood of the last `count` tokens of a prompt, whether each was the likeliest)."""
    if result is None:
        return 0.0, True
    tops = result.prompt_top[-count:]
    logprobs = result.prompt_logprobs[-count:]
    is_greedy = all(logprob >= top[0][1] for logprob, top in zip(logprobs, tops, strict=True))
    return math.fsum(logprobs), is_greedy
