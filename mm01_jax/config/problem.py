"""What is wrong with a config or a command line, told so that a person can mend it."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """Another value that mends a problem by itself, and what the problem asks of the value at that key."""

    key: str
    value: object
    allowed: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with what a person typed: the key, its value, what is allowed, the nearest valid choice.

    changes: what else would mend it, by which problems of one cause are known (`causes.py`).
    """

    key: str
    got: object
    allowed: str
    nearest: str | None
    changes: tuple[Change, ...] = ()

    def asked_of(self, key: str) -> tuple[str, ...]:
        """What the value at a key must be for this problem to be gone; nothing where it does not depend on it."""
        if key == self.key:
            return (self.allowed,)
        return tuple(change.allowed for change in self.changes if change.key == key)[:1]

    def __str__(self) -> str:
        try:
            got = repr(self.got)
        except ValueError:  # Python prints no whole number of more than 4300 digits
            got = f"an {type(self.got).__name__} too large to print"
        got = got if len(got) <= 200 else got[:197] + "..."  # a long path whole, and a message on one screen
        nearest = f"; nearest: {self.nearest}" if self.nearest is not None else ""
        return f"{self.key}: got {got}; allowed: {self.allowed}{nearest}"


class ConfigError(ValueError):
    """Everything wrong with a config and the flags that made it, one line each; one problem is one line in all.

    file: the one that all of it stands in.
    """

    exit_code = 2
    MOST_LINES = 18  # with the first line and the last a screen

    def __init__(self, problems: Sequence[Problem], file: object = None):
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(f"refused: {f'{file}: ' if file else ''}{self.problems[0]}")
            return
        lines = [f"  {problem}" for problem in self.problems[: self.MOST_LINES]]
        if len(self.problems) > self.MOST_LINES:
            lines.append(f"  and {len(self.problems) - self.MOST_LINES} more")
        where = f" in {file}" if file else ""
        super().__init__("\n".join([f"refused for {len(self.problems)} problems{where}:", *lines]))
