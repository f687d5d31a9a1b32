"""Cases of one law: some by default, all in the long suite; and what holds on some processors alone."""

import pathlib
from collections.abc import Container, Iterable

import pytest

_CPUINFO = pathlib.Path("/proc/cpuinfo")
# XLA's sums over many keys take other turns for one query than for many where it has AVX2 alone (docs/engine.md).
bits_of_training = pytest.mark.skipif(
    _CPUINFO.exists() and "avx2" in (flags := _CPUINFO.read_text().split()) and "avx512f" not in flags,
    reason="on a CPU with AVX2 alone a token decoded alone has other bits than in training's forward",
)


def slow_but(by_default: Container, cases: Iterable) -> list:
    """`cases` for `pytest.mark.parametrize`, marked slow but for those that run by default."""
    return [case if case in by_default else _slow(case) for case in cases]


def _slow(case):
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
