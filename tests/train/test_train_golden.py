"""Training's numbers have not moved since they were written down (tests/golden/train_curve.py says how)."""

import json
import pathlib

import numpy as np
import pytest

from tests import small
from tests.golden import train_curve

GOLDEN = json.loads((pathlib.Path(train_curve.__file__).with_suffix(".json")).read_text())


@pytest.fixture(scope="module")
def curve():
    with small.one_device():
        return train_curve.curve()


@pytest.mark.parametrize("name", GOLDEN["values"])
def test_metrics_of_the_first_step_and_twenty_losses_are_the_golden_ones(curve, name):
    want = np.asarray(GOLDEN["values"][name])
    # Ten times one draw of such a move; at least an ulp of the value itself.
    tolerance = 10 * GOLDEN["moves"][name] + 2.0**-23 * np.abs(want).max()
    np.testing.assert_allclose(curve[name], want, rtol=0, atol=tolerance)


def test_the_golden_curve_falls():
    losses = GOLDEN["values"]["losses"]
    assert losses[-1] < losses[0] - 0.5
