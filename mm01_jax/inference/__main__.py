"""mm01-generate: text from a checkpoint, after a prompt, after each prompt of a file, or in a conversation.

  mm01-generate --checkpoint=runs/tiny --prompt='def '
  mm01-generate --checkpoint=runs/tiny --prompt='def ' --temperature=0 --max-tokens=64
  mm01-generate --checkpoint=runs/tiny --prompts=asked.jsonl --out=answered.jsonl --batch=16
  mm01-generate --checkpoint=MiniMax-Text-01 --chat --mesh=auto
  mm01-generate --checkpoint=runs/vl/stage2 --image=a.png --image=b.png --prompt='<image><image>larger?'

A line of --prompts is {"prompt": TEXT} or {"messages": [{"role": "user", "content": TEXT}, ...]}, with pictures also
"images": [PATH, ...]; what else it has is kept beside the `text` and `finish` of the answer. --chat and messages use
the template that lies with the checkpoint or its tokenizer (chat_template.jinja, tokenizer_config.json), or --template.
With pictures the prompt is what a user says, in the official template. `python -m mm01_jax.inference` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 74 a full or broken disk,
130 interrupted.
"""

import collections
import sys
import types
from collections.abc import Iterator, Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.arguments import Flag

COMMAND = arguments.Command(
    name="mm01-generate",
    doc=__doc__,
    flags=(
        *arguments.LOADING,
        Flag("prompt", "the text to go on from", example="'def '"),
        Flag("prompts", "a file of prompts, one JSON object a line", example="FILE.jsonl"),
        Flag("image", "a picture of the prompt, where its <image> stands; once for each", example="a.png"),
        Flag("out", "where the answers to --prompts go, a line each, in order", example="FILE.jsonl"),
        Flag("batch", "how many of --prompts are answered together", int, default=8, least=1),
        Flag("chat", "a conversation: lines of a terminal, or of a pipe", bool, default=False),
        Flag("system", "what a conversation begins with, before the first line of --chat"),
        Flag("template", "how a conversation becomes text: minimax-01, minimax-m1, or a .jinja file", example="NAME"),
        Flag("max_tokens", "at most this many new tokens", int, default=256, least=1),
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
    images = [argument.partition("=")[2] for argument in argv if argument.startswith("--image=")]
    given = arguments.read(COMMAND, [argument for argument in argv if not argument.startswith("--image=")])
    _check_uses(given)
    if images and given.prompt is None:
        raise arguments.refused("--image", images[0], "a flag of --prompt", "--prompt='<image>What is it?'")
    _check_images(images)
    lines = _read_prompts(given) if given.prompts is not None else []
    if given.compile_cache:
        compile_cache.use()
    from mm01_jax import cluster, loading
    from mm01_jax.inference.sampling import Sampling
    from mm01_jax.inference.text import Settings

    sampling = Sampling(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p)
    settings = Settings(given.max_tokens, sampling, given.seed)
    if cluster.join() and given.chat:
        raise arguments.refused("--chat", "several processes", "one, whose terminal it is", "--prompts=FILE --out=FILE")
    loaded = loading.load_as_asked(given)
    if given.chat:
        _chat(given, loaded, settings)
    elif given.prompts is not None:
        _answer_file(given, loaded, settings, lines)
    elif images:
        _print_answer(given, loaded, settings, images)
    else:
        _print_text(given, loaded, settings)


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
    shown, stop = pictures.show([asked], config.vision), loaded.tokenizer.special(END)
    for piece in stream(loaded.model, loaded.tokenizer, asked.ids, settings, stop, shown):
        print(piece, end="", flush=True)
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
    for name, fits in (("system", given.chat), ("template", given.chat or uses["--prompts"])):
        if getattr(given, name) is not None and not fits:
            raise arguments.refused(f"--{name}", getattr(given, name), "a flag of a conversation", "--chat")


def _print_text(given: types.SimpleNamespace, loaded, settings) -> None:
    """Prints the prompt, then the new text as it comes."""
    from mm01_jax.inference.text import stream

    print(given.prompt, end="", flush=True)
    for piece in stream(loaded.model, loaded.tokenizer, loaded.tokenizer.encode(given.prompt), settings):
        print(piece, end="", flush=True)
    print()


def _template(given: types.SimpleNamespace, loaded):
    import pathlib

    from mm01_jax.data import templates

    folders = [pathlib.Path(given.checkpoint)]
    if loaded.tokenizer.name != "bytes":
        folders.append(pathlib.Path(loaded.tokenizer.name).parent)
    return templates.choose(given.template, list(dict.fromkeys(folders)), loaded.tokenizer)


def _chat(given: types.SimpleNamespace, loaded, settings) -> None:
    from mm01_jax.inference.chat import Chat
    from mm01_jax.inference.text import stream

    template = _template(given, loaded)
    stop = template.stop(loaded.tokenizer)
    Chat(
        lambda messages: template.ids(messages, loaded.tokenizer),
        lambda prompt: stream(loaded.model, loaded.tokenizer, prompt, settings, stop),
        given.system,
    ).run()


def _read_prompts(given: types.SimpleNamespace) -> list[dict]:
    from mm01_jax.inference import prompt_file

    lines = prompt_file.read(given.prompts)
    prompt_file.check_place(given.out, given.prompts)
    return lines


def _asked(given: types.SimpleNamespace, loaded, lines: list[dict]) -> tuple[list, int | None]:
    """(the `Asked` of every line, the token that ends an answer)."""
    from mm01_jax.data.conversations import END
    from mm01_jax.inference import prompt_file
    from mm01_jax.inference.asked import Asked

    with_images = any(fields.get("images") for fields in lines)
    in_conversation = any("messages" in fields and not fields.get("images") for fields in lines)
    template = _template(given, loaded) if in_conversation else None
    stop = template.stop(loaded.tokenizer) if in_conversation else None

    def asked(fields: dict) -> Asked:
        if fields.get("images"):
            return _about_images(given, loaded, fields)
        if "messages" in fields:
            return Asked(template.ids(fields["messages"], loaded.tokenizer, fields.get("tools")))
        return Asked(loaded.tokenizer.encode(fields["prompt"]))

    prompts = [prompt_file.at_line(given.prompts, n, asked, fields) for n, fields in enumerate(lines, start=1)]
    return prompts, loaded.tokenizer.special(END) if with_images and stop is None else stop


def _about_images(given: types.SimpleNamespace, loaded, fields: dict):
    """A line with images, in the official template: the one that has a place for them."""
    import pathlib

    from mm01_jax.data.conversations import check_messages
    from mm01_jax.data.text import DataError
    from mm01_jax.files import quoted
    from mm01_jax.inference import pictures

    config, folder = loaded.config, pathlib.Path(given.prompts).parent
    if config.vision is None:
        got = quoted(fields["images"])
        raise ValueError(f"images: got {got}; allowed: a checkpoint with vision, which this one has not")
    said = fields.get("messages") or [{"role": "user", "content": fields["prompt"]}]
    check_messages(said)
    files = [folder / image for image in fields["images"]]
    try:
        return pictures.ask(said, files, loaded.tokenizer, config.vision, config.train.sequence_length)
    except DataError as error:
        raise ValueError(str(error)) from None


def _shown(prompts: Sequence, vision):
    """The images of some prompts; None where there are none."""
    if not any(prompt.files for prompt in prompts):
        return None
    from mm01_jax.inference import pictures  # needs pillow, which text alone does not

    return pictures.show(prompts, vision)


def _answer_file(given: types.SimpleNamespace, loaded, settings, lines: list[dict]) -> None:
    """Answers every line, --batch at a time; says how far it is on stderr."""
    from mm01_jax import cluster
    from mm01_jax.inference import prompt_file
    from mm01_jax.progress import Progress

    prompts, stop = _asked(given, loaded, lines)
    progress = Progress(0, len(lines), sys.stderr)
    about_images = any(prompt.files for prompt in prompts)
    if about_images and (told := next((n for n, fields in enumerate(lines, 1) if "options" in fields), None)):
        raise ValueError(f"{given.prompts}, line {told}: options: allowed only where no line of the file has images")
    found = (_with_images if about_images else _of_texts)(given, loaded, settings, lines, (prompts, stop))

    def answered() -> Iterator:
        for done, (fields, answers) in enumerate(zip(lines, found, strict=True), start=1):
            for number, answer in enumerate(answers):
                yield fields if len(answers) == 1 else fields | {"sample": number}, answer
            if cluster.is_first():
                progress.show(done, "prompts answered")

    if not cluster.is_first():
        collections.deque(answered(), maxlen=0)  # every process computes, one writes
        return
    prompt_file.write(given.out, answered())
    print(f"{given.out}: {len(lines)} answers")


def _of_texts(given: types.SimpleNamespace, loaded, settings, lines: list[dict], asked: tuple) -> Iterator[list]:
    """The answers to each line; of lines without a seed the n-th has n more than the first, whatever --batch is."""
    from mm01_jax.inference import batch, prompt_file

    prompts, stop = asked

    def job(number: int):
        seeded = settings._replace(seed=settings.seed + number)
        return batch.job(prompts[number].ids, seeded, lines[number].get("options", {}))

    jobs = [prompt_file.at_line(given.prompts, n + 1, job, n) for n in range(len(lines))]
    return batch.answers(loaded.model, loaded.tokenizer, jobs, slots=given.batch, stop=stop)


def _with_images(given: types.SimpleNamespace, loaded, settings, lines: list[dict], asked: tuple) -> Iterator[list]:
    """The same of lines some of which show images: batch by batch."""
    from mm01_jax.inference import prompt_file
    from mm01_jax.inference.text import answers

    (prompts, stop), done = asked, 0
    for batch in prompt_file.batches(prompts, given.batch):
        seeded = settings._replace(seed=settings.seed + done)
        shown, ids = _shown(batch, loaded.config.vision), [prompt.ids for prompt in batch]
        for answer in answers(loaded.model, loaded.tokenizer, ids, seeded, stop, shown)[: len(lines) - done]:
            yield [answer]
            done += 1


if __name__ == "__main__":
    sys.exit(main())
