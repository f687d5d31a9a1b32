"""docs/security.md promises nothing without a kind of fault, or a test, that holds it."""

import re

from tests.faults import kinds
from tests.house.checkout import ROOT, files

PAGE = (ROOT / "docs" / "security.md").read_text()
PROMISES = PAGE.partition("## What this is not")[0].split("\n* ")[1:]
_KINDS = re.compile(r"kinds?\s+((?:`[a-z_]+`(?:,\s+)?)+)")


def named_kinds(text: str) -> set[str]:
    return {name for found in _KINDS.findall(text) for name in re.findall(r"`([a-z_]+)`", found) if name[:5] != "test_"}


def named_tests(text: str) -> set[str]:
    return set(re.findall(r"`(?:tests/[a-z_/]+/)?(test_\w+)(?:\.py)?`", text))


def test_every_promise_names_what_holds_it():
    assert len(PROMISES) > 15
    assert not [text for text in PROMISES if not named_kinds(text) | named_tests(text)]


def test_what_is_named_exists_and_every_kind_is_named():
    assert named_kinds(PAGE) == set(kinds.names())
    tests = [path for path in files() if path.name.startswith("test_") and path.suffix == ".py"]
    there = {path.stem for path in tests} | {
        name for path in tests for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert not named_tests(PAGE) - there
