"""mm01-generate --prompts: every line of a file of prompts answered, from where an earlier run of it was cut off."""

import collections
import functools
import hashlib
import json
import pathlib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mm01_jax import arguments, cluster
from mm01_jax.checkpoint import processes
from mm01_jax.data import templates
from mm01_jax.data.conversations import check_messages
from mm01_jax.files import quoted
from mm01_jax.inference import answer_file, batch, marks, prompt_file
from mm01_jax.inference.answer_file import Begun
from mm01_jax.inference.asked import Answer, Asked, Job, Settings
from mm01_jax.messages import counted
from mm01_jax.progress import Progress

_ASKED = ("checkpoint", "tokenizer", "dtype", "quantize", "template", "seed", "max_tokens", "thinking_tokens")
_SETTINGS = (*_ASKED, "temperature", "top_k", "top_p")
_WITH_IMAGE = '"images": ["a.png"]'


class Prompts(NamedTuple):
    """The lines of a file as the model takes them in. template_text: a digest of what makes text of conversations."""

    lines: Sequence[dict]
    asked: Sequence[Asked]
    template_text: str | None = None


def answer_all(
    given: types.SimpleNamespace, loaded, settings: Settings, lines: Sequence[dict], weights: str | None
) -> None:
    """Answers every line, --batch at a time; says how far it is on stderr. weights: their digest, if they have one."""
    prompts = _prompts(given, loaded, lines)
    with_images = next((n for n, asked in enumerate(prompts.asked, start=1) if asked.files), None)
    check_thoughts(settings, any(asked.thinks for asked in prompts.asked), with_images)
    jobs = _jobs(given, loaded, settings, prompts)
    begun = begun_by_all(given.out, _follows_from(given, loaded, prompts, weights), [job.samples for job in jobs])
    progress = Progress(begun.prompts, len(lines), sys.stderr)
    found = _answered(given, loaded, jobs, progress)

    def answered() -> Iterator:
        for done, (fields, said) in enumerate(zip(lines[begun.prompts :], found, strict=True), start=begun.prompts + 1):
            for number, answer in enumerate(said):
                yield fields if len(said) == 1 else fields | {"sample": number}, answer
            if cluster.is_first():
                progress.show(done, "prompts answered")

    if not cluster.is_first():
        collections.deque(answered(), maxlen=0)  # every process computes, one writes
        return
    answer_file.finish(given.out, begun, answered())
    print(f"{given.out}: {counted(len(lines), 'answer')}")


def template(given: types.SimpleNamespace, loaded):
    """How a conversation becomes text: as asked, or as the checkpoint or its tokenizer has it."""
    folders = [pathlib.Path(given.checkpoint)]
    if loaded.tokenizer.name != "bytes":
        folders.append(pathlib.Path(loaded.tokenizer.name).parent)
    return templates.choose(given.template, list(dict.fromkeys(folders)), loaded.tokenizer)


def _prompts(given: types.SimpleNamespace, loaded, lines: Sequence[dict]) -> Prompts:
    """What one line asks follows from that line alone; the template is the same for all that need one."""
    tokenizer, vision = loaded.tokenizer, loaded.config.vision
    in_conversation = any("messages" in fields and not fields.get("images") for fields in lines)
    chosen = template(given, loaded) if in_conversation else None
    stop = chosen.stop(tokenizer) if in_conversation else None

    def asked(fields: dict) -> Asked:
        if fields.get("images"):
            return _about_images(given, loaded, fields)
        if "messages" in fields:
            marks.check_conversation(fields["messages"], vision, _WITH_IMAGE)
            ids = chosen.ids(fields["messages"], tokenizer, fields.get("tools"))
            return Asked(ids, stop=stop, thinks=chosen.thinks)
        marks.check_text("prompt", fields["prompt"], vision, _WITH_IMAGE)
        return Asked(tokenizer.encode(fields["prompt"]))

    found = prompt_file.of_lines(given.prompts, asked, lines, "prompts made", says=cluster.is_first())
    if chosen is None:
        return Prompts(lines, found)
    source = json.dumps([getattr(chosen, "source", chosen.name), dict(getattr(chosen, "tokens", {}))], sort_keys=True)
    return Prompts(lines, found, hashlib.sha256(source.encode()).hexdigest())


def _about_images(given: types.SimpleNamespace, loaded, fields: dict) -> Asked:
    """A line with images, in the official template: the one that has a place for them."""
    from mm01_jax.inference import pictures  # needs pillow, which text alone does not

    config, folder = loaded.config, pathlib.Path(given.prompts).parent
    if config.vision is None:
        got = quoted(fields["images"])
        raise ValueError(f"images: got {got}; allowed: a checkpoint with vision, which this one has not")
    said = fields.get("messages") or [{"role": "user", "content": fields["prompt"]}]
    check_messages(said)
    files, context = [folder / image for image in fields["images"]], config.train.sequence_length
    return pictures.ask(said, files, loaded.tokenizer, config.vision, context, fields.get("tools") or ())


def check_thoughts(settings: Settings, thinks: bool, with_images: int | None = None) -> None:
    """Refuses --thinking-tokens where nobody thinks. with_images: the first line of a file that has images."""
    if settings.thinking_tokens is None or (thinks and with_images is None):
        return
    allowed = "a flag of conversations whose template knows <think>"
    if with_images is not None:
        allowed += f", not of a file whose line {with_images} has images: they come in MiniMax-VL-01's template"
    raise arguments.refused("--thinking-tokens", settings.thinking_tokens, allowed, "--template=minimax-m1")


def _jobs(given: types.SimpleNamespace, loaded, settings: Settings, prompts: Prompts) -> list[Job]:
    """One a line; of lines without a seed the n-th has n more than the first, whatever --batch is."""

    def job(number: int) -> Job:
        fields, asked = prompts.lines[number], prompts.asked[number]
        budget = settings.thinking_tokens if asked.thinks else None
        seeded = settings._replace(seed=settings.seed + number, thinks=asked.thinks, thinking_tokens=budget)
        found = batch.job(asked.ids, seeded, fields.get("options", {}))._replace(stop=asked.stop)
        batch.check_ids(found, loaded.config.model.vocab_size)
        if not asked.files:
            return found
        from mm01_jax.inference import pictures  # needs pillow, which text alone does not

        vision = loaded.config.vision
        shows = functools.partial(pictures.show, asked, vision)
        return found._replace(shows=shows, tiles=pictures.num_tiles(asked, vision))

    return [prompt_file.at_line(given.prompts, n + 1, job, n) for n in range(len(prompts.lines))]


def _follows_from(given: types.SimpleNamespace, loaded, prompts: Prompts, weights: str | None) -> dict:
    """What the answers follow from; how they are computed (mesh, batch) aside."""
    said = hashlib.sha256(json.dumps(prompts.lines).encode()).hexdigest()
    files = list(dict.fromkeys(file for asked in prompts.asked for file in asked.files))
    asked = {name: getattr(given, name) for name in _SETTINGS}
    read = {"images": _digest(files) if files else None, "template_text": prompts.template_text}
    return {"weights": weights, "prompts": said, "tokenizer_file": loaded.tokenizer.fingerprint} | read | asked


def _digest(files: Sequence[pathlib.Path]) -> str:
    """Of the bytes of some images."""
    from mm01_jax.data.images.opening import content_of  # needs pillow, which text alone does not

    each = [hashlib.sha256(content_of(file, str(file), None)).digest() for file in files]
    return hashlib.sha256(b"".join(each)).hexdigest()


def begun_by_all(path: str, follows_from: dict, samples: Sequence[int]) -> Begun:
    """What the first process finds of an earlier run, known to all."""
    begun, failure = Begun(), None
    if cluster.is_first():
        try:
            begun = answer_file.begin(path, follows_from, samples)
        except (ValueError, OSError) as error:
            failure = error
    processes.agree(failure, ValueError)
    (count,) = processes.add([np.array([begun.prompts], np.uint32)])
    return Begun(int(count[0]), begun.size)


def _answered(given, loaded, jobs: Sequence[Job], progress: Progress) -> Iterator[list[Answer]]:
    """The answers to each job but those that are there already; how fast they were is said in the end."""

    def tell(statistics: dict) -> None:
        if not cluster.is_first():
            return
        taken, decoded, seconds = (statistics[name] for name in ("prefilled_tokens", "decoded_tokens", "seconds"))
        speed = f"{decoded:,} drawn in {seconds:,.1f} s ({statistics['decoded_per_second']:,.0f} a second)"
        progress.log(f"{counted(taken, 'token')} of prompts taken in, {speed}")

    if progress.first == len(jobs):
        return iter(())
    options = {"slots": given.batch, "done": progress.first, "told": tell}
    return batch.answers(loaded.model, loaded.tokenizer, jobs, **options)
