"""The NumPy reference reproduces what the original code computed, arrays and printed numbers (docs/model.md H)."""

import functools

import numpy as np
import pytest

from tests.reference import fixture, losses
from tests.reference.model import forward
from tests.reference.random_weights import random_weights

BOUND = 1e-5  # relative to the largest value; fp32 rounding of the original is 6e-7

GOLDEN_LOGITS = {
    0: ([0.425982, -1.870562, -0.481694, 0.328475, -0.338098, 0.592193], 13.022465, 59),
    1: ([1.197672, -0.755322, -0.190622, -0.853350, -0.621363, 2.158375], 17.752499, 5),
    255: ([-1.128206, -1.216161, 1.152509, -0.433066, -1.186193, -1.473764], 12.648240, 25),
    256: ([1.522373, -0.732515, -1.749995, 0.903632, -1.747155, -1.428820], 4.216047, 21),
    299: ([1.127389, -1.299327, 0.010669, 0.638136, -0.417031, -1.465191], -5.828495, 33),
}
GOLDEN_STATES = {  # layer: sum, largest magnitude, [head 0, 0, 0], [head 3, 5, 7]
    0: (2658.412, 31.83173, -0.436741, 11.626696),
    1: (3344.817, 46.41682, -0.051809, 3.015821),
    2: (3118.320, 58.08143, -0.849818, 15.914042),
    3: (4644.247, 76.98512, -0.106515, 66.739616),
    4: (4752.735, 75.02277, 0.166087, 16.715481),
    5: (4796.125, 62.00072, 3.244816, 6.866758),
    6: (7756.064, 157.97273, 7.652071, -6.077926),
}


@functools.cache
def prefill():
    return forward(fixture.CONFIG, fixture.weights(), fixture.load()["ids"])


def relative_error(got, want) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def assert_reproduces_fixture(logits_SV, states):
    golden = fixture.load()
    assert relative_error(logits_SV, golden["logits"]) < BOUND
    assert len(states) == fixture.NUM_STATES
    for layer, state in enumerate(states):
        assert relative_error(state, golden[f"state{layer}"]) < BOUND, layer


def test_fixture_weights_and_ids_follow_the_published_recipe():
    want = fixture.weights()
    drawn = random_weights(fixture.CONFIG, fixture.SEED)
    assert sorted(drawn) == sorted(want)
    for name, weight in drawn.items():
        np.testing.assert_array_equal(weight, want[name], err_msg=name)
    np.testing.assert_array_equal(fixture.load()["ids"], (7 * np.arange(300)[None] + 3) % 97)


def test_reference_prefill_reproduces_fixture():
    result = prefill()
    assert_reproduces_fixture(result.logits_BSV[0], result.states)


@pytest.mark.parametrize("prompt", [280, 1])
def test_reference_prefill_then_decode_reproduces_fixture(prompt):
    ids, weights = fixture.load()["ids"], fixture.weights()
    result = forward(fixture.CONFIG, weights, ids[:, :prompt])
    logits = [result.logits_BSV[0]]
    for t in range(prompt, ids.shape[1]):
        result = forward(fixture.CONFIG, weights, ids[:, t : t + 1], cache=result.cache)
        logits.append(result.logits_BSV[0])
    assert_reproduces_fixture(np.concatenate(logits), result.states)


@pytest.mark.parametrize("position", GOLDEN_LOGITS)
def test_reference_logits_equal_the_printed_ones(position):
    first, total, best = GOLDEN_LOGITS[position]
    logits_V = prefill().logits_BSV[0, position]
    # Printed to 6 decimals from an fp32 run: half a unit, and 1e-6 of that run's rounding (97 times for a sum).
    np.testing.assert_allclose(logits_V[:6], first, rtol=0, atol=3e-6)
    np.testing.assert_allclose(logits_V.sum(), total, rtol=0, atol=1e-4)
    assert logits_V.argmax() == best


@pytest.mark.parametrize("layer", GOLDEN_STATES)
def test_reference_states_equal_the_printed_ones(layer):
    total, largest, first, other = GOLDEN_STATES[layer]
    state_NHH = prefill().states[layer][0]
    np.testing.assert_allclose(state_NHH.sum(), total, rtol=1e-6)
    bound = BOUND * largest
    np.testing.assert_allclose(np.abs(state_NHH).max(), largest, rtol=0, atol=bound)
    np.testing.assert_allclose([state_NHH[0, 0, 0], state_NHH[3, 5, 7]], [first, other], rtol=0, atol=bound)


def test_reference_keys_and_values_equal_the_printed_sums():
    keys, values = prefill().cache.layers[7]
    np.testing.assert_allclose([keys.sum(), values.sum()], [-518.0947, -1268.2948], rtol=1e-6)


def test_reference_router_picks_equal_the_printed_ones():
    routings = prefill().routings
    want = [[2, 3], [3, 0], [1, 3], [2, 1], [2, 1], [0, 1]]
    np.testing.assert_array_equal(routings[0].chosen_RA[:6], want)
    np.testing.assert_array_equal(routings[7].chosen_RA[-1], [1, 2])


def test_reference_losses_equal_the_printed_ones():
    result = prefill()
    targets, counts = losses.next_tokens(fixture.load()["ids"], result.documents_BS)
    loss = losses.cross_entropy(result.logits_BSV, targets, counts)
    balance = losses.transformers_balance(result.routings, result.real_R)
    np.testing.assert_allclose([loss, balance], [5.028724, 2.039395], rtol=0, atol=1e-6)
    np.testing.assert_allclose(loss + 0.001 * balance, 5.030763, rtol=0, atol=1e-6)
