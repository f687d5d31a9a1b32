"""mm01-generate: text from a checkpoint, after a prompt, after each prompt of a file, or in a conversation.

  mm01-generate --checkpoint=runs/tiny --prompt='def '
  mm01-generate --checkpoint=runs/tiny --prompt='def ' --temperature=0 --max-tokens=64
  mm01-generate --checkpoint=runs/tiny --prompts=asked.jsonl --out=answered.jsonl --batch=16
  mm01-generate --checkpoint=MiniMax-Text-01 --chat --mesh=auto
  mm01-generate --checkpoint=runs/vl/stage2 --image=a.png --image=b.png --prompt='<image><image>larger?'

A line of --prompts is {"prompt": TEXT} or {"messages": [{"role": "user", "content": TEXT}, ...]}, with pictures also
"images": [PATH, ...]; what else it has is kept beside the `text` and `finish` of the answer. Answers lie in
FILE.partial until all are there, and the same command goes on from them. --chat and messages use
the template that lies with the checkpoint or its tokenizer (chat_template.jinja, tokenizer_config.json), or --template.
With pictures the prompt is what a user says, in the official template. `python -m mm01_jax.inference` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 74 a full or broken disk,
130 interrupted.
"""

import sys
import types
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache, messages
from mm01_jax.flag import Command, Flag
from mm01_jax.values import MOST_TOKENS

COMMAND = Command(
    name="mm01-generate",
    doc=__doc__,
    flags=(
        *arguments.LOADING,
        Flag("prompt", "the text to go on from", example="'def '"),
        Flag("prompts", "a file of prompts, one JSON object a line", example="FILE.jsonl", reads="a file"),
        Flag("image", "a picture of the prompt, where its <image> stands; once for each", example="a.png"),
        Flag("out", "where the answers to --prompts go, a line each, in order", example="FILE.jsonl", writes=True),
        Flag("batch", "how many of --prompts are answered together", int, default=8, least=1),
        Flag("chat", "a conversation: lines of a terminal, or of a pipe", bool, default=False),
        Flag("system", "what a conversation begins with, before the first line of --chat"),
        Flag("template", "how a conversation becomes text: minimax-01, minimax-m1, or a .jinja file", example="NAME"),
        Flag("max_tokens", "at most this many new tokens", int, default=256, least=1, most=MOST_TOKENS),
        Flag(
            "thinking_tokens",
            "of a conversation: a model that thinks before it answers does it for at most so many tokens",
            int,
            example="8192",
            least=1,
        ),
        Flag("temperature", "0 is greedy", float, default=0.8, least=0),
        Flag("top_k", "choose among the k most likely tokens; 0: all", int, default=0, least=0),
        Flag(
            "top_p",
            "choose among the most likely tokens that hold this probability",
            float,
            default=1.0,
            least=0,
            most=1,
        ),
        Flag("seed", "the same seed gives the same text", int, default=0, least=0, most=2**31 - 1),
        arguments.COMPILE_CACHE,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(_generate, argv, name=COMMAND.name)


def _generate(argv: Sequence[str]) -> None:
    images, others = _apart(argv)
    given = arguments.read(COMMAND, others)
    _check_uses(given)
    if images and given.prompt is None:
        raise arguments.refused("--image", images[0], "a flag of --prompt", "--prompt='<image>What is it?'")
    _check_images(images)
    if given.template is not None:
        from mm01_jax.data import templates

        templates.check(given.template)
    lines = _read_prompts(given) if given.prompts is not None else []
    with command.importing():
        if given.compile_cache:
            compile_cache.use()
        from mm01_jax import cluster, loading
        from mm01_jax.inference.asked import Settings
        from mm01_jax.inference.sampling import Sampling

    sampling = Sampling(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p)
    settings = Settings(given.max_tokens, sampling, given.seed, thinking_tokens=given.thinking_tokens)
    if cluster.join() and given.chat:
        raise arguments.refused("--chat", "several processes", "one, whose terminal it is", "--prompts=FILE --out=FILE")
    loaded = loading.load_as_asked(given)
    if given.chat:
        _chat(given, loaded, settings)
    elif given.prompts is not None:
        from mm01_jax.inference import prompt_answers

        prompt_answers.answer_all(given, loaded, settings, lines, loading.digest_of(given.checkpoint))
    elif images:
        _print_answer(given, loaded, settings, images)
    else:
        _print_text(given, loaded, settings)


def _apart(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the picture of every --image, with `=` or without; all else)."""
    images, others, rest = [], [], iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in ("--image", "-image"):
            others.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise arguments.refused("--image", "no value", "the file of a picture", "--image=a.png")
        images.append(value)
    return images, others


def _check_images(images: Sequence[str]) -> None:
    """Refuses what is no sound image, before weights are read."""
    if images:
        from mm01_jax.inference import pictures

        pictures.check_sound(images)


def _print_answer(given: types.SimpleNamespace, loaded, settings, images: Sequence[str]) -> None:
    """Prints the answer to a prompt about images, as it comes."""
    from mm01_jax.data.conversations import END
    from mm01_jax.inference import pictures
    from mm01_jax.inference.text import stream

    if loaded.config.vision is None:
        raise arguments.refused("--image", images[0], "a checkpoint with vision", "--checkpoint=runs/vl/stage2")
    said, config = [{"role": "user", "content": given.prompt}], loaded.config
    asked = pictures.ask(said, images, loaded.tokenizer, config.vision, config.train.sequence_length)
    shown, stop = pictures.show(asked, config.vision), loaded.tokenizer.special(END)
    for piece in stream(loaded.model, loaded.tokenizer, asked.ids, settings, stop, shown):
        print(messages.answer(piece, sys.stdout), end="", flush=True)
    print()


def _check_uses(given: types.SimpleNamespace) -> None:
    """One of three uses, and no flag of another."""
    uses = {"--prompt": given.prompt is not None, "--prompts": given.prompts is not None, "--chat": given.chat}
    if sum(uses.values()) != 1:
        got = " and ".join(flag for flag, used in uses.items() if used) or "nothing"
        raise arguments.refused("what to do", got, "one of --prompt=TEXT, --prompts=FILE, --chat", "--prompt='def '")
    if (given.out is None) == uses["--prompts"]:
        allowed = "a file for the answers to --prompts, and only to them"
        raise arguments.refused("--out", given.out or "nothing", allowed, "--prompts=asked.jsonl --out=answered.jsonl")
    for name in ("prompt", "system"):
        try:
            (getattr(given, name) or "").encode()
        except UnicodeEncodeError as error:
            got = f"bytes that are no UTF-8 at character {error.start}"
            raise arguments.refused(f"--{name}", got, "text in UTF-8", None) from None
    asks = given.chat or uses["--prompts"]
    for name, fits in (("system", given.chat), ("template", asks), ("thinking_tokens", asks)):
        if getattr(given, name) is not None and not fits:
            typed = f"--{name.replace('_', '-')}"
            nearest = "--chat" if not asks else "--prompts=FILE"
            raise arguments.refused(typed, getattr(given, name), "a flag of a conversation", nearest)


def _print_text(given: types.SimpleNamespace, loaded, settings) -> None:
    """Prints the prompt, when nothing can be refused any more, and the new text as it comes."""
    from mm01_jax.inference import marks
    from mm01_jax.inference.text import stream

    marks.check_text("--prompt", given.prompt, loaded.config.vision, "--image=a.png")
    said = given.prompt
    for piece in stream(loaded.model, loaded.tokenizer, loaded.tokenizer.encode(given.prompt), settings):
        print(messages.answer(said + piece, sys.stdout), end="", flush=True)
        said = ""
    print(said)


def _chat(given: types.SimpleNamespace, loaded, settings) -> None:
    from mm01_jax.inference import marks, prompt_answers
    from mm01_jax.inference.chat import Chat
    from mm01_jax.inference.text import Speaker

    template, vision, nearest = prompt_answers.template(given, loaded), loaded.config.vision, "--prompt with --image"
    marks.check_text("--system", given.system or "", vision, nearest)
    prompt_answers.check_thoughts(settings, template.thinks)
    speaker = Speaker(loaded.model, loaded.tokenizer, settings, template.stop(loaded.tokenizer), remembers=True)

    def ids(messages: Sequence[dict]):
        marks.check_text("what was said", messages[-1]["content"], vision, nearest)
        return template.ids(messages, tokenizer=loaded.tokenizer)

    Chat(ids, speaker.say, given.system, thinks=template.thinks).run()


def _read_prompts(given: types.SimpleNamespace) -> list[dict]:
    from mm01_jax.inference import answer_file, prompt_file

    lines = prompt_file.read(given.prompts)
    answer_file.check_place(given.out, given.prompts)
    return lines


if __name__ == "__main__":
    sys.exit(main())
