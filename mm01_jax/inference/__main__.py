"""mm01-generate: text from a checkpoint.

  mm01-generate --checkpoint=runs/tiny --prompt='def '
  mm01-generate --checkpoint=runs/tiny --prompt='def ' --temperature=0 --max-tokens=64

`python -m mm01_jax.inference` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 130 interrupted.
"""

import sys
import types
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.arguments import Flag

COMMAND = arguments.Command(
    name="mm01-generate",
    doc=__doc__,
    flags=(
        Flag(
            "checkpoint",
            "a run's work directory, one of its steps, or a conversion",
            example="runs/tiny",
            required=True,
        ),
        Flag("prompt", "the text to go on from", example="'def '", required=True),
        Flag("max_tokens", "at most this many new tokens", int, default=256, least=1),
        Flag("temperature", "0 is greedy", float, default=0.8),
        Flag("top_k", "choose among the k most likely tokens; 0: all", int, default=0),
        Flag("top_p", "choose among the most likely tokens that hold this probability", float, default=1.0),
        Flag("seed", "the same seed gives the same text", int, default=0, least=0, most=2**31 - 1),
        arguments.COMPILE_CACHE,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(_generate, argv, name=COMMAND.name)


def _generate(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    if given.compile_cache:
        compile_cache.use()
    from mm01_jax.inference.sampling import Sampling

    _print_text(given, Sampling(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p))


def _print_text(given: types.SimpleNamespace, sampling) -> None:
    """Prints the prompt, then the new text as it comes; bytes of an unfinished character wait for the next block."""
    import jax
    import numpy as np

    from mm01_jax.inference.decoding import generate
    from mm01_jax.loading import load

    model, tokenizer, _ = load(given.checkpoint)
    print(given.prompt, end="", flush=True)
    ids, text, shown = [], "", ""
    blocks = generate(
        model,
        [tokenizer.encode(given.prompt)],
        max_tokens=given.max_tokens,
        sampling=sampling,
        key=jax.random.key(given.seed),
        stop=tokenizer.end_of_document,
        vocab_size=tokenizer.vocab_size,
    )
    for block in blocks:
        ids += [int(i) for i in block[0] if i != tokenizer.end_of_document]
        text = tokenizer.decode(np.array(ids, np.int32))
        stable = text.rstrip("\ufffd")
        print(stable[len(shown) :], end="", flush=True)
        shown = stable
    print(text[len(shown) :])


if __name__ == "__main__":
    sys.exit(main())
