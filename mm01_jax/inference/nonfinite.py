"""Where numbers first are none: in the embedding, in which layer, in the head. Asked when logits or a loss are not."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax import sharding
from mm01_jax.messages import say_once
from mm01_jax.model import decoder
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.layers import rms_norm
from mm01_jax.model.multimodal import VLModel
from mm01_jax.parallel.documents import document_ids
from pallas_kernels import dispatch

MOST_TOKENS = 8192  # of a row that are looked at
_FIRST_TOKENS = 128  # of each part of a row that are looked at before: what is wrong with a weight shows at once


class NotFinite(Exception):
    """Logits or a loss are not finite; the message says in which layer that began. The weights are bad, or too large
    for the dtype they are computed in.
    """

    exit_code = 3


def report(model: TextModel | VLModel, tokens_BS: np.ndarray, segments_BS: np.ndarray) -> NoReturn:
    """Raises NotFinite, after a walk through the layers with these rows, of which images are left out.

    Every process of the mesh calls it alike.

    Args:
      tokens_BS: whole numbers. segments_BS: of documents, < 0 is padding. B is a multiple of the shards of `batch`, and
        S of those of `seq`.
    """
    text = model.text if isinstance(model, VLModel) else model
    dtype = text.compute.dtype
    if jax.process_index() == 0:
        say_once("numbers are not finite: looking for the layer in which that begins")
    with jax.set_mesh(sharding.mesh_of(model)):
        first = _FIRST_TOKENS * _shards(model)[1]
        counts = sorted({min(count, tokens_BS.shape[1]) for count in (first, MOST_TOKENS)})
        places = (_walk(text, tokens_BS[:, :count], segments_BS[:, :count]) for count in counts)
        place = next(filter(None, places), None)
    found = place or f"in none of the layers, of the first {MOST_TOKENS} tokens"
    raise NotFinite(
        f"the logits are not finite: numbers first are none {found}. Computed in {dtype}; weights that are sound in a "
        "wider dtype may be too large for it (--dtype=float32), others are damaged (mm01-convert check --check-finite)"
    )


def report_texts(model: TextModel | VLModel, texts: Sequence[Sequence[int]]) -> NoReturn:
    """The same for texts of ids (prompts and answers), after which logits were no numbers."""
    sizes = zip((len(texts), max(map(len, texts))), _shards(model), strict=True)
    shape = [-(-count // of) * of for count, of in sizes]
    tokens, segments = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], segments[row, : len(text)] = text, 0
    report(model, tokens, segments)


def _shards(model: TextModel | VLModel) -> list[int]:
    """Of rows, and of a row."""
    mesh, rules = sharding.mesh_of(model), model.rules
    return [math.prod(mesh.shape[axis] for axis in axes) for axes in (rules.batch, rules.seq)]


def _walk(text: TextModel, tokens_BS: np.ndarray, segments_BS: np.ndarray) -> str | None:
    """The first place and token of a value that is not finite, in words."""
    rules = text.rules
    tokens, segments = (sharding.put(np.asarray(x, np.int32), rules, "batch", "seq") for x in (tokens_BS, segments_BS))
    places = np.broadcast_to(np.arange(tokens_BS.shape[1], dtype=np.int32), tokens_BS.shape)
    positions = sharding.put(places, rules, "batch", "seq")
    h = _compiled(TextModel.embed_tokens)(text, tokens)
    if at := _first(h, segments):
        return f"in the embedding, {at}"
    number, slopes = 0, jax.device_get(text.slopes())
    for period in range(text.config.num_periods):
        for (kind, count), stack, slope_MnN in zip(text.config.stacks, text.stacks, slopes, strict=True):
            for index in range(count):
                h = _compiled(_layer)(stack, h, slope_MnN[period, index], positions, segments, (period, index))
                if at := _first(h, segments):
                    return f"in layer {number} ({kind}), {at}"
                number += 1
    norm = _compiled(_final_norm)(text, h)
    if at := _first(norm, segments):
        return f"in the final norm, {at}"
    logits = _compiled(TextModel.logits)(text, norm)
    return f"in the head, {at}" if (at := _first(logits, segments)) else None


@functools.cache
def _compiled(function: Callable) -> Callable:
    """jax.jit; on a processor compiling it well takes longer than running it."""
    quick = {"xla_backend_optimization_level": "0"} if dispatch.platform() == "cpu" else None
    return jax.jit(function, compiler_options=quick)


def _final_norm(text: TextModel, h: jax.Array) -> jax.Array:
    return rms_norm(h, text.final_norm[...].astype(h.dtype), text.config.norm_eps)


def _layer(stack, h, slope_N, positions, segments, place: tuple[jax.Array, jax.Array]):
    """One layer of a stack, without a cache: one program for all of a kind."""
    documents = document_ids(segments, rules=stack.rules, layout="contiguous")
    layer = jax.tree.map(lambda weight: weight[place], stack)
    return decoder._one_layer("contiguous", (slope_N, positions, documents), h, layer)[0]


def _first(x_BSD: jax.Array, segments_BS: jax.Array) -> str | None:
    """The first token whose values are not all finite, in words; padding is left out."""
    bad_BS = np.asarray(_compiled(_bad)(x_BSD, segments_BS))
    if not bad_BS.any():
        return None
    row, at = np.unravel_index(np.argmax(bad_BS), bad_BS.shape)
    return f"at token {at} of row {row}"


def _bad(x_BSD: jax.Array, segments_BS: jax.Array) -> jax.Array:
    bad_BS = ~jnp.isfinite(x_BSD).all(axis=-1) & (segments_BS >= 0)
    return jax.lax.with_sharding_constraint(bad_BS, jax.P())
