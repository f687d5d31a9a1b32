"""Choose the implementation of an operation, or say why none of them fits.

A name asks for that implementation and no other: it answers or raises `Unsupported`. `None` takes the first
candidate, in the operation's order, that has no reason against it; the choice is logged once with the reasons of
those passed over.
"""

import dataclasses
import difflib
import functools
import importlib
import logging
from types import ModuleType

import jax

# Parts of Pallas add values to jax's tracing context when they are imported, and then every function that was jitted
# before traces and compiles again. Kernels are imported while one is traced, so those parts must be there already: a
# training step compiled twice (jax 0.11 and 0.12; tests/kernels/test_dispatch.py).
import jax.experimental.pallas.fuser  # noqa: F401

_log = logging.getLogger("pallas_kernels")


class Unsupported(ValueError):
    """The named implementation cannot take these arguments on this device; the message says why."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation's name and its implementations in order of preference: name -> module to import when asked."""

    name: str
    modules: dict[str, str]

    def module(self, implementation: str) -> ModuleType:
        # Late, so that a CPU user does not pay for importing two accelerators' compilers.
        return importlib.import_module(self.modules[implementation])


def platform() -> str:
    """`tpu`, `gpu` or `cpu`: where the code being traced will run.

    The mesh in force (`jax.set_mesh`, `jax.shard_map`) decides, so that compiling for a machine that is not here picks
    that machine's kernels; without a mesh it is the default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def device_kind() -> str:
    """Kind of the device the code will run on, as the mesh in force or the default backend names it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


def load_runtime() -> None:
    """Loads what a program with kernels needs beside itself where it is compiled without being lowered before.

    jax's Mosaic GPU says where its runtime library lies when it is imported, which lowering a kernel does; without it
    XLA finds no `mosaic_gpu_launch_kernel` (jax 0.11.2, H200).
    """
    if platform() == "gpu":
        importlib.import_module("jax.experimental.mosaic.gpu")


def why_not_hopper() -> str | None:
    """Why the code will not run on an NVIDIA Hopper GPU (wgmma, TMA), or None if it will."""
    if platform() != "gpu":
        return f"it needs a GPU, the code runs on {platform()!r}"
    if not any(name in device_kind() for name in ("H100", "H200", "H800", "H20", "GH200")):
        return f"it needs an NVIDIA Hopper GPU (wgmma), got {device_kind()!r}"
    return None


def elsewhere(implementation: str) -> str | None:
    """Why one that is named after a platform is passed over unread: half a second of imports for another's compiler."""
    here = platform()
    return f"the code runs on {here!r}" if implementation in ("tpu", "gpu") and implementation != here else None


def choose(operation: Operation, implementation: str | None, *arguments) -> str:
    """Name of the implementation to use for `arguments`.

    Raises:
      ValueError: `implementation` is no implementation of this operation.
      Unsupported: it is one, and cannot take these arguments here; or, for `None`, none can.
    """
    if implementation is not None:
        _check_name(operation, implementation)
        if reason := operation.module(implementation).unsupported(*arguments):
            raise Unsupported(f"{operation.name}: implementation {implementation!r} cannot be used: {reason}")
        return implementation
    passed_over = []
    for name in operation.modules:
        reason = elsewhere(name) or operation.module(name).unsupported(*arguments)
        if reason is None:
            _log_choice(operation.name, name, tuple(passed_over))
            return name
        passed_over.append(f"{name}: {reason}")
    raise Unsupported(f"{operation.name}: no implementation fits; " + "; ".join(passed_over))


def _check_name(operation: Operation, implementation: str) -> None:
    if implementation in operation.modules:
        return
    allowed = ", ".join(repr(name) for name in operation.modules)
    close = difflib.get_close_matches(implementation, operation.modules, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{operation.name}: implementation={implementation!r} is not one of {allowed} or None{hint}")


@functools.cache
def _log_choice(operation: str, name: str, passed_over: tuple[str, ...]) -> None:
    """Cached: one line for each choice and set of reasons, however often the operation is traced."""
    reasons = f" (passed over: {'; '.join(passed_over)})" if passed_over else ""
    _log.info("%s: using %r%s", operation, name, reasons)
