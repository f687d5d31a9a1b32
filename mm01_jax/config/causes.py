"""One cause is one problem: what one change of one value mends together is told once, at that value.

A mesh axis of 3 leaves every dim that it cuts without a whole number of shards. Each dim is a problem of its own rule;
all of them are gone when the axis is 2, so the axis is what is wrong. What is left is judged as if that were mended.
"""

import dataclasses
import itertools
import os.path
from collections.abc import Callable, Iterable, Iterator

from mm01_jax.config import Change, Config, Problem, fields

Judge = Callable[[Config], Iterable[Problem]]
_MOST_ITEMS = 1000  # of all lists: more are judged once, not for each of thousands of changes
_FARTHEST = 256  # how far from a number with several problems one without any is looked for


def named_once(config: Config, judge: Judge) -> list[Problem]:
    """What `judge` has against a config, each cause once: first those of several problems, then the other problems."""
    named, broken = [], list(judge(config))
    if _items(config) > _MOST_ITEMS:
        return broken
    while changes := _causes(config, judge, broken):
        mended = _with(config, changes)
        left = list(judge(mended))
        still = [(problem.key, problem.got) for problem in left]
        gone = [problem for problem in broken if (problem.key, problem.got) not in still]
        for key, value in ((change.key, change.value) for change in changes):
            allowed = _joined(text for problem in gone for text in problem.asked_of(key))
            named.append(Problem(key=key, got=fields.get(config, key), allowed=allowed, nearest=repr(value)))
        config, broken = mended, left
    return named + broken


def _items(section: object) -> int:
    """Of all lists in a config, whose sections may be anything."""
    if not dataclasses.is_dataclass(section):
        return len(section) if isinstance(section, tuple) else 0
    return sum(_items(getattr(section, field.name)) for field in dataclasses.fields(section))


def _causes(config: Config, judge: Judge, broken: list[Problem]) -> tuple[Change, ...]:
    """The change that mends most, or the two (axes that cut one dim together), if that is more than there are changes.

    None where no such change is: then each problem is its own cause.
    """
    candidates = dict.fromkeys(
        [*(change for problem in broken for change in problem.changes), *_near(config, judge, broken)]
    )
    for count in (1, 2):
        causes, most = (), count
        for changes in itertools.combinations(candidates, count):
            keys = {change.key for change in changes}
            left = list(judge(_with(config, changes)))
            if len(keys) == count and len(broken) - len(left) > most and not keys & {problem.key for problem in left}:
                causes, most = changes, len(broken) - len(left)
        if causes:
            return causes
    return ()


def _with(config: Config, changes: Iterable[Change]) -> Config:
    for change in changes:
        config = fields.replace(config, change.key, change.value)
    return config


def _near(config: Config, judge: Judge, broken: list[Problem]) -> Iterator[Change]:
    """For each whole number that breaks several rules, the nearest one that breaks none."""
    keys = [problem.key for problem in broken if isinstance(problem.got, int)]
    for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
        value = fields.get(config, key)
        if isinstance(value, int):
            near = (value + sign * away for away in range(1, min(_FARTHEST, value)) for sign in (-1, 1))
            right = (n for n in near if key not in [p.key for p in judge(fields.replace(config, key, n))])
            yield from (Change(key=key, value=n, allowed="") for n in itertools.islice(right, 1))


def _joined(texts: Iterable[str]) -> str:
    """Several demands as one: the words that all begin or end with are said once, the first six of many named."""
    texts = list(dict.fromkeys(texts))
    more = [f"{len(texts) - 6} more"] if len(texts) > 6 else []
    first = os.path.commonprefix(texts).rpartition(" ")[0]
    if first.count(" ") < 2 or len(texts) == 1:
        return " and ".join(texts[:6] + more)
    (last,) = ends if len(ends := {text.partition(" beside ")[2] for text in texts}) == 1 else ("",)
    named = [text[len(first) + 1 :].removesuffix(f" beside {last}") for text in texts[:6]]
    return f"{first} {', '.join(named + more)}" + (f", beside {last}" if last else "")
