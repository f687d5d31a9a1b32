"""What RULER's families say: in our words, or a user's own copy of the published strings.

A copy is `constants.py` of RULER's generators with `niah.py` beside it, of which nothing is run, or one JSON file:

    {"niah": {"template": ..., "answer_prefix": ..., "needle": ..., "noise": ...}, "variable_tracking": {...}, ...}

where `template` has `{context}` once. Beside either may lie `english_words.json`, the list that long word lists are
drawn from.
"""

import ast
import contextlib
import pathlib
import string
from collections.abc import Mapping
from typing import Any, NamedTuple

from mm01_jax.config.fields import nearest_name
from mm01_jax.data.text import BadFile
from mm01_jax.files import POINTER, Door, quoted, shown

FILES = Door(BadFile)
FIELDS = {
    "niah": ("type_needle_v", "context", "query"),
    "variable_tracking": ("context", "query"),
    "common_words_extraction": ("context",),
    "freq_words_extraction": ("context",),
    "qa": ("context", "query"),
}
NEEDLE_FIELDS = ("type_needle_v", "key", "value")
PUBLISHED = tuple(FIELDS)[:4]  # families whose samples need no download
_WORDS_FILE, _MOST_WORDS = "english_words.json", 64 * 2**20
_MOST_STRING = 10_000  # characters; samples are sized by repeating one, the published noise of 94
_MOST_PYTHON = 2**20  # bytes of a module: its tree takes a hundred times as many


class Said(NamedTuple):
    """A family's strings. template: has {context} once; prefix: how the answer begins, given to the model."""

    template: str
    prefix: str

    @property
    def singular(self) -> "Said":
        """The same of one thing: published strings are made so by replacing words."""
        return Said(*map(_singular, self))

    @property
    def before(self) -> str:
        return self.template.partition("{context}")[0]

    @property
    def after(self) -> str:
        return self.template.partition("{context}")[2]


class Strings(NamedTuple):
    """families: by RULER's names. needle, noise: of haystacks. more_words: for lists longer than the first has words.
    published: somebody's copy, whose samples are to be the suite's own."""

    families: Mapping[str, Said]
    needle: str
    noise: str
    more_words: tuple[str, ...] = ()
    published: bool = False


def _singular(text: str) -> str:
    for many, one in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
        text = text.replace(many, one)
    return text


OWN = Strings(
    families={
        "niah": Said(
            "Some secret {type_needle_v} are somewhere in this text, and its end asks for what is secret.\n"
            "{context}\nWhich are all the secret {type_needle_v} of {query} in this text?",
            " In this text the secret {type_needle_v} of {query} are",
        ),
        "variable_tracking": Said(
            "Variables get their values in lines between others, from a number or from one another.\n\n{context}\n"
            "Question: which variables have, directly or through others, the value {query}?",
            " Answer: these {num_v} variables have the value {query}: ",
        ),
        "common_words_extraction": Said(
            "This is a list of words with numbers. Some of its words come again and again.\n{context}\n"
            "Question: which 10 words of the list come most often?",
            " Answer: the 10 words that come most often:",
        ),
        "freq_words_extraction": Said(
            "This text is in a code. Count how often its words come. {context}\n"
            "Question: dots are no words. Which three words of the code come most often? Name them, no more.",
            " Answer: the three words that come most often:",
        ),
        "qa": Said(
            "Answer a question by what these documents say, in as few words as it takes.\n\n{context}\n\n"
            "Question, to be answered in as few words as it takes: {query}",
            " Answer:",
        ),
    },
    needle="One of the secret {type_needle_v} of {key} is: {value}.",
    noise="Rain fell on the roof. The kettle sang. Nobody came by. The clock went on. Then it was evening.",
)


def read(path: str) -> Strings:
    """Somebody's own copy.

    Raises:
      BadFile: in one line: no such file, no such form, a string that is missing or lacks a field.
    """
    place = pathlib.Path(path)
    found = _of_python(place) if place.suffix == ".py" else FILES.json(place)
    if unknown := found.keys() - FIELDS.keys():
        name = min(unknown)
        near = nearest_name(name, FIELDS)
        raise _refused(path, name, f"families {', '.join(FIELDS)}{f'; nearest: {near}' if near else ''}")
    if missing := [name for name in PUBLISHED if name not in found]:
        raise _refused(path, "nothing", f"an entry {missing[0]!r} with template and answer_prefix")
    families = {name: _said(path, name, found[name]) for name in found}
    needle, noise = (_string(path, "niah", found["niah"], name) for name in ("needle", "noise"))
    _check(path, "niah.needle", needle, NEEDLE_FIELDS, NEEDLE_FIELDS)
    words = place.with_name(_WORDS_FILE)
    beside = place.parent / "json" / _WORDS_FILE
    words = words if words.is_file() else beside
    more = _words(words) if words.is_file() and not _is_pointer(words) else ()
    return Strings({**OWN.families, **families}, needle, noise, more, published=True)


def _words(path: pathlib.Path) -> tuple[str, ...]:
    words = tuple(FILES.json(path, most=_MOST_WORDS).values())
    if wrong := [word for word in words if not isinstance(word, str)]:
        raise BadFile(f"{shown(path)}: got {quoted(wrong[0])}; allowed: words, each under a key of its own")
    return words


def _is_pointer(path: pathlib.Path) -> bool:
    """Whether a clone without git-lfs has put its pointer here."""
    with FILES.open(path) as file:
        return file.read(len(POINTER)) == POINTER


def _said(path: str, name: str, entry: Any) -> Said:
    if not isinstance(entry, dict):
        raise _refused(path, f"{name}={entry!r}", "an object of strings")
    template, prefix = (_string(path, name, entry, key) for key in ("template", "answer_prefix"))
    known = (*FIELDS[name], "num_cw")
    _check(path, f"{name}.template", template, FIELDS[name], known)
    _check(path, f"{name}.answer_prefix", prefix, (), (*known, "num_v"))
    if template.count("{context}") != 1:
        raise _refused(path, f"{name}.template with {{context}} twice", "one {context}")
    return Said(template, prefix)


def _string(path: str, family: str, entry: Mapping[str, Any], key: str) -> str:
    if not isinstance(entry.get(key), str) or (key != "answer_prefix" and not entry[key].strip()):
        raise _refused(path, f"{family}.{key}={entry.get(key)!r}", f"a text {family}.{key}")
    if len(entry[key]) > _MOST_STRING:
        raise _refused(path, f"{family}.{key} of {len(entry[key]):,} characters", f"at most {_MOST_STRING:,}")
    return entry[key]


def _check(path: str, name: str, text: str, needed: tuple[str, ...], known: tuple[str, ...]) -> None:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise _refused(path, f"{name}, in which there is {error}", "each brace closed") from None
    if missing := [field for field in needed if field not in fields]:
        raise _refused(path, f"{name} without {{{missing[0]}}}", f"a text with {{{missing[0]}}}")
    if other := [field for field in fields if field not in known]:
        raise _refused(path, f"{name} with {{{other[0]}}}", f"{', '.join(known)} in braces")


def _of_python(place: pathlib.Path) -> dict[str, Any]:
    """TASKS of constants.py, and the needle and the noise that niah.py beside it has."""
    found = _assigned(place, "TASKS")
    if not found:
        raise _refused(str(place), "no TASKS = {...}", "constants.py of RULER's generators, or a .json")
    niah = place.with_name("niah.py")
    if not isinstance(found[0], dict) or not all(isinstance(entry, dict) for entry in found[0].values()):
        raise _refused(str(place), "TASKS of another form", "a family's strings under each name")
    families = {str(name): dict(entry) for name, entry in found[0].items()}
    for name, variable in (("needle", "needle"), ("noise", "haystack")):
        families.setdefault("niah", {})[name] = next(iter(_assigned(niah, variable)), None)
    return families


def _assigned(place: pathlib.Path, name: str) -> list[Any]:
    """What a module gives that name, as far as it is written out."""
    text = FILES.text(place, most=_MOST_PYTHON)
    try:
        tree = ast.parse(text)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:  # too deep for its parser
        line = getattr(error, "lineno", None)
        raise BadFile(f"{shown(place)}: {f'line {line}: ' if line else ''}no Python") from None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]:
            with contextlib.suppress(ValueError, TypeError, RecursionError, MemoryError):  # is not written out
                found.append(ast.literal_eval(node.value))
    return found


def _refused(path: str, got: str, allowed: str) -> BadFile:
    return BadFile(f"--templates={shown(path)}: got {shown(got)}; allowed: {allowed}")
