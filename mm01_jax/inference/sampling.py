"""From logits to the next token, each row by settings of its own: they are arrays, so one program serves them all.

In this order: ids that may not come are -inf; the bias is added; the repetition penalty divides positive and multiplies
negative logits of ids that the prompt or the answer has; the frequency and presence penalties are subtracted for ids of
the answer; then temperature, top-k, top-p of what is left, min-p against the most likely.

A row's n-th new token is drawn with its seed and n alone: the same request gets the same tokens in any batch and slot.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax.inference import cuts
from mm01_jax.inference.likeliest import likeliest
from mm01_jax.model.deterministic import NUMBERS, filled, real
from pallas_kernels import dispatch

_TINY = float(jnp.finfo(jnp.float32).tiny)
MOST_BIASES = 300  # entries of `logit_bias`: the width of a table that every step adds
SORTED = ("gpu",)  # where the vocabulary of 128 rows is sorted in half a millisecond
_ABOVE_ZERO = np.finfo(np.float32).smallest_normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose. Temperature 0 is greedy; the other defaults change nothing.

    top_k: among so many most likely tokens, 0: all. top_p: among the fewest that hold this probability together.
    min_p: among those with at least this part of the most likely token's probability.
    repetition_penalty: above 1 against ids of the prompt and the answer. presence_penalty, frequency_penalty: taken off
    the logits of ids that the answer has, once, and once for every time. logit_bias: id -> what its logit gets more.

    Raises:
      ValueError: a value out of range, named.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        def check(name: str, allowed: str, fits: bool):
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {allowed}")

        for field in dataclasses.fields(self):  # NumPy's numbers compare in their own few bits
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            check(name, "a number", _is_number(getattr(self, name)))
        check("temperature", "0 (greedy) or a positive number up to 1000000", 0.0 <= self.temperature <= 1e6)
        check("top_k", "0 (all tokens) or a positive count", _is_whole(self.top_k) and self.top_k >= 0)
        check("top_p", "above 0 and at most 1", 0.0 < self.top_p <= 1.0)
        check("min_p", "at least 0 and at most 1", 0.0 <= self.min_p <= 1.0)
        check("repetition_penalty", "a positive number", _ABOVE_ZERO <= self.repetition_penalty <= 1e6)
        for name in ("presence_penalty", "frequency_penalty"):
            check(name, "a number from -1000000 to 1000000", abs(getattr(self, name)) <= 1e6)
        self._check_bias()

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias={self.logit_bias!r} must be a mapping of token ids to numbers")
        if len(self.logit_bias) > MOST_BIASES:
            raise ValueError(f"logit_bias has {len(self.logit_bias)} ids; allowed are at most {MOST_BIASES}")
        for token, bias in self.logit_bias.items():
            if not _is_whole(token) or not 0 <= token < 2**31:
                raise ValueError(f"logit_bias has the id {token!r}; allowed are whole numbers from 0 on")
            if not _is_number(bias) or not abs(float(bias)) <= 1e6:
                raise ValueError(f"logit_bias[{token}]={bias!r} must be a number from -1000000 to 1000000")
        object.__setattr__(self, "logit_bias", {int(token): float(bias) for token, bias in self.logit_bias.items()})


def check_seed(seed: int) -> int:
    """The seed; ValueError where it is none."""
    if not _is_whole(seed) or not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed!r} must be a whole number from 0 to 2^64 - 1")
    return int(seed)


def seed_of_sample(seed: int, number: int) -> int:
    """The seed of the number-th of several answers to one request; the first has the request's own."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def _is_whole(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


class Rows(NamedTuple):
    """The settings of B rows, an array each (made by `rows`)."""

    seed_B2: jax.Array  # uint32: high and low half
    scale_B: jax.Array  # float32: 1 / temperature, 0 is greedy
    top_k_B: jax.Array  # int32
    top_p_B: jax.Array  # float32, as are the next four
    min_p_B: jax.Array
    repetition_B: jax.Array
    presence_B: jax.Array
    frequency_B: jax.Array
    bias_id_BK: jax.Array  # int32, 2^31 - 1 where there is none
    bias_BK: jax.Array  # float32


def rows(samplings: Sequence[Sampling], seeds: Sequence[int]) -> Rows:
    """NumPy arrays of the settings and seeds of some rows."""

    def numbers(name: str) -> np.ndarray:
        return np.array([getattr(sampling, name) for sampling in samplings], np.float32)

    ids = np.full((len(samplings), MOST_BIASES), 2**31 - 1, np.int32)
    biases = np.zeros(ids.shape, np.float32)
    for row, sampling in enumerate(samplings):
        count = len(sampling.logit_bias)
        ids[row, :count], biases[row, :count] = [*sampling.logit_bias], [*sampling.logit_bias.values()]
    # Below the smallest float32 a temperature would be 0 on the device.
    temperatures = [max(sampling.temperature, _TINY) if sampling.temperature else math.inf for sampling in samplings]
    return Rows(
        np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32).reshape(-1, 2),
        np.float32(1) / np.array(temperatures, np.float32),
        np.array([min(sampling.top_k, 2**31 - 1) for sampling in samplings], np.int32),
        np.maximum(numbers("top_p"), _TINY),
        *map(numbers, ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")),
        ids,
        biases,
    )


def has_cuts(sampling: Sampling) -> bool:
    """Whether a row draws among the likeliest alone, by their number or what they hold together."""
    return sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1.0)


def are_plain(samplings: Sequence[Sampling]) -> bool:
    """Whether every row takes its likeliest token as it is: then `sample` needs no settings, and nothing is counted."""
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "temperature": 0.0}
    return all(
        not sampling.logit_bias and all(getattr(sampling, name) == value for name, value in neutral.items())
        for sampling in samplings
    )


class History(NamedTuple):
    """Which ids rows have so far: prompt_BV bool, of the prompt; count_BV int32, how often in the answer."""

    prompt_BV: jax.Array
    count_BV: jax.Array


def empty_history(batch_size: int, vocab_size: int) -> History:
    shape = (batch_size, vocab_size)
    return History(jnp.zeros(shape, jnp.bool_), jnp.zeros(shape, jnp.int32))


def with_prompt(history: History, tokens_BS: jax.Array, count_B: jax.Array) -> History:
    """The history with the first `count_B` tokens of each row in its prompt."""
    B, S = tokens_BS.shape
    ids_BS = jnp.where(jnp.arange(S)[None, :] < count_B[:, None], tokens_BS, history.prompt_BV.shape[1])
    return history._replace(prompt_BV=history.prompt_BV.at[jnp.arange(B)[:, None], ids_BS].set(True, mode="drop"))


def with_token(history: History, token_B: jax.Array, active_B: jax.Array) -> History:
    """The history with one more token of the answer in every active row."""
    rows_B = jnp.arange(len(token_B))
    count_BV = history.count_BV.at[rows_B, token_B].add(active_B.astype(jnp.int32), mode="drop")
    return history._replace(count_BV=count_BV)


def sample(
    logits_BV: jax.Array,
    rows: Rows | None,
    history: History,
    number_B: jax.Array,
    allowed_V: jax.Array,
    mask_BW: jax.Array | None = None,
    *,
    cut: bool = True,
) -> jax.Array:
    """The next token (B,) int32 of each row.

    Args:
      logits_BV: float32. rows: None where all `are_plain`: the same bits for less.
      number_B: int32, how many new tokens the row has.
      allowed_V: bool; ids that no text has (rows of the table beyond the tokenizer) are never chosen. Their untrained
        logits can win otherwise, and decode to nothing (model.md A.7).
      mask_BW: uint32 (B, ceil(V / 32)), bit i of word w is id 32 w + i: what a grammar lets a row say now, at least
        one id of `allowed_V`.
      cut: False where no row `has_cuts`: the same bits without a branch, at which the host of a GPU waits.
    """
    penalised_BV = logits_BV if rows is None else _penalised(logits_BV, rows, history)
    adjusted_BV = jnp.where(allowed_V[None, :], penalised_BV, -jnp.inf)
    if mask_BW is not None:
        adjusted_BV = jnp.where(unpacked(mask_BW, adjusted_BV.shape[1]), adjusted_BV, -jnp.inf)
    greedy_B = jnp.argmax(adjusted_BV, axis=-1).astype(jnp.int32)
    if rows is None:
        return greedy_B
    drawing_B = rows.scale_B > 0
    if not cut:
        return jnp.where(drawing_B, _drawn(adjusted_BV, rows, number_B, cut=False), greedy_B)
    # Branches, so that a batch without a row that draws or cuts does not pay for it; their results are the same bits.
    drawn_B = jax.lax.cond(jnp.any(drawing_B), _drawn, lambda *_: greedy_B, adjusted_BV, rows, number_B)
    return jnp.where(drawing_B, drawn_B, greedy_B)


def log_probabilities(
    logits_BV: jax.Array, token_B: jax.Array, allowed_V: jax.Array, top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the model says before any setting: (of token_B (B,), the `top` likeliest ids (B, top), theirs).

    float32 nats over the whole vocabulary, as the losses of training and evaluation are; only ids that may be chosen
    are among the likeliest. A token has the same bits in both places, and in a batch of any size.
    """
    B, V = logits_BV.shape
    total_B1 = real(jax.nn.logsumexp(filled(logits_BV[None], -(-NUMBERS // V)), axis=-1)[..., None], B)[0]
    told = jnp.where(allowed_V[None, :], logits_BV, -jnp.inf)
    greatest = likeliest if dispatch.platform() in SORTED else jax.lax.top_k
    best_BT, ids_BT = greatest(told, top) if top else (told[:, :0], jnp.zeros((B, 0), jnp.int32))
    chosen_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
    return (chosen_B1 - total_B1)[:, 0], ids_BT, best_BT - total_B1


def unpacked(mask_BW: jax.Array, vocab_size: int) -> jax.Array:
    """bool (B, V) of a mask in bits."""
    bits = (mask_BW[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]) & jnp.uint32(1)
    return bits.reshape(mask_BW.shape[0], -1)[:, :vocab_size].astype(jnp.bool_)


def _penalised(logits_BV, rows: Rows, history: History):
    """Neutral settings leave the bits of a logit as they are."""
    batch_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    logits_BV = logits_BV.at[batch_B1, rows.bias_id_BK].add(rows.bias_BK, mode="drop")
    seen_BV = history.prompt_BV | (history.count_BV > 0)
    penalty_B1 = rows.repetition_B[:, None]
    repeated_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    logits_BV = jnp.where(seen_BV, repeated_BV, logits_BV)
    logits_BV -= rows.frequency_B[:, None] * history.count_BV.astype(jnp.float32)
    return logits_BV - rows.presence_B[:, None] * (history.count_BV > 0).astype(jnp.float32)


def _drawn(logits_BV, rows: Rows, number_B, *, cut: bool = True):
    # The largest logit being 0, no product with 1 / temperature is +inf.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) * rows.scale_B[:, None]
    lowest_B = jnp.full(logits_BV.shape[:1], -jnp.inf, logits_BV.dtype)
    if cut:
        cuts_B = (rows.scale_B > 0) & ((rows.top_k_B > 0) | (rows.top_p_B < 1.0))
        least_kept = _least_of_sorted if dispatch.platform() in SORTED else cuts.least_kept
        told = logits_BV, rows.top_k_B, rows.top_p_B
        lowest_B = jax.lax.cond(jnp.any(cuts_B), least_kept, lambda *_: lowest_B, *told)
    lowest_B = jnp.maximum(lowest_B, jnp.log(rows.min_p_B))  # the likeliest has logit 0
    logits_BV = jnp.where(logits_BV >= lowest_B[:, None], logits_BV, -jnp.inf)

    def draw(seed_2, number, logits_V):
        key = jax.random.fold_in(jax.random.wrap_key_data(seed_2, impl="threefry2x32"), number)
        return jax.random.categorical(key, logits_V)

    return jax.vmap(draw)(rows.seed_B2, number_B, logits_BV).astype(jnp.int32)


def _least_of_sorted(logits_BV, top_k_B, top_p_B):
    """As `cuts.least_kept`."""
    V = logits_BV.shape[1]
    ordered_BV = jax.lax.top_k(logits_BV, V)[0]
    last_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V) - 1
    kth_B1 = jnp.take_along_axis(ordered_BV, last_B[:, None], axis=1)
    among_BV, top_p_B1 = ordered_BV >= kth_B1, top_p_B[:, None]
    probability_BV = jax.nn.softmax(jnp.where(among_BV, ordered_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    # Where everything is kept no rounding of a sum may cut the last.
    keeps_BV = among_BV & ((before_BV < top_p_B1) | (top_p_B1 >= 1.0))
    return jnp.min(jnp.where(keeps_BV, ordered_BV, jnp.inf), axis=-1)
