"""Choosing an implementation: a name is obeyed or refused, a choice of ours is logged once with its reasons."""

import logging
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import api, lightning_attention, lightning_attention_step

IMPORTED_LATE = """
import importlib, pathlib, jax, pallas_kernels.dispatch
traced = jax.jit(lambda x: print("traced") or x + 1)
traced(1)
for file in pathlib.Path(pallas_kernels.__path__[0]).glob("*/*.py"):
    importlib.import_module(f"pallas_kernels.{file.parent.name}.{file.stem}")
traced(2)
"""


@pytest.fixture
def operation(monkeypatch):
    """Three implementations: the first refuses always, the second odd numbers, the third nothing."""
    reasons = {"first": lambda n: "it never can", "second": lambda n: "odd" if n % 2 else None, "third": lambda n: None}
    for name, reason in reasons.items():
        module = types.ModuleType(f"fake_{name}")
        module.unsupported = reason
        monkeypatch.setitem(sys.modules, f"fake_{name}", module)
    dispatch._log_choice.cache_clear()
    return dispatch.Operation("operation", {name: f"fake_{name}" for name in reasons})


def test_choose_none_takes_the_first_without_a_reason(operation):
    assert dispatch.choose(operation, None, 2) == "second"
    assert dispatch.choose(operation, None, 3) == "third"


def test_choose_none_logs_the_choice_and_the_reasons_once(operation, caplog):
    with caplog.at_level(logging.INFO, "pallas_kernels"):
        for _ in range(3):
            dispatch.choose(operation, None, 3)
    assert caplog.messages == ["operation: using 'third' (passed over: first: it never can; second: odd)"]


def test_choose_name_never_falls_back(operation):
    assert dispatch.choose(operation, "third", 2) == "third"
    with pytest.raises(dispatch.Unsupported, match="implementation 'second' cannot be used: odd"):
        dispatch.choose(operation, "second", 3)


def test_choose_unknown_name_is_refused_with_the_nearest(operation):
    with pytest.raises(
        ValueError, match="'secnd' is not one of 'first', 'second', 'third' or None; did you mean 'second'"
    ):
        dispatch.choose(operation, "secnd", 3)


def test_choose_none_fits_gives_every_reason(operation):
    without_last = dispatch.Operation("operation", dict(list(operation.modules.items())[:2]))
    with pytest.raises(dispatch.Unsupported, match="first: it never can; second: odd"):
        dispatch.choose(without_last, None, 3)


def test_importing_every_kernel_makes_no_function_trace_again():
    done = subprocess.run([sys.executable, "-c", IMPORTED_LATE], capture_output=True, text=True, check=True)
    assert done.stdout == "traced\n"


@pytest.mark.parametrize(("kind", "platform"), [("TPU v5", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu"), ("cpu", "cpu")])
def test_platform_is_that_of_the_mesh_in_force(kind, platform):
    mesh = AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=AbstractDevice(kind, 1, platform))
    with use_abstract_mesh(mesh):
        assert (dispatch.platform(), dispatch.device_kind()) == (platform, kind)
    assert (dispatch.platform(), dispatch.device_kind()) == ("cpu", "cpu")


@pytest.mark.parametrize(
    ("kind", "platform", "chosen"),
    [("TPU v5", "tpu", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu", "gpu"), ("cpu", "cpu", "xla")],
)
def test_lightning_is_chosen_by_the_platform(kind, platform, chosen):
    mesh = AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=AbstractDevice(kind, 132, platform))
    with use_abstract_mesh(mesh):
        assert dispatch.choose(api.OPERATION, None, *_arguments().values(), None) == chosen


def _arguments():
    x = jax.ShapeDtypeStruct((2, 8, 3, 64), jnp.bfloat16)
    state = jax.ShapeDtypeStruct((2, 3, 64, 64), jnp.float32)
    return {
        "q_BSNH": x,
        "k_BSNH": x,
        "v_BSNH": x,
        "slope_N": jax.ShapeDtypeStruct((3,), jnp.float32),
        "state_BNHH": state,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_BSNH": ((2, 8, 64), jnp.bfloat16)}, r"q must be \(B, S, N, H\) without empty axes, got \(2, 8, 64\)"),
        ({"q_BSNH": ((2, 0, 3, 64), jnp.bfloat16)}, "without empty axes"),
        ({"q_BSNH": ((2, 8, 3, 64), jnp.float16)}, "q must be bfloat16 or float32, got float16"),
        ({"k_BSNH": ((2, 8, 3, 32), jnp.bfloat16)}, r"k must be bfloat16\[2, 8, 3, 64\] to go with q, got bfloat16"),
        ({"v_BSNH": ((2, 8, 3, 64), jnp.float32)}, r"v must be bfloat16\[2, 8, 3, 64\] to go with q, got float32"),
        ({"slope_N": ((2,), jnp.float32)}, r"slope must be float32\[3\]"),
        ({"state_BNHH": ((2, 3, 64, 64), jnp.bfloat16)}, r"state must be float32\[2, 3, 64, 64\]"),
        ({"segment_ids": ((2, 9), jnp.int32)}, r"segment_ids must be int32\[2, 8\]"),
        ({"implementation": "gpy"}, "did you mean 'gpu'"),
        ({"implementation": "tpu"}, "the code is for cpu, not for a TPU"),
    ],
)
def test_lightning_wrong_argument_is_named(change, message):
    change = {n: jax.ShapeDtypeStruct(*c) if isinstance(c, tuple) else c for n, c in change.items()}
    static = {n: c for n, c in change.items() if n == "implementation"}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda **a: lightning_attention(**a, **static),
            **(_arguments() | {n: c for n, c in change.items() if n not in static}),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_BNH": ((2, 1, 3, 64), jnp.bfloat16)}, r"q must be \(B, N, H\) without empty axes in a decode step"),
        ({"active_B": ((3,), jnp.bool_)}, r"active must be bool\[2\]"),
        ({"active_B": ((2,), jnp.int32)}, r"active must be bool\[2\]"),
    ],
)
def test_lightning_step_wrong_argument_is_named(change, message):
    x = jax.ShapeDtypeStruct((2, 3, 64), jnp.bfloat16)
    arguments = {"q_BNH": x, "k_BNH": x, "v_BNH": x} | {n: _arguments()[n] for n in ("slope_N", "state_BNHH")}
    arguments |= {n: jax.ShapeDtypeStruct(*c) for n, c in change.items()}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda **a: lightning_attention_step(**a), **arguments)
