"""Cases of one law: some by default, all in the long suite."""

from collections.abc import Container, Iterable

import pytest


def slow_but(by_default: Container, cases: Iterable) -> list:
    """`cases` for `pytest.mark.parametrize`, marked slow but for those that run by default."""
    return [case if case in by_default else _slow(case) for case in cases]


def _slow(case):
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
