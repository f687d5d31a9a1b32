"""The tasks of long context as they are typed: what is refused before anything is loaded, what samples they make."""

import dataclasses
import itertools
import re
import types
from collections.abc import Callable, Iterator, Sequence

from mm01_jax.arguments import refused
from mm01_jax.config.fields import nearest_name
from mm01_jax.data.conversations import BEGIN, END
from mm01_jax.data.tokenizer import Tokenizer
from mm01_jax.evals import copies, needle, rounds
from mm01_jax.evals.group import Grid, Group, depths_of
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.ruler import families, strings
from mm01_jax.evals.ruler.names import FAMILIES
from mm01_jax.files import shown

_UNITS = {"": 1, "k": 2**10, "m": 2**20}
_PROBES = ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "a-b 0a-f. x: 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One evaluation. make: prompts -> groups of samples. whole: a prompt is tokenised as one text."""

    task: str
    given: types.SimpleNamespace
    make: Callable[[Prompts], Iterator[Group]]
    whole: bool = False

    def prompts(self, tokenizer: Tokenizer) -> Prompts:
        """How samples are said with a tokenizer.

        Raises:
          ValueError: it lacks a token of the template, or cannot say what needles are made of.
        """
        check_tokenizer(tokenizer)
        names = [] if self.given.bos is None else [self.given.bos]
        for name in names + ([BEGIN, END] if self.given.template == "chat" else []):
            tokenizer.special(name)
        return Prompts(Pieces(tokenizer, whole=self.whole), self.given.template, self.given.bos)


def read(task: str, given: types.SimpleNamespace) -> Asked:
    """What was typed, checked as far as that needs no tokenizer.

    Raises:
      ConfigError: a value that may not be. ValueError: a file that is not as it should be.
    """
    if given.bos is not None and given.template == "chat":
        raise refused("--bos", given.bos, "with --template=base alone: a conversation has its own beginnings", None)
    if task == "rounds" and given.data is not None:
        rounds.check_data(given.data)
        return Asked(task=task, given=given, make=lambda prompts: iter(rounds.published(given.data, prompts)))
    lengths = lengths_of(given.lengths)
    if task == "ruler":
        return _ruler(given, lengths)
    depths = depths_of(given.depths) if task != "rounds" else ()
    grid = Grid(lengths, depths, given.samples, given.seed)
    make = {"needle": needle.one, "needles": needle.many, "copy": copies.groups, "rounds": rounds.groups}[task]
    return Asked(task=task, given=given, make=lambda prompts: make(grid, prompts))


def _ruler(given: types.SimpleNamespace, lengths: Sequence[int]) -> Asked:
    said = strings.OWN if given.templates is None else strings.read(given.templates)
    asked = families_of(given.families)
    if said.published and not all(family in ("vt", "fwe") or family.startswith("qa") for family in asked):
        families.published_words(said.more_words)  # refuses where they are not installed

    def make(prompts: Prompts) -> Iterator[Group]:
        options = {"strings": said, "seed": given.seed, "reserved": prompts.reserved}
        for task, length in itertools.product(asked, lengths):
            samples = families.samples(task, length, given.samples, prompts.pieces, **options)
            yield Group(None, samples, given.samples, length * given.samples, length)

    return Asked(task="ruler", given=given, make=make, whole=said.published)


def lengths_of(text: str) -> list[int]:
    """[1024, 1048576] of "1k,1m", ascending.

    Raises:
      ConfigError: a length that is none, twice, or longer than any context.
    """
    from mm01_jax.inference.batch import MOST_TOKENS  # imports jax, which a line that is refused need not wait for

    found = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d{1,9})([km]?)", word.strip().lower())
        length = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 1 <= length <= MOST_TOKENS or length in found:
            allowed = f"lengths from 1 to {MOST_TOKENS:,} tokens, each once, parted by commas"
            raise refused("--lengths", shown(word), allowed, "--lengths=1k,64k")
        found.append(length)
    return sorted(found)


def families_of(text: str) -> list[str]:
    """The families that are named; ConfigError for a name that is none."""
    if text == "all":
        return list(FAMILIES)
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FAMILIES:
            allowed = f"all, or of {', '.join(FAMILIES)}"
            raise refused("--families", shown(name), allowed, nearest_name(name, FAMILIES))
    return names


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """ValueError where a tokenizer cannot say what needles, names and values are made of."""
    for probe in _PROBES:
        said = tokenizer.decode(tokenizer.encode(probe)).strip()
        if said != probe:
            lost = next((letter for letter in probe if letter not in said), probe)
            raise ValueError(
                f"tokenizer {shown(tokenizer.name)}: cannot say {lost!r}: of {probe!r} it makes {shown(said)!r}; "
                "allowed: one that keeps digits, letters, '-', '.', ':' and blanks as they are"
            )
