"""mm01-eval: evaluates a checkpoint.

  mm01-eval perplexity --checkpoint=runs/tiny
  mm01-eval perplexity --checkpoint=runs/tiny --source=texts --mesh=data=2,tensor=2

`python -m mm01_jax.evals` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 74 a full or broken disk,
130 interrupted.
"""

import sys
import types
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.arguments import Flag, Task


def _perplexity(loaded, given: types.SimpleNamespace):
    from mm01_jax.evals.perplexity import perplexity
    from mm01_jax.loading import data_of

    trained_on = data_of(given.checkpoint)
    if trained_on and given.tokenizer:
        trained_on = trained_on | {"tokenizer": loaded.tokenizer.fingerprint}  # another one was asked for
    return perplexity(loaded.model, loaded.config, given.source, trained_on=trained_on)


# Name -> what is asked of a `loading.Loaded`, given the flags; what comes back is printed.
TASKS = {
    "perplexity": Task(
        "how well it predicts the run's held-out text, or all of --source",
        (
            Flag(
                "source",
                "text to score instead of the run's held-out split: whatever data.source takes",
                example="FILE",
            ),
        ),
        _perplexity,
    ),
}
COMMAND = arguments.Command(
    name="mm01-eval",
    doc=__doc__,
    flags=(
        *arguments.LOADING,
        arguments.COMPILE_CACHE,
    ),
    tasks=TASKS,
)


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(_evaluate, argv, name=COMMAND.name)


def _evaluate(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    if given.compile_cache:
        compile_cache.use()
    from mm01_jax.loading import is_without_run, load_as_asked

    if given.source is None and is_without_run(given.checkpoint):
        allowed = f"a text to score: {given.checkpoint} is no run, which would have held some out"
        raise arguments.refused("--source", "nothing", allowed, "--source=FILE")
    found = TASKS[given.task].run(load_as_asked(given), given)
    print(f"\n{found}")


if __name__ == "__main__":
    sys.exit(main())
