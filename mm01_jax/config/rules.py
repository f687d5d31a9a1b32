"""What a valid config obeys: what values ask of each other, beside the range of each (`ranges.py`).

`check` reports every broken rule at once. The mesh has its own page, `mesh.py`: its rules (`schema.Rules`) and what
they divide.
"""

import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mm01_jax.config import Change, Config, ConfigError, MixerKind, Problem, fields, model_sizes, ranges
from mm01_jax.config.causes import named_once
from mm01_jax.config.mesh import CROSS_RULES, axis_problems, nearest_divisor

BYTES_VOCABULARY = 257  # the bytes and one end of document
MOST_LAYERS = 10_000
MOST_STACKS = 24  # each is a part of every program, which takes 0.7 s to compile; that repeats is known as a period
MOST_TILES = 1000  # along a side of an image


def check(config: Config) -> Config:
    """The config itself when it is valid; else raises ConfigError with every problem."""
    if broken := problems(config):
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
            broken += ranges.problems(key, annotation, value)
            broken += _text_problems(key, value)
            if key.startswith("mesh.rules."):
                broken += axis_problems(key, value)
    wrong = {problem.key for problem in broken} | set(unread)
    right = [rule for keys, rule in (*_CROSS_RULES, *CROSS_RULES) if not any(_concerned(key, wrong) for key in keys)]
    return broken + named_once(config, lambda other: [problem for rule in right for problem in rule(other)])


def training_problems(config: Config) -> Iterator[Problem]:
    """What a model may be and yet not be trained as: one whose router cannot learn, one of int8."""
    model = config.model
    if (form := config.compute.quantize) != "none":
        allowed = "'none' in training: int8 matrices have no gradient; train the floats, then mm01-convert quantize"
        yield Problem(key="compute.quantize", got=form, allowed=allowed, nearest="none")
    if model.num_experts_per_token == 1 < model.num_experts and "text" not in config.optimizer.frozen:
        allowed = (
            f"2 to {model.num_experts} in training: the weights of a token's experts sum to 1, so that of one alone is "
            "always 1 and the loss teaches the router nothing"
        )
        yield Problem(key="model.num_experts_per_token", got=1, allowed=allowed, nearest="2")


def _concerned(key: str, wrong: set[str]) -> bool:
    """Whether a key, a section above it or a leaf below it is among the wrong ones."""
    return any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in wrong)


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
    model, (kind, other) = config.model, typing.get_args(MixerKind)
    most = MOST_LAYERS // max(1, len(model.period))
    if not model.period or not most or len(model.stacks) > MOST_STACKS:
        allowed = f"at least one layer, {kind!r} or {other!r}; at most {MOST_LAYERS:,}, in {MOST_STACKS} stretches"
        yield Problem(key="model.period", got=model.period, allowed=allowed, nearest=repr((kind,)))
    elif (got := model.num_periods) > most:
        yield Problem(key="model.num_periods", got=got, allowed=f"at most {most:,}", nearest=str(most))


def _vision(config: Config) -> Iterator[Problem]:
    vision, vocab_size = config.vision, config.model.vocab_size
    if vision is None:
        return
    for key in ("embed_dim", "num_layers", "num_heads", "mlp_dim", "image_size", "patch_size"):
        if broken := list(ranges.problems(f"vision.{key}", int, getattr(vision, key))):
            yield from broken
            return
    yield from ranges.problems("vision.norm_eps", float, vision.norm_eps)
    for key, part in (("embed_dim", "num_heads"), ("image_size", "patch_size")):
        whole, parts = getattr(vision, key), getattr(vision, part)
        if whole % parts:
            allowed = f"a divisor of vision.{key}={whole}"
            yield Problem(key=f"vision.{part}", got=parts, allowed=allowed, nearest=str(nearest_divisor(whole, parts)))
    if not vision.grids or any(not 1 <= count <= MOST_TILES for grid in vision.grids for count in grid):
        allowed = f"(columns, rows) of tiles, each 1 to {MOST_TILES}"
        yield Problem(key="vision.grids", got=vision.grids, allowed=allowed, nearest="((1, 1),)")
    if not 0 <= vision.image_token < vocab_size:
        allowed = f"0 to {vocab_size - 1} (model.vocab_size={vocab_size})"
        yield Problem(key="vision.image_token", got=vision.image_token, allowed=allowed, nearest=str(vocab_size - 1))


def _tokens(config: Config) -> Iterator[Problem]:
    train = config.train
    rows = max([train.batch_size, *(size for _, size in train.batch_ramp)])
    if rows * train.sequence_length > ranges.INT32_MAX:
        most = ranges.INT32_MAX // train.sequence_length
        allowed = f"at most {most:,} for train.sequence_length={train.sequence_length}: a step has < 2**31 tokens"
        yield Problem(key="train.batch_size", got=rows, allowed=allowed, nearest=str(max(most, 1)))


def _dropless_bound(config: Config) -> Iterator[Problem]:
    if config.model.routing == "capacity" and config.compute.dropless_bound is not None:
        allowed = "None, as model.routing='capacity' is bounded by model.capacity_factor"
        yield Problem(key="compute.dropless_bound", got=config.compute.dropless_bound, allowed=allowed, nearest="None")
    if config.compute.dropless_bound is None and config.compute.dropless_shard_bound is not None:
        bound = config.compute.dropless_shard_bound
        allowed = "None where compute.dropless_bound is None"
        yield Problem(key="compute.dropless_shard_bound", got=bound, allowed=allowed, nearest="None")


def _reduce_dtype(config: Config) -> Iterator[Problem]:
    if (config.compute.dtype, config.compute.reduce_dtype) == ("float32", "bfloat16"):
        allowed = "'float32' or 'auto' for compute.dtype='float32': sums are no narrower than what is summed"
        yield Problem(key="compute.reduce_dtype", got="bfloat16", allowed=allowed, nearest="float32")
    if (config.compute.collectives, config.compute.reduce_dtype) == ("copies", "float32"):
        allowed = "'auto' or 'bfloat16' with compute.collectives='copies', which sums in float32 what comes in bfloat16"
        yield Problem(key="compute.reduce_dtype", got="float32", allowed=allowed, nearest="auto")


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
    # A bare word that is no folder is a mistyped 'stdlib'; whether a path exists is for the data set to say.
    marks = ("/", "*", ".txt", ".jsonl", ".parquet", ".arrayrecord")
    known = source == "stdlib" or source.startswith("recall:") or any(mark in source for mark in marks)
    if not known and not os.path.isdir(source):
        allowed = f"'stdlib', 'recall:4k', or a path, folder (./{source}) or glob of {', '.join(marks[2:])} files"
        yield Problem(key="data.source", got=source, allowed=allowed, nearest="'stdlib'")


def _records(config: Config) -> Iterator[Problem]:
    data = config.data
    if (data.source == "stdlib" or data.source.startswith("recall:")) and data.records != "text":
        yield Problem(key="data.records", got=data.records, allowed=f"'text' of {data.source!r}", nearest="'text'")
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
    if max(steps + sizes) > ranges.INT32_MAX:
        allowed = f"(step, batch size) pairs of numbers <= {ranges.INT32_MAX}"
        yield Problem(key="train.batch_ramp", got=ramp, allowed=allowed, nearest="()")
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
_CROSS_RULES: tuple[tuple[tuple[str, ...], Callable[[Config], Iterable[Problem]]], ...] = (
    (("model.num_heads", "model.num_kv_heads"), _heads),
    (("model.rotary_dim", "model.head_dim"), _rotary_dim),
    (("model.num_experts", "model.num_experts_per_token"), _top_k),
    (("model.period", "model.num_periods"), _period),
    (model_sizes.OF_ARRAYS, model_sizes.arrays),
    (("model", "vision"), lambda config: () if [*_vision(config)] else model_sizes.beside_weights(config)),
    (("train.batch_size", "train.batch_ramp", "train.sequence_length"), _tokens),
    (("vision", "model.vocab_size"), _vision),
    (("model.routing", "compute.dropless_bound", "compute.dropless_shard_bound"), _dropless_bound),
    (("compute.dtype", "compute.collectives", "compute.reduce_dtype"), _reduce_dtype),
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
