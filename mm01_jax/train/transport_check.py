"""Which transport an exchange uses on the mesh at hand: ragged where it is right and faster than padded, here and now.

On two H100s (jax 0.11.2) ragged was right and took 141 ms for what padded does in 0.4, and hung in one of its modes; on
CPUs XLA does not have it. So nothing is assumed: a tiny exchange is compared, values and gradients, and one as large as
training's is timed, once each, before the first step.
"""

import functools
import time
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from mm01_jax import sharding
from mm01_jax.config import Config, ConfigError, Problem
from mm01_jax.parallel.experts.exchange import Buffers
from mm01_jax.parallel.experts.transports import TRANSPORTS

TINY = (8, 128, 1.0, jnp.float32)  # rows of a buffer, width, share in use, dtype
MOST_BYTES = 2**28  # of the timed buffers on one device


def settle(config: Config, log: Callable[[str], None]) -> Literal["padded", "ragged", "gathered"]:
    """The transport for `config` on the current mesh, saying what was found. Every process calls it.

    Raises:
      ConfigError: "ragged" was asked for by name and is not right here.
    """
    axes, asked = config.mesh.rules.expert, config.compute.exchange
    if asked == "gathered":
        return asked
    if asked == "padded" or config.mesh.shards("expert") == 1:
        return "padded"
    log("trying the ragged exchange; if nothing follows it hangs: start again with --config.compute.exchange=padded")
    wrong = what_is_wrong(axes)
    if wrong and asked == "ragged":
        allowed = f"'auto' or 'padded' on this mesh: {wrong}"
        raise ConfigError([Problem(key="compute.exchange", got=asked, allowed=allowed, nearest="'padded'")])
    if wrong:
        log(f"exchange: padded ({wrong})")
        return "padded"
    if asked == "ragged":
        log("exchange: ragged (asked for, and right)")
        return "ragged"
    shape = training_shape(config)
    seconds = {name: timed(name, axes, *shape) for name in ("padded", "ragged")}
    faster = min(seconds, key=seconds.get)
    log(f"exchange: {faster} ({', '.join(f'{name} {1e3 * took:.2f} ms' for name, took in seconds.items())})")
    return faster


def what_is_wrong(axes: tuple[str, ...]) -> str | None:
    """Why ragged may not be used over these axes of the current mesh; None where it does what padded does."""
    try:
        differing = jax.device_get(_differences(axes))
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return f"ragged does not run: {str(error).splitlines()[0].partition('. ')[0][:160]}"
    for what, count in zip(("values", "gradients"), differing, strict=True):
        if count:
            return f"{int(count)} {what} of ragged are not those of padded"
    return None


def training_shape(config: Config) -> tuple[int, int, float, jnp.dtype]:
    """(rows of a buffer, width, share of them in use when experts are chosen equally often, dtype) of one group's
    exchange, rows cut to `MOST_BYTES`.
    """
    model, mesh, dtype = config.model, config.mesh, jnp.dtype(config.compute.dtype)
    own, rules = config.device_tokens // mesh.shards("act_seq", "act_batch"), sharding.of_stream(mesh.rules)
    buffers = Buffers.of(own, model, config.compute, rules, functools.partial(getattr, mesh))
    width = model.embed_dim // mesh.shards("ffn")
    used = min(1.0, buffers.tokens * model.num_experts_per_token / buffers.shards / buffers.send)
    rows = max(1, min(buffers.send, MOST_BYTES // (buffers.shards * width * dtype.itemsize)))
    return rows, width, used, dtype


def timed(name: str, axes: tuple[str, ...], rows: int, width: int, used: float, dtype) -> float:
    """Seconds of the second of two exchanges with their gradients; the slowest process's."""
    took = 0.0
    for _ in range(2):
        start = time.monotonic()
        jax.block_until_ready(_run(name, axes, (rows, width, used, dtype)))
        took = time.monotonic() - start
    return float(np.max(multihost_utils.process_allgather(np.float32(took))))


@functools.partial(jax.jit, static_argnums=0)
def _differences(axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """How many values, and gradients, of a tiny exchange differ between the transports, on all devices together."""

    def local():
        both = (_exchanged(name, axes, TINY) for name in ("ragged", "padded"))
        return tuple(lax.psum(jnp.sum(a != b), axes) for a, b in zip(*both, strict=True))

    return jax.shard_map(local, in_specs=(), out_specs=jax.P())()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(name: str, axes: tuple[str, ...], shape: tuple) -> tuple[jax.Array, jax.Array]:
    exchange = functools.partial(_exchanged, name, axes, shape)
    return jax.shard_map(exchange, in_specs=(), out_specs=jax.P(axes))()


def _exchanged(name: str, axes: tuple[str, ...], shape: tuple) -> tuple[jax.Array, jax.Array]:
    """(what this shard received, the gradient of what it sent), of whole numbers that are exact in every dtype."""
    rows, width, used, dtype = shape
    S, me = lax.axis_size(axes), lax.axis_index(axes)
    others = jnp.arange(S, dtype=jnp.int32)
    sent, received = _sizes(me, others, rows, used), _sizes(others, me, rows, used)

    def numbers(seed, sizes):
        part, row, column = (lax.broadcasted_iota(jnp.int32, (S, rows, width), axis) for axis in range(3))
        mask = row < sizes[:, None, None]
        return jnp.where(mask, (seed + 3 * part + 7 * row + column) % 61, 0).astype(dtype)

    out, back = jax.vjp(lambda x: TRANSPORTS[name](x, sent, received, axes), numbers(5 * me, sent))
    return out, *back(numbers(11 * me, received))


def _sizes(source, target, rows: int, used: float):
    """Rows that one shard sends another, about `used` of a buffer; uneven, some none."""
    share = (source * 5 + target * 3) % 4  # 0 .. 3, 1.5 on average
    return jnp.minimum((share.astype(jnp.float32) * (rows * used / 1.5)).astype(jnp.int32), rows)
