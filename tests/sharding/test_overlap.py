"""The exchange of one token group runs beside the experts' compute of another, in the program compiled for v5p."""

import importlib.util

import pytest

from benchmarks import overlap


def test_matmuls_are_counted_between_the_start_and_the_end_of_an_exchange():
    program = """
%inner (p: f32[2]) -> f32[2] {
  %d = f32[2,2] dot(%p, %p)
}
ENTRY %main (x: bf16[2]) -> bf16[2] {
  %a = (bf16[4,8], bf16[4,8]) all-to-all-start(%x)
  %f = f32[2,2] fusion(%x), kind=kOutput, calls=%inner
  %b = bf16[4,8] all-to-all-done(%a)
  %c = s32[4,8] all-to-all(%y)
  %e = bf16[4,8] all-to-all(%z)
}
"""
    assert overlap.inspect(program) == overlap.Found(exchanges=2, asynchronous=1, matmuls_inside=(1,))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu compiles for TPUs")
def test_two_groups_overlap_in_the_program_for_v5p():
    found = overlap.inspect(overlap.compile_layer("v5p", 2, tokens=2048).as_text())
    assert found.exchanges == 8  # out and back, and their gradients, for each group
    assert found.overlapped >= found.exchanges // 2
