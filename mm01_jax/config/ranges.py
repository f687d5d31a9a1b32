"""The range of every number of a config, by what it means: what lies in it is computed with, in float32 and int32."""

import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any

from mm01_jax.config import Problem, fields

INT32_MAX = 2**31 - 1  # steps, positions and token ids are int32 on device
_LEAST = 1e-30  # of what must be above 0: float32 divides by it, and its square root is a number
_MOST = 1e6  # of a factor in front of activations or losses, beyond which bfloat16 sees nothing else


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Allowed numbers; `above` and `below` are exclusive, `least` and `most` inclusive."""

    least: float = -sys.float_info.max
    most: float = sys.float_info.max
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below  # never true of NaN

    def __str__(self) -> str:
        signs = ((">=", self.least), (">", self.above), ("<=", self.most), ("<", self.below))
        return " and ".join(f"{sign} {bound:.10g}" for sign, bound in signs if abs(bound) < sys.float_info.max)


# A whole number is at least 1 and a number is above 0, but for these.
_WHOLE, _NUMBER = Range(least=1, most=INT32_MAX), Range(least=_LEAST, most=_MOST)
_FROM_ZERO, _FACTOR = Range(least=0, most=INT32_MAX), Range(least=0.0, most=_MOST)
_EPSILON = Range(least=_LEAST, most=1.0)
# An Adam step moves a weight by about the rate, and weights are about 1: beyond it a step replaces the model.
_RATE = Range(least=_LEAST, most=1.0)
_RANGES = {
    "model.rope_theta": Range(least=1.0, most=1e15),
    "model.norm_eps": _EPSILON,
    "model.lightning_norm_eps": _EPSILON,
    "vision.norm_eps": _EPSILON,
    "model.rotary_dim": Range(least=2, most=INT32_MAX),
    "model.lightning_beta": _FACTOR,
    "model.softmax_beta": _FACTOR,
    "model.experts_beta": _FACTOR,
    "compute.dropless_bound": Range(least=1.0, most=_MOST),
    "compute.dropless_shard_bound": Range(least=1.0, most=_MOST),
    "compute.exchange_groups": Range(least=1, most=8),  # each layer's program has all of them, one after another
    "data.held_out": Range(least=0.0, below=1.0),
    "data.seed": _FROM_ZERO,
    "data.max_bad_records": _FROM_ZERO,
    "data.prefetch": Range(least=0, most=1024),
    "optimizer.schedule.peak": _RATE,
    "optimizer.schedule.stepped": _RATE,
    "optimizer.schedule.final": _RATE,
    "optimizer.schedule.warmup_steps": _FROM_ZERO,
    "optimizer.b1": Range(least=0.0, most=1 - 2**-24),  # the last float32 below 1
    "optimizer.b2": Range(least=0.0, most=1 - 2**-24),
    "optimizer.eps": _EPSILON,
    "optimizer.weight_decay": Range(least=0.0, most=1000.0),
    "optimizer.clip_norm": Range(least=_LEAST, most=1e30),
    "train.balance_coef": _FACTOR,
    "train.z_loss_coef": _FACTOR,
    "train.seed": _FROM_ZERO,
}


def problems(key: str, annotation: Any, value: Any) -> Iterator[Problem]:
    """What a number of the declared type is too small or too large for; nothing of what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    whole = fields.fits(1, annotation) and not fields.fits(1.5, annotation)
    allowed = _RANGES.get(key, _WHOLE if whole else _NUMBER)
    if value not in allowed:
        words = "a whole number" if whole else "a finite number"
        yield Problem(key=key, got=value, allowed=f"{words} {allowed}", nearest=_nearest(key, value, allowed))


def _nearest(key: str, value: float, allowed: Range) -> str:
    """The bound that was crossed where that is a round number, else the field's default."""
    clamped = min(max(value, allowed.least), allowed.most)
    if abs(value) < math.inf and clamped in allowed and float(clamped).is_integer() and clamped != _MOST:
        return repr(clamped)
    return fields.default_text(key)
