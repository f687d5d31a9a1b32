"""Chat templates that come with a checkpoint: where they lie, and what they make of a conversation.

A template is a stranger's program. It runs in jinja2's sandbox, in a process of its own (`renderings.py`) that can open
no file and has bounded time, memory and output. The name of a special token in what a person wrote stays text.
"""

import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mm01_jax.config.fields import nearest_name
from mm01_jax.data import conversations, marked_text
from mm01_jax.data.conversations import Rendered, text_of
from mm01_jax.data.m1_template import DOCUMENT, M1
from mm01_jax.data.renderings import Refused, Renderings
from mm01_jax.data.text import DataError
from mm01_jax.data.tokenizer import Tokenizer, check_utf8
from mm01_jax.files import Door, quoted, shown

Message = dict[str, Any]
FILES = Door(ValueError)
# What a template may make: so many times the conversation's characters, and so many more; published ones add 8,000.
_TIMES, _MORE = 4, 1 << 14
# Tokens: each character may be said four times, of four bytes; 4,096 more are taken in on one core within seconds.
_TOKENS_TIMES, _MORE_TOKENS = 16, 1 << 12
_MOST_SOURCE = 1 << 18  # characters of a template
_MOST_TOKENS = 10_000  # characters of the special tokens and their names together
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))  # transformers' own
_JINJA, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_PROBE = "what a probe\nsays"  # in two lines: a template that prints a list of parts as Python does shows no newline


@dataclasses.dataclass(frozen=True)
class Template:
    """source: jinja. name: of its file. tokens: what tokenizer_config.json calls bos_token, eos_token, ...

    damaged: what is raised where it cannot even say a word: DataError of one that lies in a checkpoint.
    """

    source: str
    name: str
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    damaged: type[Exception] = ValueError
    _renderings: Renderings = dataclasses.field(default_factory=Renderings, compare=False, repr=False)

    @property
    def thinks(self) -> bool:
        """Whether the model says what it thinks before it answers."""
        return "</think>" in self.source

    def ids(self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> np.ndarray:
        """int32 ids of a conversation and the header of the answer that is to come; errors as of `render`."""
        (text,), mark = self._texts([(messages, True)], tokenizer, tools)
        return self._few(marked_text.encode(text, [], tokenizer, mark), messages, tools).ids

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> Rendered:
        """A conversation's tokens, those that the assistant said marked: from its header to its end token.

        Raises:
          ValueError: the template is wrong, refuses the conversation or runs too long; it changes an answer once it is
            past, so that nobody can say which tokens the answer is.
        """
        said = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        calls = [(messages[: number + more], not more) for number in said for more in (0, 1)]
        (whole, *parts), mark = self._texts([(messages, False), *calls], tokenizer, tools)
        bounds = []
        for before, after in zip(parts[::2], parts[1::2], strict=True):
            if not (whole.startswith(after) and after.startswith(before)):
                raise ValueError(f"{self.name}: the template changes an answer once it is past; its tokens are unknown")
            ends = [match.end() for match in marked_text.specials(tokenizer).finditer(after, len(before))]
            bounds.append((len(before), max(ends, default=len(after))))
        return self._few(marked_text.encode(whole, bounds, tokenizer, mark), messages, tools)

    def _few(self, found: Rendered, messages: Sequence[Message], tools: Sequence[Any] | None) -> Rendered:
        """What it is given; ValueError where that is many more tokens than the conversation: a model takes them all."""
        said = len(json.dumps([messages, tools], ensure_ascii=False))
        if len(found.ids) > (most := _MORE_TOKENS + _TOKENS_TIMES * said):
            what = f"makes {len(found.ids):,} tokens of a conversation of {said:,} characters"
            raise self._refused(f"{what}; allowed: at most {most:,}")
        return found

    def stop(self, tokenizer: Tokenizer) -> int | None:
        """The special token that ends an answer; None where the template has none."""
        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}
        try:
            (text,), _ = self._texts([([user, answer], False)], tokenizer, None)
        except ValueError as error:
            raise self.damaged(str(error)) from None
        found = marked_text.specials(tokenizer).search(text, text.rfind(_PROBE))
        return tokenizer.special(found[0]) if found else None

    def _texts(self, calls: Sequence[tuple[Sequence[Message], bool]], tokenizer: Tokenizer, tools):
        """(the text of each (messages, whether an answer is to come), the mark inside persons' special tokens)."""
        has_parts = any(isinstance(message.get("content"), list) for messages, _ in calls for message in messages)
        forms = (_parts, _text) if has_parts else (_text, _parts)  # some templates know text alone, some parts alone
        calls = [([{"role": "user", "content": _PROBE}], False), *calls]
        given = json.dumps([[messages for messages, _ in calls], tools], ensure_ascii=False)
        check_utf8("a conversation", given)
        mark = marked_text.unused(given)
        tools = marked_text.marked(tools, tokenizer, mark)
        inputs = [
            {
                "messages": marked_text.marked(form(messages), tokenizer, mark),
                "tools": tools,
                "add_generation_prompt": generate,
            }
            for form in forms
            for messages, generate in calls
        ]
        results = self._run(inputs)
        for found in (results[: len(calls)], results[len(calls) :]):
            if _PROBE in found[0].get("text", ""):
                wrong = next((one["error"] for one in found if "error" in one), None)
                if wrong is not None:
                    raise self._refused(wrong)
                texts = [one["text"] for one in found[1:]]
                check_utf8(f"{self.name}: chat template: what it says", "".join(texts))
                return texts, mark
        raise self._refused(results[0].get("error", "it leaves out what a message says"))

    def _run(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """{"text": ...} or {"error": ...} of each rendering."""
        if importlib.util.find_spec("jinja2") is None:
            raise ValueError(f"{self.name}: a chat template needs jinja2: pip install 'mm01_jax[chat]'")
        asked = {"template": self.source, "variables": dict(self.tokens), "calls": inputs}
        try:
            return self._renderings.run(asked | {"added": _MORE, "times": _TIMES})
        except Refused as error:
            raise self._refused(str(error)) from None

    def _refused(self, why: str) -> ValueError:
        why = " ".join(why.split())
        return ValueError(f"{self.name}: chat template: {why if len(why) <= 200 else why[:197] + '...'}")


class Released:
    """The template of MiniMax-01 (docs/model.md B.5), with the methods of `Template`; `<image>` is text."""

    name = "minimax-01"
    thinks = False

    def ids(self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> np.ndarray:
        conversations.check_messages(list(messages))
        return conversations.render(messages, tokenizer, None, tools=tools or (), generate=True).ids

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Any] | None = None) -> Rendered:
        conversations.check_messages(list(messages))
        return conversations.render(messages, tokenizer, None, tools=tools or ())

    def stop(self, tokenizer: Tokenizer) -> int:
        """Of a tokenizer that has all that the template needs; ValueError names what it has not."""
        tokenizer.special(conversations.BEGIN)
        return tokenizer.special(conversations.END)


OURS = {template.name: template for template in (Released, M1)}


def check(asked: str | None) -> None:
    """ValueError where what is asked for is no template: said before weights are read."""
    if asked is not None and asked not in OURS:
        from_file(asked)


def choose(asked: str | None, folders: Sequence[pathlib.Path], tokenizer: Tokenizer) -> Template | Released | M1:
    """The template to use: what is asked for, else the first folder's, else the one that the tokenizer is made for.

    Args:
      asked: a name of OURS or a .jinja file.

    Raises:
      ValueError: there is none, or none in the file. DataError: that of a folder is damaged.
    """
    if asked is not None:
        return OURS[asked]() if asked in OURS else from_file(asked)
    try:
        if found := find(*folders):
            return dataclasses.replace(found, damaged=DataError)
    except ValueError as error:
        raise DataError(str(error)) from None
    if tokenizer.name != "bytes" and {conversations.BEGIN, conversations.END} <= set(tokenizer.specials):
        return M1() if DOCUMENT in tokenizer.specials else Released()
    places = " or ".join(f"{folder / _JINJA}" for folder in folders)
    raise ValueError(f"no chat template: no {places}; --template={Released.name} or --template=FILE.jinja gives one")


def find(*folders: pathlib.Path) -> Template | None:
    """The template of the first folder that has one, as the hub lays it out; None where none has.

    Raises:
      ValueError: a file that is no text or no JSON, or has a template that is no text.
    """
    for folder in folders:
        config = _config(folder / _CONFIG)
        if os.path.lexists(folder / _JINJA):  # a link that leads nowhere is a template that is lost, not none
            source = _short(FILES.text(folder / _JINJA, root=folder), folder / _JINJA)
            return Template(source, str(folder / _JINJA), _tokens(config, folder / _CONFIG))
        if (said := config.get("chat_template")) is not None:
            source = _short(_source(said, folder / _CONFIG), folder / _CONFIG)
            return Template(source, str(folder / _CONFIG), _tokens(config, folder / _CONFIG))
    return None


def _source(said: Any, path: pathlib.Path) -> str:
    """The template that tokenizer_config.json has: a text, or the default of several by name, otherwise the first."""
    if isinstance(said, list) and all(isinstance(one, dict) for one in said):
        named = {str(one.get("name")): one.get("template") for one in said}
        if len(named) < len(said):
            twice = collections.Counter(str(one.get("name")) for one in said).most_common(1)[0][0]
            raise ValueError(f"{shown(path)}: chat_template: got two templates named {quoted(twice)}; allowed: one")
        said = named.get("default", next(iter(named.values()), said))
    if not isinstance(said, str):
        allowed = "a text, or a list of objects with a name and a template, a text"
        raise ValueError(f"{shown(path)}: chat_template: got {quoted(said)}; allowed: {allowed}")
    return said


def from_file(path: str) -> Template:
    """The template of a .jinja file; ValueError where there is none."""
    if not os.path.isfile(path):
        near = f"; nearest: {name}" if (name := nearest_name(path, OURS)) else ""
        raise ValueError(f"--template={path}: no such file; allowed: {', '.join(OURS)}, or a .jinja file" + near)
    return Template(_short(FILES.text(path), path), path)


def _short(source: str, path: pathlib.Path | str) -> str:
    if len(source) > _MOST_SOURCE:
        what = f"a chat template of {len(source):,} characters; allowed: at most {_MOST_SOURCE:,}"
        raise ValueError(f"{shown(path)}: {what}")
    return source


def _config(path: pathlib.Path) -> dict[str, Any]:
    return FILES.json(path, root=path.parent) if os.path.lexists(path) else {}


def _tokens(config: dict[str, Any], path: pathlib.Path) -> dict[str, str]:
    """Special tokens by their names; ValueError where they are long (a template may say each many times) or no text."""
    for key in _SPECIAL:
        if config.get(key) is not None and _token((key, config[key]))[1] is None:
            allowed = "a text, an object with a text in content, or null"
            raise ValueError(f"{shown(path)}: {key}: got {quoted(config[key])}; allowed: {allowed}")
    found = {key: value for key, value in map(_token, config.items()) if value}
    if (size := sum(len(key) + len(value) for key, value in found.items())) > _MOST_TOKENS:
        longest = shown(max(found, key=lambda key: len(key) + len(found[key])))
        what = f"special tokens of {size:,} characters, the longest {longest}; allowed: at most {_MOST_TOKENS:,}"
        raise ValueError(f"{shown(path)}: {what}")
    for key, token in found.items():
        check_utf8(f"{shown(path)}: {shown(key)}", token)
    return found


def _token(entry: tuple[str, Any]) -> tuple[str, str | None]:
    """A special token of tokenizer_config.json: text, or an object with its text in `content`."""
    key, value = entry
    value = value.get("content") if isinstance(value, dict) else value
    return key, value if key.endswith("_token") and isinstance(value, str) else None


def _text(messages: Sequence[Message]) -> list[Message]:
    """Every content as text, as most templates want it."""
    return [m | {"content": text_of(m)} if isinstance(m.get("content"), list) else m for m in messages]


def _parts(messages: Sequence[Message]) -> list[Message]:
    """Every content as a list of parts, as those of models with images want it."""
    in_parts = ({"type": "text", "text": m["content"]} if isinstance(m.get("content"), str) else None for m in messages)
    return [m | {"content": [part]} if part else m for m, part in zip(messages, in_parts, strict=True)]
