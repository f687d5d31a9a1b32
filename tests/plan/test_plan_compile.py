"""Plans that compile for TPUs which are not here."""

import dataclasses

import pytest

pytest.importorskip("libtpu")

from configs import text_01_decode_1m, tiny  # noqa: E402
from mm01_jax.config import MeshConfig  # noqa: E402
from mm01_jax.plan import planner, report, targets  # noqa: E402


@pytest.fixture(autouse=True)
def _own_libtpu(monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")


def test_decode_compiles_for_a_tpu_slice_with_its_collectives_on_their_axes():
    config = dataclasses.replace(tiny.get_config(), mesh=MeshConfig(expert=2, tensor=2))
    plan = planner.make_plan("decode", config, targets.parse("v5e-4"), compile_it=True)
    assert plan.fits and plan.peak >= sum(plan.arguments.values()) > 0
    exchanged = {one.axes for one in plan.messages if one.kind == "all-to-all"}
    assert exchanged == {("expert",)}
    assert {axis for one in plan.messages for axis in one.axes} == {"expert", "tensor"}
    assert "FITS" in report.text(plan)


@pytest.mark.slow
def test_decode_of_the_released_model_at_a_million_tokens_fits_sixteen_chips_and_copies_no_cache():
    plan = planner.make_plan("decode", text_01_decode_1m.get_config(), targets.parse("v5p-32"), compile_it=True)
    assert plan.fits
    # A copy of the keys alone would be 2.5 GiB.
    assert plan.compiled.memory["temporaries"] < 1 << 30
