"""Forms that an answer has to have, and calls that it has to make, as grammars (`inference/grammars.py`)."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mm01_jax.data.tool_calls import Form
from mm01_jax.inference.serve import fields
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.thoughts import CLOSE, OPEN

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# As models write JSON, and no blanks without end.
_BLANKS = {"x-guidance": {"whitespace_pattern": "[ \\n\\t]{0,40}"}}
OBJECT = {"type": "object"}


def response_format(name: str, value: Any, is_flat: bool = False) -> dict[str, str] | None:
    """The rules of a grammar by name, `answer` what the whole has to be; None: text. is_flat: as /v1/responses has it,
    what belongs to a schema beside its type.

    Its types are OpenAI's text, json_object and json_schema; beside, {"type": "regex", "regex": R} and {"type":
    "grammar", "grammar": LARK}.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    own = {
        "text": {},
        "json_object": {},
        "json_schema": _NAMED if is_flat else {"json_schema": Field(_named_schema, required=True)},
        "regex": {"regex": Field(fields.text, required=True)},
        "grammar": {"grammar": Field(fields.text, required=True)},
    }
    known = {"type": Field(fields.one_of(*own), required=True)} | own.get(kind if isinstance(kind, str) else "", {})
    found = fields.read(value, known, name)
    if is_flat and kind == "json_schema":
        found["json_schema"] = found["schema"]
    return form(found)


def form(found: Mapping[str, Any]) -> dict[str, str] | None:
    """`response_format` of checked values."""
    match found["type"]:
        case "json_object":
            return {"answer": _json(OBJECT)}
        case "json_schema":
            return {"answer": _json(found["json_schema"])}
        case "regex":
            return {"answer": _regex(found["regex"])}
        case "grammar":
            return {"answer": "@stranger", "stranger": found["grammar"]}
    return None


def _named_schema(name: str, value: Any) -> dict[str, Any]:
    return fields.read(value, _NAMED, name)["schema"]


def schema_name(name: str, value: Any) -> str:
    if not _NAME.fullmatch(fields.text(name, value)):
        raise Refused(f"{name}: allowed are 1 to 64 letters, digits, _ and -", name)
    return value


def schema(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{name}: allowed is a JSON schema, an object", name)
    return value


_NAMED = {
    "name": Field(schema_name, required=True),
    "schema": Field(schema, required=True),
    "description": Field(fields.text),
    "strict": Field(fields.switch),
}


def parameters(name: str, value: Any) -> dict[str, Any]:
    """A schema of arguments, which are an object."""
    kind = schema(name, value).get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise Refused(f"{name}: allowed is a schema of an object, as arguments are one", name)
    return value


def arguments(tool: Mapping[str, Any]) -> str:
    """The rule of a tool's arguments."""
    return _json({**(tool.get("parameters") or {}), **OBJECT})


def calls_of(tools: Sequence[Mapping[str, Any]], form: Form, is_parallel: bool, specials: Mapping[str, int]) -> dict:
    """The rules of an answer that calls tools, as `form` writes them: one, or one and more of them."""
    names = [f"call_{place}" for place in range(len(tools))]
    rules = {"call": " | ".join(names)}
    for name, tool in zip(names, tools, strict=True):
        quoted = json.dumps(tool["name"]) if form.is_json else tool["name"]
        before, after = form.before.replace("NAME", quoted), form.after
        rules[name] = f"{_text(before)} {arguments(tool)} {_text(after)}"
    block = "call" if form.holds == 1 or not is_parallel else r'call ("\n" call)*'
    rules["block"] = f"{_mark(form.open, specials)} {_text(form.lead + chr(10))} {block} {_text(chr(10) + form.close)}"
    return rules | {"calls": r'block ("\n" block)*' if form.holds == 1 and is_parallel else "block"}


def text_and_calls_of(
    tools: Sequence[Mapping[str, Any]], form: Form, is_parallel: bool, specials: Mapping[str, int]
) -> dict[str, str]:
    """The rules of an answer that may say something, SAID, and then calls tools or does not."""
    rules = calls_of(tools, form, is_parallel, specials)
    more = rules["calls"].removeprefix("block")  # blocks behind the first one
    if form.open in specials:  # which no text has
        return rules | {"text_and_calls": f"SAID? block{more}", "SAID": "/(.|\n)*/"}
    mark = _text(form.open)
    open_pattern = re.escape(form.open).replace("/", r"\/")
    return rules | {
        "text_and_calls": f"before {rules['block'].removeprefix(mark)}{more}",
        f"before[suffix={mark}]": "/(.|\n)*/",
        "SAID": f"/(.|\n)*/ & ~/(.|\n)*{open_pattern}(.|\n)*/",
    }


def thoughts_of(begun: bool, specials: Mapping[str, int]) -> dict[str, str]:
    """The rules of what is thought before: from its mark on, or from where the prompt has begun it."""
    inner = f"/(.|\\n)*/ {CLOSE}" if CLOSE in specials else "thought"
    thought = {} if CLOSE in specials else {f'thought[suffix="{CLOSE}"]': "/(.|\\n)*/"}
    return {"thoughts": inner if begun else f"{_mark(OPEN, specials)} {inner}"} | thought


def grammar(answer: str, rules: Mapping[str, str], thoughts: Mapping[str, str], begun: bool) -> str:
    """A whole grammar: thoughts where there may be some, which must end where the prompt has begun them; the answer."""
    first = f"thoughts{'' if begun else '?'} BREAKS " if thoughts else ""
    lines = [f"{name}: {rule}" for name, rule in {**thoughts, **rules}.items() if name != "stranger"]
    lark = "\n".join([f"start: {first}({answer})", *lines, *(["BREAKS: /\\n{0,2}/"] if thoughts else [])])
    if "stranger" not in rules:
        return lark
    parts = [{"name": "whole", "lark_grammar": lark}, {"name": "stranger", "lark_grammar": rules["stranger"]}]
    return json.dumps({"grammars": parts})


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, **_BLANKS})


def _regex(pattern: str) -> str:
    """A regular expression between slashes, on one line."""
    written = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}
    inside = re.sub(r"\\.|/|\n", lambda found: written.get(found[0], found[0]), pattern, flags=re.DOTALL)
    return f"/{inside}/"


def _mark(mark: str, specials: Mapping[str, int]) -> str:
    """A mark that is a token of its own, by its name, or a text."""
    return mark if mark in specials else _text(mark)


def _text(text: str) -> str:
    return json.dumps(text)
