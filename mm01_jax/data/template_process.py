"""Renders a chat template: a program of its own, given a stranger's code (`data/templates.py` starts it).

stdin has a JSON object: `template`; `variables`, of every rendering; `calls`, the variables of each; `added`, the
characters that any rendering may have beside `times` those of its call; `seconds` of the processor and `bytes` of
memory that all may take; SIGPROF ends what takes longer. stdout gets
{"calls": [{"text": ...} or {"error": ...}, ...], "seconds": of the processor that they took}. Nothing of ours is
imported here.

The template sees what it would in transformers: `messages`, `tools`, `add_generation_prompt`, `raise_exception`,
`strftime_now`, `tojson`, `break` and `continue`, `generation` blocks. It can open no file and start no process.
"""

import datetime
import encodings.idna  # noqa: F401 - these five are imported where they are used, when no file can be opened
import html  # noqa: F401
import json
import pprint  # noqa: F401
import signal
import sys
import textwrap  # noqa: F401
import time
import unicodedata  # noqa: F401

import jinja2
import jinja2.constants
from jinja2 import nodes, sandbox
from jinja2.ext import Extension

_SAID = 400  # characters of an error, which may be of any length


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, which say where an answer stands: what is between them."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True)).set_lineno(line)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """transformers' `tojson`: text as it stands, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message) -> None:
    raise jinja2.TemplateError(str(message))


def environment() -> sandbox.ImmutableSandboxedEnvironment:
    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    return made


def render(template: jinja2.Template, variables: dict, limit: int) -> str:
    pieces, size = [], 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise OverflowError(f"more than {limit:,} characters of text")
    return "".join(pieces)


def confine(seconds: float, memory: int) -> None:
    """Bounds what this process may take; where the system knows no limits, who started it bounds its time."""
    try:
        import resource
    except ImportError:
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)  # from here on; RLIMIT_CPU knows whole seconds alone
    limits = {"RLIMIT_AS": memory, "RLIMIT_FSIZE": memory, "RLIMIT_NOFILE": 3, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        if hasattr(resource, name):
            try:
                resource.setrlimit(getattr(resource, name), (value, value))
            except (OSError, ValueError):  # a system that does not let this one be set
                continue


def answer(request: dict) -> dict:
    made = environment()
    try:  # what explains an error is imported by the first one, and later no file can be opened
        made.from_string("{{ 0 | tojson }}{{ strftime_now('%Y') }}{{ x.y }}").render()
    except jinja2.TemplateError:
        confine(request["seconds"], request["bytes"])
    began = time.process_time()
    try:
        template = made.from_string(request["template"])
        found = [one(template, call, request) for call in request["calls"]]
    except jinja2.TemplateSyntaxError as error:
        found = [{"error": f"line {error.lineno}: {error.message}"[:_SAID]}] * len(request["calls"])
    except Exception as error:
        found = [{"error": why(error, request)}] * len(request["calls"])
    return {"calls": found, "seconds": time.process_time() - began}


def one(template: jinja2.Template, call: dict, request: dict) -> dict[str, str]:
    limit = request["added"] + request["times"] * len(json.dumps(call, ensure_ascii=False))
    try:
        return {"text": render(template, request["variables"] | call, limit)}
    except Exception as error:  # whatever a stranger's code can raise is its answer
        return {"error": why(error, request)}


def why(error: Exception, request: dict) -> str:
    if isinstance(error, MemoryError):
        return f"more than {request['bytes']:,} bytes of memory"
    if isinstance(error, RecursionError):
        return f"it is nested too deep, or calls itself: {error}"[:_SAID]
    return str(error)[:_SAID] or type(error).__name__


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
