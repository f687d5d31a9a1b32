"""mm01-eval: evaluates a checkpoint.

  mm01-eval perplexity --checkpoint=runs/tiny
  mm01-eval perplexity --checkpoint=runs/tiny --source=texts --mesh=data=2,tensor=2
  mm01-eval needle --checkpoint=runs/tiny --lengths=1k,4k,16k --json=needle.json --figure=needle.png
  mm01-eval ruler --checkpoint=runs/tiny --lengths=16k --families=vt,fwe --samples=20
  mm01-eval rounds --checkpoint=runs/tiny --lengths=16k --write=rounds.jsonl
  mm01-eval copy --checkpoint=runs/tiny --server=http://127.0.0.1:8000/v1
  mm01-eval lm-eval --checkpoint=runs/tiny --tasks=lambada_openai,hellaswag

`python -m mm01_jax.evals` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 69 another process of the job has died or
left, or a server does not answer, 74 a full or broken disk, 130 interrupted.
"""

import importlib.util
import sys
import types
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.evals.flags import FLAGS, HARNESS_FLAGS, OWN_FLAGS, WORDS
from mm01_jax.flag import Command, Flag, Task


def _perplexity(given: types.SimpleNamespace) -> str:
    from mm01_jax.data.text import DataError
    from mm01_jax.evals.perplexity import perplexity
    from mm01_jax.loading import data_of, is_without_run, load_as_asked

    if given.source is None and is_without_run(given.checkpoint):
        allowed = f"a text to score: {given.checkpoint} is no run, which would have held some out"
        raise arguments.refused("--source", "nothing", allowed, "--source=FILE")
    loaded = load_as_asked(given)
    trained_on = data_of(given.checkpoint)
    if trained_on and given.tokenizer:
        trained_on = trained_on | {"tokenizer": loaded.tokenizer.fingerprint}  # another one was asked for
    try:
        scored = perplexity(
            loaded.model, loaded.config, given.source, trained_on=trained_on, by_position=given.by_position
        )
    except DataError as error:
        raise DataError(str(error) if given.source else f"{given.checkpoint}: {error}") from error
    return str(scored)


def _long_context(given: types.SimpleNamespace) -> str:
    from mm01_jax.evals import asking, server, tasks
    from mm01_jax.evals.run import InProcess
    from mm01_jax.loading import digest_of, load_as_asked, load_tokenizer
    from mm01_jax.model.multimodal import VLModel

    server.check_flags(given)
    asked = tasks.read(given.task, given)
    asking.check_files(asked)
    if given.write is not None:
        return asking.write_samples(asked, load_tokenizer(given.checkpoint, given.tokenizer))
    if given.server is not None:
        answerer = server.Server(given.server, given.model, server.key_in(given.api_key_file), given.slots)
        tokenizer = load_tokenizer(given.checkpoint, given.tokenizer)
        return asking.ask(asked, answerer, tokenizer, {"weights": None, "model": answerer.model, "dtype": None})
    loaded = load_as_asked(given)
    model = loaded.model.text if isinstance(loaded.model, VLModel) else loaded.model
    facts = {"weights": digest_of(given.checkpoint), "dtype": loaded.config.compute.dtype}
    return asking.ask(asked, InProcess(model, given.slots), loaded.tokenizer, facts)


def _harness(given: types.SimpleNamespace) -> str:
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("lm-eval needs lm-evaluation-harness: pip install 'mm01_jax[lm-eval]'")
    from mm01_jax.evals.harness import evaluate
    from mm01_jax.loading import load_as_asked
    from mm01_jax.model.multimodal import VLModel

    loaded = load_as_asked(given)
    model = loaded.model.text if isinstance(loaded.model, VLModel) else loaded.model
    return evaluate(given, model, loaded.tokenizer)


_SOURCE = Flag(
    "source", "text to score instead of the run's held-out split: .txt, .jsonl or .arrayrecord", example="FILE"
)
_BY_POSITION = Flag("by_position", "say it for each band of positions in a document, too", bool, default=False)
# Name -> what is asked, given the flags; what comes back is printed.
TASKS = {
    "perplexity": Task(
        "how well it predicts the run's held-out text, or all of --source", (_SOURCE, _BY_POSITION), _perplexity
    ),
    "lm-eval": Task("the tasks of lm-evaluation-harness, in this process (extra: lm-eval)", HARNESS_FLAGS, _harness),
    **{name: Task(words, (*OWN_FLAGS[name], *FLAGS), _long_context) for name, words in WORDS.items()},
}
COMMAND = Command(
    name="mm01-eval",
    doc=__doc__,
    flags=(
        *arguments.LOADING,
        arguments.COMPILE_CACHE,
    ),
    tasks=TASKS,
)


def main(argv: Sequence[str] | None = None) -> int:
    advice = "interrupted; where answers lie beside --json the same command goes on"
    return command.run(_evaluate, argv, name=COMMAND.name, interrupted=advice)


def _evaluate(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    if given.compile_cache:
        compile_cache.use()
    if found := TASKS[given.task].run(given):
        print(f"\n{found}")


if __name__ == "__main__":
    sys.exit(main())
