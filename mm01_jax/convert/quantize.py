"""A checkpoint whose matrices are int8 out of one of floats, one logical chunk in memory at a time.

The rest keep their bits, or get the dtype that is asked for.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mm01_jax.checkpoint import ArrayWriter, CheckpointError, leaf_paths, leaf_stacks, open_checkpoint
from mm01_jax.checkpoint.writer import check_target
from mm01_jax.config import Config, saved
from mm01_jax.convert import companions, parallel, table
from mm01_jax.convert.int8 import PARTS, matrices, with_int8
from mm01_jax.convert.progress import Plan, Progress
from mm01_jax.convert.sources import CheckpointSource, TorchSource, is_checkpoint, open_source, with_dtype
from mm01_jax.files import write
from mm01_jax.messages import say
from mm01_jax.model.abstract import abstract_weights
from pallas_kernels.int8 import LEAST, MOST

KINDS = ("int8", "float32")  # of PARTS


class Error(NamedTuple):
    """How far a layer's matrix is from what it was: ||W - Q|| / ||W||; of a layer's experts the largest."""

    leaf: str
    period: int
    layer: int
    relative: float


def quantized(weight: np.ndarray, summed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(values, scale), the numbers of `pallas_kernels.int8.quantized`."""
    wide = weight.astype(np.float32)
    largest = np.max(np.abs(wide), axis=summed, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # what is not finite is refused by its scale
        inverse = np.where(largest > np.float32(LEAST), np.float32(MOST) / largest, np.float32(0))
        values = np.round(wide * inverse).astype(np.int8)
    return values, np.squeeze(largest * np.float32(1 / MOST), summed)


def quantize(
    source,
    target,
    *,
    form: str = "int8",
    dtype: str | None = None,
    log: Callable[[str], None] = say,
) -> list[Error]:
    """Writes the checkpoint in `source`, of either kind, as one with int8 matrices at `target`; resumable.

    Args:
      form: "int8" or "int8_attention". dtype: of the other weights; None keeps theirs.

    Returns:
      The error of each matrix: of the experts' of a layer the largest.

    Raises:
      CheckpointError: the source is damaged, or a matrix has a number that is not finite.
      ValueError: the source is int8 already; the target is there already, or has no room.
    """
    _check_floats(source)
    opened = open_source(source)
    config = with_int8(with_dtype(opened.config, dtype) if dtype else opened.config, form)
    dtype = dtype or opened.dtype
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype: the weights are {opened.dtype}; choose --dtype=bfloat16 or --dtype=float32")
    summed, target = matrices(config), pathlib.Path(target).absolute()
    leaves = _leaves(config, dtype)
    plan = _plan(opened, target, leaves)
    log(str(plan))
    check_target(target)
    companions.check(pathlib.Path(source))
    plan.check_room()
    progress = Progress(plan.bytes_in, "quantize")
    with ArrayWriter(target, leaves) as writer:
        work = functools.partial(_convert, opened, writer, summed, dtype, progress)
        errors = parallel.for_each(opened.tensors, functools.partial(_nbytes, opened), work)
        companions.copy(pathlib.Path(source), target.with_name(f"{target.name}.partial"))
        writer.finish(saved.to_json(config), _meta(opened))
    log(progress.finish())
    return _worst([error for error in errors if error is not None])


def _check_floats(source) -> None:
    """Raises ValueError for a checkpoint that is int8 already."""
    if is_checkpoint(source) and (form := open_checkpoint(source).config.compute.quantize) != "none":
        raise ValueError(f"--source={source}: its matrices are {form} already; allowed: a checkpoint of floats")


def _convert(opened, writer: ArrayWriter, summed: dict, dtype: str, progress: Progress, tensor: table.Tensor):
    """Writes a chunk; of a matrix that becomes int8, its error."""
    nbytes = _nbytes(opened, tensor)
    progress.start(tensor.leaf, nbytes)
    chunk = opened.read(tensor)
    error = None
    if tensor.leaf not in summed:
        if not writer.done(tensor.leaf, tensor.index):
            cast = opened.fitted(tensor, chunk, dtype) if isinstance(opened, TorchSource) else chunk.astype(dtype)
            if not np.isfinite(cast).all():
                raise CheckpointError(f"{opened.where(tensor)}: values that are not finite as {dtype}")
            writer.write(tensor.leaf, tensor.index, cast)
    else:
        values, scale = quantized(chunk, summed[tensor.leaf])
        if not np.isfinite(scale).all():
            raise CheckpointError(f"{opened.where(tensor)}: values that are not finite have no int8")
        error = Error(tensor.leaf, *tensor.index[:2], _relative(chunk, values, scale, summed[tensor.leaf]))
        for part, array in zip(PARTS, (values, scale), strict=True):
            if not writer.done(f"{tensor.leaf}/{part}", tensor.index):
                writer.write(f"{tensor.leaf}/{part}", tensor.index, array)
    progress.add(nbytes)
    return error


def _relative(chunk, values, scale, summed) -> float:
    wide = chunk.astype(np.float32)
    unit = np.float32(2.0) ** (
        np.frexp(np.abs(wide).max())[1] - 1
    )  # a power of two: squares neither overflow nor vanish
    wide /= unit
    off = wide - values.astype(np.float32) * np.expand_dims(scale / unit, summed)
    norm = float(np.linalg.norm(wide))
    return float(np.linalg.norm(off)) / norm if norm else 0.0


def _worst(errors: list[Error]) -> list[Error]:
    worst: dict[tuple, Error] = {}
    for error in errors:
        old = worst.setdefault(error[:3], error)
        if error.relative > old.relative:
            worst[error[:3]] = error
    return sorted(worst.values())


def _leaves(config: Config, dtype: str) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """What the writer is told of every leaf."""
    abstract = abstract_weights(config)
    kinds = {f"{path}/{part}": kind for path in matrices(config) for part, kind in zip(PARTS, KINDS, strict=True)}
    shapes = zip(leaf_paths(abstract), jax.tree.leaves(abstract), leaf_stacks(abstract), strict=True)
    return {path: (leaf.shape, kinds.get(path, dtype), stack) for path, leaf, stack in shapes}


def _nbytes(opened, tensor: table.Tensor) -> int:
    return table.num_elements(tensor) * np.dtype(opened.dtype).itemsize


def _plan(opened, target: pathlib.Path, leaves) -> Plan:
    bytes_in = sum(_nbytes(opened, tensor) for tensor in opened.tensors)
    bytes_out = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind, _ in leaves.values())
    return Plan(tensors=len(opened.tensors), bytes_in=bytes_in, bytes_out=bytes_out, bytes_done=0, target=target)


def _meta(opened) -> dict:
    """Of a run, what it was trained on, which says its tokenizer."""
    if not isinstance(opened, CheckpointSource):
        return {}
    return {key: value for key, value in opened.checkpoint.manifest.meta.items() if key == "data"}


def lines(errors: list[Error], layers: list) -> list[str]:
    """Lines for a screen: the matrices of each leaf, then the layers that were run (`int8_layers.Layer`)."""
    by_leaf: dict[str, list[float]] = {}
    for error in errors:
        by_leaf.setdefault(error.leaf, []).append(error.relative)
    said = [
        f"{leaf}: off by {min(x):.2e} to {max(x):.2e} of the norm in {len(x)} layers" for leaf, x in by_leaf.items()
    ]
    for number, layer in enumerate(layers):
        equal, own = (f"{100 * share:.2f} %" for share in (layer.same_inputs, layer.own_inputs))
        routed = f"routers agree in {equal} on equal inputs, in {own} on their own"
        said.append(f"layer {number}: output off by {layer.output:.2e}; {routed}")
    return said


def write_report(path: pathlib.Path, errors: list[Error], layers: list) -> None:
    """All of it as JSON."""
    plain = {"matrices": [x._asdict() for x in errors], "layers": [x._asdict() for x in layers]}
    write(path, (json.dumps(plain, indent=1) + "\n").encode())
