"""The decay buffers of transformers' native checkpoints: made anew on export, compared and dropped on import.

    slope_rate     2^(-8 (h+1)/N) * (1 - l/(L-1+1e-5) + 1e-5)           (N, 1, 1)
    query_decay    exp(-slope i),  key_decay  exp(-slope (B - i))       (N, B, 1)    i = 1 ... B
    diagonal_decay exp(-slope (i - j)) where i >= j, else 0             (1, N, B, B)

This is native's own formula: its 1e-5 stands in another place than in the released code, a relative 1e-5
(docs/model.md D3). transformers evaluates it in float32 or, under `from_pretrained(dtype=bfloat16)`, with every step in
bfloat16 (D4).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mm01_jax.config import ModelConfig
from mm01_jax.convert import table

PARTS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
_TOLERANCE_ULPS = 4  # exp and pow of two libraries, at the end of three rounded steps


class Buffer(NamedTuple):
    """One persistent buffer: its name without a dialect's prefix, layer, part and shape."""

    name: str
    layer: int
    part: str
    shape: tuple[int, ...]


def buffers(model: ModelConfig, block: int) -> Iterator[Buffer]:
    """The four buffers of every lightning layer."""
    N = model.num_heads
    shapes = dict(zip(PARTS, ((N, 1, 1), (N, block, 1), (N, block, 1), (1, N, block, block)), strict=True))
    for layer in range(model.num_layers):
        if table.mixer(model, layer).decays:
            for part, shape in shapes.items():
                yield Buffer(f"model.layers.{layer}.self_attn.{part}", layer, part, shape)


def value(buffer: Buffer, model: ModelConfig, step_dtype: str = "float32") -> np.ndarray:
    """float32 value of a buffer, every step rounded to `step_dtype`."""
    heads = [_of_head(buffer, model, head, step_dtype) for head in range(model.num_heads)]
    return np.concatenate(heads, axis=1 if buffer.part == "diagonal_decay" else 0)


def _of_head(buffer: Buffer, model: ModelConfig, head: int, step_dtype: str) -> np.ndarray:
    step = _rounding(step_dtype)
    N = model.num_heads
    heads = np.arange(1, N + 1, dtype=np.float32)
    factor = 1 - buffer.layer / (model.num_layers - 1 + 1e-5) + 1e-5
    base = np.float32(1 / 2 ** (8 / N))
    slope = step(step(base**heads) * np.float32(factor))[head : head + 1, None, None]
    if buffer.part == "slope_rate":
        return slope
    block = buffer.shape[-2]
    i = np.arange(1, block + 1, dtype=np.float32)[:, None]
    if buffer.part == "query_decay":
        return step(np.exp(step(-slope * i)))
    if buffer.part == "key_decay":
        return step(np.exp(step(-slope * (block - i))))
    distance = i - i.T
    return np.where(distance >= 0, step(np.exp(step(-slope * np.maximum(distance, 0)))), np.float32(0))[None]


def _rounding(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    if dtype == "float32":
        return lambda x: x.astype(np.float32)
    return lambda x: x.astype(dtype).astype(np.float32)


def heads(buffer: Buffer) -> Iterator[tuple[slice, ...]]:
    """The part of a buffer that is each head's: a diagonal of all heads together may have gigabytes."""
    before = (slice(0, 1),) if buffer.part == "diagonal_decay" else ()
    for head in range(buffer.shape[len(before)]):
        yield (*before, slice(head, head + 1))


def problem(buffer: Buffer, stored: Iterable[np.ndarray], model: ModelConfig) -> str | None:
    """Why a stored buffer is not what native computes for this model, in float32 or in the buffer's own dtype.

    Args:
      stored: its `heads`, of which none is read after the first that is another model's.
    """
    far: dict[str, tuple[float, str]] = {}
    for head, part in enumerate(stored):
        step_dtypes = {"float32", part.dtype.name}
        for step_dtype in step_dtypes - far.keys():
            worst, said = _difference(buffer, head, part, _of_head(buffer, model, head, step_dtype))
            if not worst <= _TOLERANCE_ULPS:
                far[step_dtype] = worst, said
        if far.keys() == step_dtypes:
            return min(far.values())[1]
    return None


def _difference(buffer: Buffer, head: int, stored: np.ndarray, want: np.ndarray) -> tuple[float, str]:
    """The largest, in units of the last place, and where it is."""
    got = stored.astype(np.float32)
    ulp = np.maximum(np.abs(want), np.float32(2**-100)) * float(ml_dtypes.finfo(stored.dtype).eps)
    # A NaN is no smaller than any bound: it counts as infinitely far.
    far = np.nan_to_num(np.abs(got - want) / ulp, nan=np.inf, posinf=np.inf)
    at = tuple(map(int, np.unravel_index(int(far.argmax()), far.shape)))
    place = (0, head, *at[2:]) if buffer.part == "diagonal_decay" else (head, *at[1:])
    return float(far.max()), f"{place} is {got[at]:.8g}, the decay of layer {buffer.layer} is {want[at]:.8g}"
