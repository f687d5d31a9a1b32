"""How near the model is to the original code's numbers and to derivatives by complex steps.

    python -m benchmarks.exactness [--json=FILE]

The fixture is what the original computed (docs/model.md H): errors of logits and states are parts of their largest
value, of this model in float32 and of the NumPy reference in float64. Gradients are judged leaf by leaf along one
random direction, as `tests/model/test_model_reference.py` does; the error is a part of |gradient| |direction|. Exit
code 1 where an error is above the bound of its test.
"""

import sys

import numpy as np

from benchmarks.results import Report, add_json, device
from mm01_jax.model.mixers import empty_cache
from tests.command_line import Parser
from tests.model import jax_model, test_model_fixture, test_model_reference
from tests.reference import fixture, test_reference_fixture
from tests.reference.complex_step import directional_derivative
from tests.reference.leaves import leaves


def on_the_fixture() -> dict[str, float]:
    """Error of the logits and of the worst state, ours in float32."""
    golden = fixture.load()
    with jax_model.one_device():
        model = test_model_fixture.model()
        cache = empty_cache(model.config, model.compute, jax_model.RULES, 1, 300)
        logits, cache = test_model_fixture.with_cache()(model, *test_model_fixture.batch(0, 300), cache)
        states = jax_model.lightning_states(model, cache)
    return _errors(np.asarray(logits)[0], states, golden)


def of_the_reference() -> dict[str, float]:
    """The same of the NumPy reference, which shares no line with the model."""
    result = test_reference_fixture.prefill()
    return _errors(result.logits_BSV[0], result.states, fixture.load())


def _errors(logits, states, golden) -> dict[str, float]:
    error = test_reference_fixture.relative_error
    worst = max(error(np.asarray(state), golden[f"state{i}"]) for i, state in enumerate(states))
    return {"logits": error(logits, golden["logits"]), "worst state": worst}


def worst_gradient(case: str, dtype: str) -> float:
    """The largest error of any leaf's gradient."""
    config, period = test_model_reference.CASES[case]
    weights, worst = test_model_reference.released_weights(case), 0.0
    gradients = test_model_reference.differentiated(case, dtype)[-1]
    for path, leaf in leaves(config, period).items():
        random = np.random.RandomState(5)
        direction = {name: random.standard_normal(weights[name].shape) for name in leaf.names.ravel()}
        want = directional_derivative(lambda w: test_model_reference.reference_loss(config, w), weights, direction)
        along, gradient = leaf.stack(direction), gradients[path].astype(np.float64)
        scale = np.linalg.norm(gradient) * np.linalg.norm(along)
        worst = max(worst, abs(np.vdot(gradient, along) - want) / scale)
    return float(worst)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.exactness", __doc__)
    add_json(parser)
    report = Report(parser.parse_args(argv).json, "benchmarks.exactness", argv)
    good, case = True, "two periods of three"
    for peer, errors in ((None, on_the_fixture()), ("NumPy", of_the_reference())):
        for quantity, error in errors.items():
            report.add(f"fixture: {quantity}", error, "of the largest value", device=device(), peer=peer)
            print(f"fixture, {peer or 'ours'}, {quantity}: {error:.1e}")
            good &= error < test_reference_fixture.BOUND
    for dtype, bound in test_model_reference.ROUNDING.items():
        error = worst_gradient(case, dtype)
        report.add(f"gradients, {dtype}: worst leaf", error, "of |gradient| |direction|", device=device())
        print(f"gradients, {dtype}, worst leaf: {error:.1e}")
        good &= error < bound
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
