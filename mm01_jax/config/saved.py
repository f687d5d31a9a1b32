"""A config as JSON text and back, exactly. Reading executes nothing and accepts only a complete, valid config."""

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any

from mm01_jax import files
from mm01_jax.config import ComputeConfig, Config, ConfigError, Problem, fields, rules
from mm01_jax.values import MOST_NAME

MOST_BYTES = 2**21  # of a config: with lists of 10,000 and names of 4,096 characters it has less


def to_json(config: Config) -> str:
    """The config as indented JSON, its fields in order; equal configs give equal text."""
    return json.dumps(_plain(config), indent=2, allow_nan=False) + "\n"


def _plain(section: Any) -> dict[str, Any]:
    plain = {}
    for name, annotation in fields.field_types(type(section)).items():
        value = getattr(section, name)
        plain[name] = _plain(value) if dataclasses.is_dataclass(value) else fields.canonical(value, annotation)
    return plain


def from_json(text: str) -> Config:
    """The config that `to_json` wrote.

    Raises:
      ConfigError: 0.1 wrote it; or keys are unknown, missing or repeated; or a rule is broken. All is named at once.
    """
    try:
        plain = files.parse_json(text.encode(), _once)
    except ConfigError:
        raise
    except ValueError as error:
        allowed = f"a config as JSON ({error})"
        raise ConfigError(
            [Problem(key="json", got=text, allowed=allowed, nearest="a config.json that a run saved")]
        ) from None
    _fill_in(plain)
    problems = _version_problems(plain) or list(_shape_problems(plain, Config, ""))
    meant = {problem.nearest for problem in problems}  # a mistyped key is not missing as well
    problems = [problem for problem in problems if problem.got is not _ABSENT or problem.key not in meant]
    if problems:
        raise ConfigError(problems)
    return rules.check(_build(plain, Config))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) < len(pairs):
        values: dict[str, list] = {}
        for name, value in pairs:
            values.setdefault(name, []).append(value)
        repeated = sorted((files.shown(name), value) for name, value in values.items() if len(value) > 1)
        raise ConfigError(
            [Problem(key=k, got=v, allowed="each key once", nearest=f"{k}: {v[0]!r}") for k, v in repeated]
        )
    return plain


_ABSENT = "nothing"
_MOST_ITEMS = 10_000  # of a list; each is looked at several times, and no model has more layers
# Fields that 0.2.0 had not. A config without them means their defaults, which are what it did.
_SINCE_0_2_0 = ("train.tensorboard", "train.profile")
_GONE_RULES = ("period", "layer", "head_dim", "patch")  # that 0.1 had: axes which are never cut


# Fields that a config saved by 0.2.0 does not have: what they say now was so then.
_ADDED = (
    "compute.quantize",
    "compute.reduce_dtype",
    "compute.collectives",
    "compute.dropless_shard_bound",
    "mesh.rules.act_seq",
    "mesh.rules.act_batch",
    "data.records",
    "data.template",
    "data.mixed_in",
    "data.rows_between",
    "optimizer.frozen",
    "train.objective",
)


def _fill_in(plain: Any) -> None:
    for key in _ADDED:
        *sections, name = key.split(".")
        place = plain
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(name, fields.default(key))


def _version_problems(plain: Any) -> list[Problem]:
    """0.1 had no section `compute`: its fields were among those of `model`."""
    model = plain.get("model") if isinstance(plain, dict) and "compute" not in plain else None
    moved = [name for name in fields.field_types(ComputeConfig) if isinstance(model, dict) and name in model]
    if not moved:
        return []
    gone = [f"mesh.rules.{name}" for name in _GONE_RULES]
    allowed = f"a config of 0.2, where the section compute has {', '.join(moved)}, and {', '.join(gone)} are gone"
    nearest = "this file with the former moved from model to compute and the latter deleted"
    return [Problem(key="config", got="a file that mm01_jax 0.1 wrote", allowed=allowed, nearest=nearest)]


def _shape_problems(plain: Any, section: type, prefix: str) -> Iterator[Problem]:
    """Sections that are no objects, keys that are no fields, fields without a key, values of another type."""
    names = fields.field_types(section)
    where = prefix.removesuffix(".") or "config"
    if not isinstance(plain, dict):
        yield Problem(key=where, got=plain, allowed=f"an object with the keys {', '.join(names)}", nearest="{...}")
        return
    for number, name in enumerate(name for name in plain if name not in names):
        allowed = f"the fields of {where}: {', '.join(names)}"
        key = prefix + files.shown(name)
        # What is not shown needs no near name, which takes milliseconds to find.
        nearest = fields.nearest_key(key) if number < ConfigError.MOST_LINES else None
        yield Problem(key=key, got=plain[name], allowed=allowed, nearest=nearest)
    for name, annotation in names.items():
        annotation = _present(annotation, plain.get(name))
        if name not in plain and prefix + name in _SINCE_0_2_0:
            continue
        if name not in plain:
            nearest = f"{prefix}{name} = ..."
            yield Problem(key=prefix + name, got=_ABSENT, allowed="every field of a config", nearest=nearest)
        elif dataclasses.is_dataclass(annotation):
            yield from _shape_problems(plain[name], annotation, f"{prefix}{name}.")
        else:
            yield from _value_problems(prefix + name, plain[name], annotation)


def _value_problems(key: str, value: Any, annotation: Any) -> Iterator[Problem]:
    if isinstance(value, list) and len(value) > _MOST_ITEMS:
        got, allowed = f"a list of {len(value):,}", f"a list of at most {_MOST_ITEMS:,}"
        yield Problem(key=key, got=got, allowed=allowed, nearest="a shorter one")
    elif isinstance(value, str) and len(value) > MOST_NAME:
        got, allowed = f"text of {len(value):,} characters", f"at most {MOST_NAME:,}"
        yield Problem(key=key, got=got, allowed=allowed, nearest="a shorter one")
    elif not fields.fits(fields.canonical(value, annotation), annotation):
        nearest = fields.nearest_value(key, value, annotation)
        yield Problem(key=key, got=value, allowed=fields.describe(annotation), nearest=nearest)


def _build(plain: dict[str, Any], section: type) -> Any:
    read = {}
    for name, annotation in fields.field_types(section).items():
        if name not in plain:
            continue  # of _SINCE_0_2_0
        annotation = _present(annotation, plain[name])
        build = _build if dataclasses.is_dataclass(annotation) else fields.canonical
        read[name] = build(plain[name], annotation)
    return section(**read)


def _present(annotation: Any, value: Any) -> Any:
    """The section of an optional section whose value is there: `VisionConfig | None` with an object."""
    sections = [choice for choice in typing.get_args(annotation) if dataclasses.is_dataclass(choice)]
    return sections[0] if sections and isinstance(value, dict) else annotation
