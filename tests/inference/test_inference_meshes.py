"""The same text and the same score on every mesh: one device, every axis of 2, 2 x 2, 8 devices."""

import numpy as np
import pytest

from mm01_jax.evals import perplexity
from mm01_jax.inference import engine_devices, scoring
from tests import small
from tests.inference import answering
from tests.slow import slow_but

MESHES = (
    "data=2",
    "expert=2",
    "tensor=2",
    "sequence=2",
    "expert=2,tensor=2",
    "data=2,tensor=2",
    "data=2,expert=2,tensor=2",
    "data=2,expert=2,sequence=2",
    "expert=2,tensor=2,sequence=2",
    "expert=4,tensor=2",
    "data=8",
    "auto",
)


@pytest.fixture(scope="module", autouse=True)
def cheap_programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_devices, "jit", small.unoptimised)
        patch.setattr(perplexity, "_score", small.unoptimised(scoring.score, static_argnames="chunk"))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return answering.write_run(tmp_path_factory.mktemp("answering"))


@pytest.fixture(scope="module")
def alone(run):
    return answering.answer(run, None)


def test_one_device_answers_every_prompt(alone):
    assert np.array(alone.tokens).shape == (3, 20)
    assert len({tuple(row) for row in alone.tokens}) == 3
    assert alone.num_targets > 1000


@pytest.mark.parametrize("mesh", slow_but(("data=2,expert=2,sequence=2",), MESHES))
def test_a_mesh_answers_what_one_device_does(run, alone, mesh):
    found = answering.answer(run, mesh)
    assert found.tokens == alone.tokens
    assert found.num_targets == alone.num_targets
    # Sums of ~1,100 float32 losses, batches cut otherwise: each of ~20 sums rounds to 2^-24 of itself.
    np.testing.assert_allclose(found.loss, alone.loss, rtol=20 * 2.0**-24)
