"""mm01-serve: an OpenAI-compatible server: /v1/chat/completions, /v1/responses, /v1/completions, a page to chat.

  mm01-serve --checkpoint=runs/tiny --template=minimax-01
  mm01-serve --checkpoint=MiniMax-Text-01 --mesh=auto --context=131072 --api-key-file=keys.txt --host=0.0.0.0

It says what it loaded, what fits, and a line to try. Any client of OpenAI's API does, with
base_url=http://127.0.0.1:8000/v1. /health says 200 when it answers. Ctrl-C or SIGTERM lets open answers finish; a
second one does not. `python -m mm01_jax.inference.serve` is the same.

Exit codes: 0 done, after a signal too, 2 what was typed is wrong, 3 bad checkpoint or data, 69 another process of
the job has died or left, the one that speaks HTTP, 74 a full or broken disk, 130 interrupted, 143 terminated.
"""

import dataclasses
import errno
import importlib.util
import pathlib
import sys
import time
import types
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.config.fields import nearest_name
from mm01_jax.files import Door
from mm01_jax.flag import Command, Flag

COMMAND = Command(
    name="mm01-serve",
    doc=__doc__,
    flags=(
        *arguments.LOADING,
        Flag("name", "what clients call the model; otherwise the checkpoint's folder", example="tiny"),
        Flag("template", "how a conversation becomes text: minimax-01, minimax-m1, or a .jinja file", example="NAME"),
        Flag(
            "images",
            "a folder: clients may show its files to a model that sees, by file:// and a path",
            example="DIR",
        ),
        Flag(
            "context", "tokens of a prompt and its answer together, at most", int, default=4096, least=2, most=1 << 30
        ),
        Flag("slots", "requests that run at a time; otherwise what fits", int, example="32", least=1, most=1 << 16),
        Flag(
            "memory",
            "GiB on all devices for running requests and remembered prompts; otherwise most",
            float,
            example="64",
            least=0,
            most=1 << 20,
        ),
        Flag("queue", "answers that may wait for a slot; more get 429", int, default=256, least=0, most=1_000_000),
        Flag("steps", "tokens of an answer drawn at a time: fewer come more evenly", int, default=4, least=1, most=64),
        Flag("logprobs", "of how many likeliest tokens a client may ask", int, default=20, least=0, most=100),
        Flag("host", "the address to listen at; 0.0.0.0 is every one of this machine", default="127.0.0.1"),
        Flag("port", "the port to listen at; 0: a free one", int, default=8000, least=0, most=65535),
        Flag(
            "api_key_file",
            "a file with an API key a line, its limits behind it; others are refused",
            example="keys.txt",
            reads="a file",
        ),
        arguments.COMPILE_CACHE,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(_serve, argv, name=COMMAND.name)


def _serve(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    for library in ("starlette", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"a server needs {library.replace('_', '-')}: pip install 'mm01_jax[serve]'")
    keys = _keys(given.api_key_file)
    _check_checkpoint(given.checkpoint)
    _check_template(given.template)
    _check_images(given.images)
    with command.importing():
        if given.compile_cache:
            compile_cache.use()
        from mm01_jax import cluster
        from mm01_jax.inference.serve.engine_loop import EngineLoop
        from mm01_jax.inference.serve.front import Front

    if cluster.join():
        raise arguments.refused("mm01-serve", "several processes", "one, with all devices of its machine", None)
    listening = _listen(given)
    host, port = listening.getsockname()[:2]
    with Front(listening, keys, given.host) as front:
        engine, grammars, told = _engine(given)
        loop = EngineLoop(engine, front.channel, grammars)
        with loop.draining():  # before a client can know that it serves
            front.ready(told)
            _say_how_to_ask(given, told, host, port, bool(keys))
            loop.run()
    print("all answers are given; ended", flush=True)


def _check_checkpoint(path: str) -> None:
    """What is no folder is refused before the port is opened and anything is said."""
    place = pathlib.Path(path)
    if place.is_dir():
        return
    beside = [str(found) for found in place.parent.iterdir() if found.is_dir()] if place.parent.is_dir() else []
    allowed = "the folder of a run, a step, a conversion or PyTorch weights"
    raise arguments.refused("--checkpoint", path, allowed, nearest_name(path, beside))


def _check_template(asked: str | None) -> None:
    from mm01_jax.data import templates  # imports NumPy, which a flag that is refused need not wait for

    templates.check(asked)


def _check_images(folder: str | None) -> None:
    if folder is not None and not pathlib.Path(folder).is_dir():
        raise arguments.refused("--images", folder, "a folder", None)


def _keys(path: str | None) -> list[dict]:
    if path is None:
        return []
    from mm01_jax.inference.serve import keys

    text = Door(ValueError).text(path)
    try:
        return keys.parse(text)
    except ValueError as error:
        raise ValueError(f"--api-key-file={path}: {error}") from None


def _listen(given: types.SimpleNamespace):
    from mm01_jax.inference.serve import front

    try:
        return front.listen(given.host, given.port)
    except (OSError, UnicodeError) as error:  # a name that is no host's
        why = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        got, allowed = f"{given.host}:{given.port}", f"a free address of this machine ({why})"
        nearest = "--port=0" if getattr(error, "errno", None) == errno.EADDRINUSE else "--host=127.0.0.1"
        raise arguments.refused("--host, --port", got, allowed, nearest) from None


def _engine(given: types.SimpleNamespace):
    """(the engine, grammars of its answers, what the HTTP process has to know); says what was loaded and what fits."""
    import jax

    from mm01_jax.convert.progress import gigabytes
    from mm01_jax.inference import prompt_answers
    from mm01_jax.inference.engine import Engine
    from mm01_jax.inference.grammars import Grammars
    from mm01_jax.inference.serve.room import room_of

    loaded = _loaded(given)
    template, stop = _template(given, loaded, prompt_answers)
    leaves = jax.tree.leaves(loaded.model)
    count, nbytes = sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves)
    room = room_of(loaded.model, given.context, given.slots, given.memory)
    print(
        f"{count:,} parameters, computed in {loaded.config.compute.dtype}\n"
        f"memory: weights {gigabytes(nbytes)}, {room.slots} slots {gigabytes(room.slots * room.slot_bytes)}, "
        f"remembered prompts up to {gigabytes(room.prefix_bytes)}\n"
        f"fits: {room.slots} requests at a time of {room.context:,} tokens each, {room.slots * room.context:,} "
        f"together; {given.queue} more wait\n"
        f"conversations: {'no template; --template gives one' if template is None else template.name}\n"
        "compiling",
        flush=True,
    )
    began = time.monotonic()
    engine = Engine(
        loaded.model,
        num_slots=room.slots,
        max_length=room.context,
        tokenizer=loaded.tokenizer,
        prefix_bytes=room.prefix_bytes,
        steps=given.steps,
        logprobs=min(given.logprobs, loaded.tokenizer.vocab_size),
        **room.cuts,
    )
    print(f"compiled in {time.monotonic() - began:.1f} s", flush=True)
    grammars = Grammars(loaded.tokenizer, engine.limits.vocab_size, {loaded.tokenizer.end_of_document, stop} - {None})
    return engine, grammars, _told(given, engine, room, template, stop, loaded)


def _loaded(given: types.SimpleNamespace):
    """The checkpoint; ValueError where its sight, or that there is none, does not fit what was typed."""
    from mm01_jax import loading

    print(f"loading {given.checkpoint}", flush=True)
    loaded = loading.load_as_asked(given)
    if given.images is not None and loaded.config.vision is None:
        raise arguments.refused("--images", given.images, "a checkpoint with vision", "--checkpoint=runs/vl/stage2")
    if loaded.config.vision is not None and importlib.util.find_spec("PIL") is None:
        raise ValueError("a model that sees needs pillow: pip install 'mm01_jax[vision]'")
    return loaded


def _template(given: types.SimpleNamespace, loaded, prompt_answers):
    """(the template, the id that ends an answer); None of a model that has none."""
    try:
        template = prompt_answers.template(given, loaded)
    except ValueError:
        if given.template is not None:
            raise
        return None, None
    return template, template.stop(loaded.tokenizer)


def _told(given: types.SimpleNamespace, engine, room, template, stop: int | None, loaded) -> dict:
    import jax

    devices = jax.devices()
    folder = pathlib.Path(given.checkpoint).absolute()
    words = loaded.tokenizer.name
    return {
        "name": given.name or folder.name,
        "created": int(time.time()),
        "context": room.context,
        "vocab_size": engine.limits.vocab_size,
        "most": room.slots + given.queue,
        "slots": room.slots,
        "device": (f"{len(devices)} x " if len(devices) > 1 else "") + devices[0].device_kind,
        "prefix_bytes": room.prefix_bytes,
        "logprobs": engine.limits.logprobs,
        "stop_id": stop,
        "tokenizer": words,
        "has_template": template is not None,
        "template": given.template,
        "vision": None if loaded.config.vision is None else dataclasses.asdict(loaded.config.vision),
        "images": None if given.images is None else str(pathlib.Path(given.images).resolve()),
        "folders": [str(folder)] if words == "bytes" else [str(folder), str(pathlib.Path(words).parent)],
    }


def _say_how_to_ask(given: types.SimpleNamespace, told: dict, host: str, port: int, has_keys: bool) -> None:
    import json

    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if told["has_template"]:
        path, asked = "chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}
    else:
        path, asked = "completions", {"prompt": "def "}
    key = " -H 'authorization: Bearer KEY'" if has_keys else ""
    body = json.dumps({"model": told["name"]} | asked)
    print(f"{url}/v1 serves {told['name']!r}, and {url} is a page to chat. Try", flush=True)
    print(f"  curl {url}/v1/{path} -H 'content-type: application/json'{key} -d '{body}'", flush=True)
    if not has_keys and host not in ("127.0.0.1", "::1"):
        print(f"anybody who reaches {host} may ask; --api-key-file=FILE lets in who knows a key", flush=True)


if __name__ == "__main__":
    sys.exit(main())
