"""Text from a checkpoint: python -m mm01_jax.inference --checkpoint=runs/tiny --prompt='def '

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 130 interrupted.
"""

import sys

import jax
import numpy as np
from absl import flags

from mm01_jax import command, sharding
from mm01_jax.config import MeshConfig
from mm01_jax.inference.decoding import generate
from mm01_jax.inference.sampling import Sampling
from mm01_jax.loading import load


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "a run's work directory, one of its steps, or a conversion")
    flags.DEFINE_string("prompt", None, "the text to go on from")
    flags.DEFINE_integer("max_tokens", 256, "at most this many new tokens", lower_bound=1)
    flags.DEFINE_float("temperature", 0.8, "0 is greedy")
    flags.DEFINE_integer("top_k", 0, "choose among the k most likely tokens; 0: all")
    flags.DEFINE_float("top_p", 1.0, "choose among the most likely tokens that hold this probability")
    flags.DEFINE_integer("seed", 0, "the same seed gives the same text", lower_bound=0, upper_bound=2**31 - 1)


def main(argv: list[str]) -> int:
    return command.run(_generate, argv)


def _generate(argv: list[str]) -> None:
    _define_flags()
    if "--help" in argv:
        print(__doc__, flags.FLAGS.main_module_help(), sep="\n")
        return
    surplus = flags.FLAGS(argv)[1:]
    if surplus:
        raise ValueError(f"{surplus[0]!r} is no flag; text with spaces needs quotes, as in --prompt='def main'")
    for name, value in (("checkpoint", flags.FLAGS.checkpoint), ("prompt", flags.FLAGS.prompt)):
        if not value:
            raise ValueError(f"--{name} is missing or empty; e.g. --checkpoint=runs/tiny --prompt='def '")
    sampling = Sampling(temperature=flags.FLAGS.temperature, top_k=flags.FLAGS.top_k, top_p=flags.FLAGS.top_p)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        _print_text(sampling)


def _print_text(sampling: Sampling) -> None:
    """Prints the prompt, then the new text as it comes; bytes of an unfinished character wait for the next block."""
    model, tokenizer, _ = load(flags.FLAGS.checkpoint)
    print(flags.FLAGS.prompt, end="", flush=True)
    ids, text, shown = [], "", ""
    blocks = generate(
        model,
        [tokenizer.encode(flags.FLAGS.prompt)],
        max_tokens=flags.FLAGS.max_tokens,
        sampling=sampling,
        key=jax.random.key(flags.FLAGS.seed),
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
    sys.exit(main(sys.argv))
