"""What every part of the inference bench has: one report, one model of random weights, what the device can do at best.

A quarter of a mixer's output goes into the residual, as in `benchmarks.mesh`: random routers load evenly then.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import mesh as meshes
from benchmarks.kernels.timing import copy_bytes_per_second
from benchmarks.results import Report, device
from mm01_jax import sharding
from mm01_jax.checkpoint import leaf_paths
from mm01_jax.chips import peak_flops
from mm01_jax.config import Config, MeshConfig
from mm01_jax.convert import int8
from mm01_jax.model.abstract import abstract_model
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import shardings
from pallas_kernels import dispatch

COPIED = 2**30  # bytes; on a CPU a thousandth, which is for trying the script
SEED = 0
COMPILERS = 6  # at once, where nothing else is done
NO_RATE = 1e12  # where the chip's peak is not known (a CPU)


def configured(config: Config, dtype: str) -> Config:
    """The config as it is measured: weights as the products take them, on one device, nothing dropped."""
    model = dataclasses.replace(
        config.model, lightning_beta=meshes.MIXERS, softmax_beta=meshes.MIXERS, routing="dropless"
    )
    compute = dataclasses.replace(
        config.compute,
        dtype=dtype,
        param_dtype=dtype,
        dropless_bound=None,
        exchange_groups=1,
        sequence_layout="contiguous",
    )
    mesh = MeshConfig(rules=config.mesh.rules)
    return dataclasses.replace(config, model=model, compute=compute, mesh=mesh, vision=None)


def run(function, *arguments, like=None, **static):
    """What a function gives; `Bench.call` where more than compiling is asked for."""
    del like
    return function(*arguments, **static)


def random_model(config: Config, seed: int, call=run) -> TextModel:
    """Weights of a seed on the first device. call: as `Bench.call`."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])

    def make(key) -> TextModel:
        return TextModel(config.model, config.compute, config.mesh.rules, rngs=nnx.Rngs(params=key))

    key = jax.random.key(seed, impl="rbg")  # which compiles in a tenth of the time
    abstract = jax.eval_shape(make, key)
    places = shardings(abstract, mesh, config.mesh.rules)
    with jax.set_mesh(mesh):
        return call(jax.jit(make, out_shardings=places), key, like=placed(abstract, places))


def placed(abstract, places):
    """Shapes, each with its sharding."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places)


def in_int8(model: TextModel, config: Config, form: str) -> TextModel:
    """The same weights, matrices in int8; the floats are given up leaf by leaf."""
    mesh, (leaves, tree) = sharding.mesh_of(model), jax.tree.flatten(model)
    each = int8.each(config, mesh, form)
    kept = [each(path, leaf) for path, leaf in zip(leaf_paths(model), leaves, strict=True)]
    return int8.assembled(int8.with_int8(config, form), mesh, jax.tree.unflatten(tree, kept))


def in_float32(model: TextModel, call=run) -> TextModel:
    """The same numbers, computed in float32: what the others are compared with. int8 stays, and stands for its own.

    call: as `Bench.call`.
    """

    def widened(model):
        return jax.tree.map(lambda x: x if x.dtype == jnp.int8 else x.astype(jnp.float32), model)

    places, abstract = jax.tree.map(lambda x: x.sharding, model), jax.eval_shape(widened, model)
    wide = call(jax.jit(widened, out_shardings=places), model, like=placed(abstract, places))
    for _, module in nnx.iter_modules(wide):
        if hasattr(module, "compute"):
            module.compute = dataclasses.replace(module.compute, dtype="float32", param_dtype="float32")
    return wide


@contextlib.contextmanager
def plain_path():
    """Programs that are traced inside have no kernel of ours: the path that kernels are compared with."""
    reason = dispatch.why_not_hopper
    dispatch.why_not_hopper = lambda: "the plain path was asked for"
    try:
        yield
    finally:
        dispatch.why_not_hopper = reason


class Bench:
    """One run of the command."""

    def __init__(self, report: Report, config: Config, *, quantize: str | None = None, compile_only: bool = False):
        self.report, self.began = report, time.monotonic()
        self.quantize, self._model, self.compile_only = quantize, None, compile_only
        self._compiled: dict[tuple, tuple] = {}  # of a function and shapes: the function, and what it gives
        self._compilers, self._compiling = concurrent.futures.ThreadPoolExecutor(COMPILERS), []
        self.curves: dict[str, list[tuple[int, float]]] = {}  # of a picture
        known = peak_flops(jax.devices()[0].device_kind)
        self.peak, self.is_real = known or NO_RATE, known is not None
        self.config = configured(config, "bfloat16" if self.is_real else "float32")  # XLA:CPU lacks some products
        few = compile_only or not known
        self.copy = copy_bytes_per_second(COPIED // 1024 if few else COPIED)
        self.tell(f"{device()}: copies {self.copy / 1e12:.3g} TB/s, peak {self.peak / 1e12:.4g} TFLOP/s")

    @property
    def model(self) -> TextModel:
        """Made when first asked for."""
        if self._model is None:
            self._model = random_model(self.config, SEED, self.call)
            if self.quantize and self.compile_only:
                config = int8.with_int8(self.config, self.quantize)
                self._model = abstract_model(config, sharding.mesh_of(self._model))
            elif self.quantize:
                self._model = in_int8(self._model, self.config, self.quantize)
        return self._model

    def call(self, function, *arguments, like=None, **static):
        """What a jitted function gives. Where it is only to be compiled, and goes into jax's cache: its shapes.

        like: those shapes with their places, where they are known: then nobody waits for the compiler.
        """
        if not self.compile_only:
            return run(function, *arguments, **static)
        told = id(function), *(x.shape for x in jax.tree.leaves(arguments))
        if told not in self._compiled:
            lowered = function.lower(*arguments, **static)
            compiling = self.compile(lowered, getattr(function, "__name__", "a program"))
            out = like if like is not None else placed(lowered.out_info, compiling.result().output_shardings)
            self._compiled[told] = function, out
        return self._compiled[told][1]

    def compile(self, lowered: jax.stages.Lowered, name: str, options: dict | None = None) -> concurrent.futures.Future:
        """Compiles beside what is traced meanwhile; `wait_for_compilers` waits."""

        def compiled():
            began = time.monotonic()
            program = lowered.compile(compiler_options=options)
            self.tell(f"{name}: compiled in {time.monotonic() - began:.1f} s")
            return program

        self._compiling.append(self._compilers.submit(compiled))
        return self._compiling[-1]

    def wait_for_compilers(self) -> None:
        """Raises what a compiler raised."""
        for compiling in self._compiling:
            compiling.result()

    def named(self, subject: str) -> str:
        """The subject with what is measured: the shape, and how its weights are kept."""
        return f"{subject}, {self.config.name}{f', {self.quantize}' if self.quantize else ''}"

    def tokens(self, rows: int, length: int, seed: int = 1) -> np.ndarray:
        """(rows, length) int32, every row another."""
        return np.random.default_rng(seed).integers(0, self.config.model.vocab_size // 4, (rows, length), np.int32)

    def tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {line}", flush=True)

    def add(self, subject: str, quantity: str, value, unit: str = "", *, floor=None, peer=None) -> None:
        """A row, and a line of it."""
        least = "" if floor is None else f" (floor {floor:,.5g})"
        whose = f" ({peer})" if peer else ""
        shown = value if isinstance(value, str) else f"{value:,.6g}"
        self.tell(f"{subject}{whose}: {quantity} {shown} {unit}".rstrip() + least)
        self.report.add(f"{subject}: {quantity}", value, unit, device=device(), floor=floor, peer=peer)

    def attempt(self, name: str, part, *arguments) -> None:
        """Runs a part; of one that fails the reason is told, the others are worth having."""
        try:
            part(self, *arguments)
        except Exception as error:
            self.tell(f"{name}: not run: {type(error).__name__}: {str(error)[:400]!r}")


def apart(out, expected) -> float:
    """||out - expected|| / ||expected||, in float64."""
    out, expected = (np.asarray(x, np.float64) for x in (out, expected))
    norm = math.sqrt(float((expected**2).sum()))
    return math.sqrt(float(((out - expected) ** 2).sum())) / norm if norm else math.inf
