"""The exchange of one token group runs beside the experts' compute of another, in programs for v5p and H100."""

import importlib.util

import pytest

from mm01_jax.plan.hlo import collectives
from mm01_jax.plan.hlo.text import parse
from tests.parallel import overlapped


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
    assert overlapped.inspect(program) == overlapped.Found(exchanges=2, asynchronous=1, matmuls_inside=(1,))


COMPILERS = {"v5p": "libtpu", "h100": "jax_cuda13_plugin"}


def compiled(target: str, groups: int, **options) -> overlapped.Found:
    if importlib.util.find_spec(COMPILERS[target]) is None:
        pytest.skip(f"{COMPILERS[target]} compiles for {target}")
    return overlapped.inspect(overlapped.compile_layer(target, groups, tokens=2048, **options).as_text())


@pytest.mark.slow
@pytest.mark.parametrize("target", COMPILERS)
def test_two_groups_overlap_in_the_compiled_program(target):
    found = compiled(target, 2)
    assert found.exchanges == 8  # out and back, and their gradients, for each group
    assert found.overlapped > found.exchanges // 2


@pytest.mark.slow
@pytest.mark.parametrize("target", COMPILERS)
def test_one_group_overlaps_half_at_most(target):
    found = compiled(target, 1)
    assert found.exchanges == 4
    assert found.overlapped <= 2  # gradients, beside those of the weights; going out nothing is left to compute


@pytest.mark.slow
def test_exchange_is_synchronous_on_tpus_without_the_option_that_we_ship():
    assert compiled("v5p", 2, options=False).asynchronous == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", COMPILERS)
@pytest.mark.parametrize("options", [True, False])
def test_weights_are_gathered_and_gradients_summed_beside_products(target, options):
    """All but the first gather and the last sum, beside which nothing is left to do."""
    if importlib.util.find_spec(COMPILERS[target]) is None:
        pytest.skip(f"{COMPILERS[target]} compiles for {target}")
    program = overlapped.compile_cut_weights(target, options=options).as_text()
    found = collectives.find(parse(program), {"data": 4})
    beside = {one.kind: found.overlapped[one] for one in found.counts}
    assert {one.kind: count for one, count in found.counts.items()} == {"all-gather": 3, "reduce-scatter": 3}
    if options:
        assert beside["all-gather"] >= 2 and beside["reduce-scatter"] >= 2
    elif target == "v5p":  # without the SparseCores, which the options ask for
        assert beside == {"all-gather": 0, "reduce-scatter": 0}
