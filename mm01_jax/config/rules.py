"""What a valid config obeys: the range of each value, and what values ask of each other.

`check` reports every broken rule at once. The mesh has its own page, `mesh.py`: its rules (`schema.Rules`) and what
they divide.
"""

import dataclasses
import math
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mm01_jax.config import Change, Config, ConfigError, MixerKind, Problem, fields
from mm01_jax.config.causes import named_once
from mm01_jax.config.mesh import CROSS_RULES, axis_problems, nearest_divisor

INT32_MAX = 2**31 - 1  # steps, positions and token ids are int32 on device
BYTES_VOCABULARY = 257  # the bytes and one end of document


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
_WHOLE, _NUMBER = Range(least=1, most=INT32_MAX), Range(above=0.0)
_RANGES = {
    **dict.fromkeys(
        ("data.seed", "data.max_bad_records", "data.prefetch", "optimizer.schedule.warmup_steps", "train.seed"),
        Range(least=0, most=INT32_MAX),
    ),
    **dict.fromkeys(
        (
            "model.lightning_beta",
            "model.softmax_beta",
            "model.experts_beta",
            "optimizer.weight_decay",
            "train.balance_coef",
            "train.z_loss_coef",
        ),
        Range(least=0.0),
    ),
    **dict.fromkeys(("optimizer.b1", "optimizer.b2"), Range(least=0.0, below=1.0)),
    "data.held_out": Range(least=0.0, below=1.0),
    "compute.dropless_bound": Range(least=1.0),
    "model.rotary_dim": Range(least=2, most=INT32_MAX),
}


def check(config: Config) -> Config:
    """The config itself when it is valid; else raises ConfigError with every problem."""
    broken = problems(config)
    if broken:
        raise ConfigError(broken)
    return config


def problems(config: Config, unread: Iterable[str] = ()) -> list[Problem]:
    """Every problem of a config, each cause once (`causes`).

    A rule about several values is judged when each of them is right by itself, and none is among the keys `unread`,
    whose values could not be read.
    """
    if type(config) is not Config:
        return [Problem(key="config", got=config, allowed="a Config", nearest="get_config() returns Config(...)")]
    broken = list(fields.type_problems(config))
    wrong_type = {problem.key for problem in broken}
    for key, annotation in fields.leaf_types().items():
        if not _concerned(key, wrong_type):
            value = fields.get(config, key)
            broken += _range_problems(key, annotation, value)
            broken += _text_problems(key, value)
            if key.startswith("mesh.rules."):
                broken += axis_problems(key, value)
    wrong = {problem.key for problem in broken} | set(unread)
    right = [rule for keys, rule in (*_CROSS_RULES, *CROSS_RULES) if not any(_concerned(key, wrong) for key in keys)]
    return broken + named_once(config, lambda other: [problem for rule in right for problem in rule(other)])


def _concerned(key: str, wrong: set[str]) -> bool:
    """Whether a key, a section above it or a leaf below it is among the wrong ones."""
    return any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in wrong)


def _range_problems(key: str, annotation: Any, value: Any) -> Iterator[Problem]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    whole = fields.fits(1, annotation) and not fields.fits(1.5, annotation)
    allowed = _RANGES.get(key, _WHOLE if whole else _NUMBER)
    if value not in allowed:
        words = "a whole number" if whole else "a finite number"
        yield Problem(key=key, got=value, allowed=f"{words} {allowed}", nearest=_nearest_number(key, value, allowed))


def _nearest_number(key: str, value: float, allowed: Range) -> str:
    """The bound that was crossed when it is a limit of ours and allowed, else the field's default."""
    clamped = min(max(value, allowed.least), allowed.most)
    if clamped in allowed and abs(clamped) < sys.float_info.max:
        return repr(clamped)
    return fields.default_text(key)


def _text_problems(key: str, value: Any) -> Iterator[Problem]:
    if isinstance(value, str) and not (value.strip() and value.isprintable()):
        allowed = "text that is not empty and has no control characters"
        yield Problem(key=key, got=value, allowed=allowed, nearest=fields.nearest_value(key, None, str))
    elif key == "name" and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        allowed = "letters, digits, '.', '_', '-', the first a letter or digit"
        yield Problem(key=key, got=value, allowed=allowed, nearest=re.sub(r"[^A-Za-z0-9]+", "_", value).strip("_"))


def _heads(config: Config) -> Iterator[Problem]:
    heads, kv_heads = config.model.num_heads, config.model.num_kv_heads
    if heads % kv_heads:
        allowed = f"a divisor of model.num_heads={heads}"
        nearest = str(nearest_divisor(heads, kv_heads))
        multiples = (max(1, heads // kv_heads) * kv_heads, (heads // kv_heads + 1) * kv_heads)
        changes = (
            Change(key="model.num_heads", value=n, allowed=f"a multiple of model.num_kv_heads={kv_heads}")
            for n in multiples
        )
        yield Problem(key="model.num_kv_heads", got=kv_heads, allowed=allowed, nearest=nearest, changes=tuple(changes))


def _rotary_dim(config: Config) -> Iterator[Problem]:
    rotary_dim, head_dim = config.model.rotary_dim, config.model.head_dim
    if rotary_dim % 2 or rotary_dim > head_dim:
        most = head_dim - head_dim % 2
        allowed = f"an even number <= model.head_dim={head_dim}"
        yield Problem(
            key="model.rotary_dim", got=rotary_dim, allowed=allowed, nearest=str(min(rotary_dim - rotary_dim % 2, most))
        )


def _top_k(config: Config) -> Iterator[Problem]:
    experts, chosen = config.model.num_experts, config.model.num_experts_per_token
    if chosen > experts:
        allowed = f"at most model.num_experts={experts}"
        change = Change(key="model.num_experts", value=chosen, allowed=f"at least model.num_experts_per_token={chosen}")
        yield Problem(
            key="model.num_experts_per_token", got=chosen, allowed=allowed, nearest=str(experts), changes=(change,)
        )


def _period(config: Config) -> Iterator[Problem]:
    if not config.model.period:
        kinds = typing.get_args(MixerKind)
        allowed = f"at least one layer, {' or '.join(map(repr, kinds))}"
        yield Problem(key="model.period", got=(), allowed=allowed, nearest=repr(kinds[:1]))


def _vision(config: Config) -> Iterator[Problem]:
    vision, vocab_size = config.vision, config.model.vocab_size
    if vision is None:
        return
    for key in ("embed_dim", "num_layers", "num_heads", "mlp_dim", "image_size", "patch_size"):
        if getattr(vision, key) not in _WHOLE:
            got = getattr(vision, key)
            yield Problem(key=f"vision.{key}", got=got, allowed=f"a whole number {_WHOLE}", nearest="1")
            return
    for key, part in (("embed_dim", "num_heads"), ("image_size", "patch_size")):
        whole, parts = getattr(vision, key), getattr(vision, part)
        if whole % parts:
            allowed = f"a divisor of vision.{key}={whole}"
            yield Problem(key=f"vision.{part}", got=parts, allowed=allowed, nearest=str(nearest_divisor(whole, parts)))
    if not vision.grids or any(count < 1 for grid in vision.grids for count in grid):
        allowed = "(columns, rows) of tiles, each at least 1"
        yield Problem(key="vision.grids", got=vision.grids, allowed=allowed, nearest="((1, 1),)")
    if not 0 <= vision.image_token < vocab_size:
        allowed = f"0 to {vocab_size - 1} (model.vocab_size={vocab_size})"
        yield Problem(key="vision.image_token", got=vision.image_token, allowed=allowed, nearest=str(vocab_size - 1))


def _dropless_bound(config: Config) -> Iterator[Problem]:
    if config.model.routing == "capacity" and config.compute.dropless_bound is not None:
        bound = config.compute.dropless_bound
        allowed = "None, as model.routing='capacity' is bounded by model.capacity_factor"
        yield Problem(key="compute.dropless_bound", got=bound, allowed=allowed, nearest="None")


def _tokenizer(config: Config) -> Iterator[Problem]:
    if config.data.tokenizer == "bytes" and config.model.vocab_size < BYTES_VOCABULARY:
        allowed = f"at least {BYTES_VOCABULARY} for data.tokenizer='bytes' (256 bytes and the end of a document)"
        got = config.model.vocab_size
        yield Problem(key="model.vocab_size", got=got, allowed=allowed, nearest=str(BYTES_VOCABULARY))
    if config.data.tokenizer != "bytes" and not config.data.tokenizer.endswith(".json"):
        allowed = "'bytes' or the path of a tokenizer.json"
        yield Problem(key="data.tokenizer", got=config.data.tokenizer, allowed=allowed, nearest="'bytes'")


def _source(config: Config) -> Iterator[Problem]:
    source = config.data.source
    # A bare word is far more often a mistyped 'stdlib' than a folder; whether a path exists is for the data set to say.
    if source != "stdlib" and not any(mark in source for mark in ("/", "*", ".txt", ".jsonl", ".arrayrecord")):
        allowed = f"'stdlib', or a path, folder (./{source}) or glob of .txt, .jsonl or .arrayrecord files"
        yield Problem(key="data.source", got=source, allowed=allowed, nearest="'stdlib'")


def _records(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.source == "stdlib" and data.records == "conversations":
        yield Problem(key="data.records", got=data.records, allowed="'text' of 'stdlib'", nearest="'text'")
    if data.mixed_in is not None and data.records == "text":
        yield Problem(key="data.mixed_in", got=data.mixed_in, allowed="None, as data.records='text'", nearest="None")


def _needs_vision(config: Config) -> Iterator[Problem]:
    if config.vision is None:
        for key, allowed in (("optimizer.frozen", ()), ("train.objective", "next_token")):
            if (got := fields.get(config, key)) != allowed:
                words = f"{allowed!r}, as the config has no vision"
                yield Problem(key=key, got=got, allowed=words, nearest=repr(allowed))


def _schedule_pairs(config: Config) -> Iterator[Problem]:
    schedule = config.optimizer.schedule
    for start, rate in (("step_down_at", "stepped"), ("decay_start", "final")):
        if (getattr(schedule, start) is None) != (getattr(schedule, rate) is None):
            absent, given = (start, rate) if getattr(schedule, start) is None else (rate, start)
            allowed = f"a value, as {given}={getattr(schedule, given)!r} needs it, or None for both"
            yield Problem(key=f"optimizer.schedule.{absent}", got=None, allowed=allowed, nearest=f"{given}=None")


def _schedule_order(config: Config) -> Iterator[Problem]:
    """Steps rise in the order warm-up, step down, decay; a run may end before any of them (a short try)."""
    schedule = config.optimizer.schedule
    earlier, after = schedule.warmup_steps, "warmup_steps"
    for name in ("step_down_at", "decay_start"):
        at = getattr(schedule, name)
        if at is not None and at <= earlier:
            allowed = f"more than {after}={earlier}"
            yield Problem(key=f"optimizer.schedule.{name}", got=at, allowed=allowed, nearest=str(earlier + 1))
        if at is not None:
            earlier, after = at, name


def _schedule_rates(config: Config) -> Iterator[Problem]:
    schedule = config.optimizer.schedule
    higher, before = schedule.peak, "peak"
    for name in ("stepped", "final"):
        rate = getattr(schedule, name)
        if rate is not None and rate > higher:
            allowed = f"at most {before}={higher!r}"
            yield Problem(key=f"optimizer.schedule.{name}", got=rate, allowed=allowed, nearest=repr(higher))
        if rate is not None:
            higher, before = rate, name


def _ramp(config: Config) -> Iterator[Problem]:
    ramp = config.train.batch_ramp
    steps, sizes = [0, *(step for step, _ in ramp)], [config.train.batch_size, *(size for _, size in ramp)]
    for words, rising in (("steps", steps), ("batch sizes", sizes)):
        if any(low >= high for low, high in zip(rising, rising[1:], strict=False)):
            allowed = f"(step, batch size) pairs whose {words} rise, the first above {rising[0]}"
            nearest = repr(tuple(zip(sorted(set(steps) - {0}), sorted(set(sizes) - {sizes[0]}), strict=False)))
            yield Problem(key="train.batch_ramp", got=ramp, allowed=allowed, nearest=nearest)


def _profile(config: Config) -> Iterator[Problem]:
    profile, steps = config.train.profile, config.train.steps
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", profile or "0:0")
    if profile is not None and not (match and 1 <= int(match[1]) < int(match[2]) <= steps + 1):
        allowed = f"START:STOP with 1 <= START < STOP <= {steps + 1}; STOP is not traced"
        first = min(max(int(match[1]), 1), steps) if match else 1
        yield Problem(key="train.profile", got=profile, allowed=allowed, nearest=f"{first}:{first + 1}")


_SCHEDULE = "optimizer.schedule"
_CROSS_RULES: tuple[tuple[tuple[str, ...], Callable[[Config], Iterator[Problem]]], ...] = (
    (("model.num_heads", "model.num_kv_heads"), _heads),
    (("model.rotary_dim", "model.head_dim"), _rotary_dim),
    (("model.num_experts", "model.num_experts_per_token"), _top_k),
    (("model.period",), _period),
    (("vision", "model.vocab_size"), _vision),
    (("model.routing", "compute.dropless_bound"), _dropless_bound),
    (("data.tokenizer", "model.vocab_size"), _tokenizer),
    (("data.source",), _source),
    (("data.source", "data.records", "data.mixed_in"), _records),
    (("vision", "optimizer.frozen", "train.objective"), _needs_vision),
    ((_SCHEDULE,), _schedule_pairs),
    ((_SCHEDULE, "train.steps"), _schedule_order),
    ((_SCHEDULE,), _schedule_rates),
    (("train.batch_size", "train.batch_ramp"), _ramp),
    (("train.profile", "train.steps"), _profile),
)
