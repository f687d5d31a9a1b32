"""Does a config divide over its mesh, and which meshes of some number of devices does it divide over?

Every sharded dimension is a multiple of the product of its mesh axes (`MeshConfig.rules`), and no array uses a mesh
axis twice. The weights themselves are not known here (no jax): a weight whose axes or sizes these rules do not foresee
is refused by name when the model is built (`layers.shardings`).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from mm01_jax.config import MESH_AXES, Change, Config, MeshConfig, Problem, Rules, fields

# Logical axis -> the field that is its dimension. Rows are apart: they also divide into microbatches.
_DIMS = {
    "seq": "train.sequence_length",
    "act_embed": "model.embed_dim",
    "act_seq": "train.sequence_length",
    "embed": "model.embed_dim",
    "heads": "model.num_heads",
    "kv_heads": "model.num_kv_heads",
    "ffn": "model.expert_dim",
    "vocab": "model.vocab_size",
    "expert": "model.num_experts",
}

_OF_STREAM = ("act_seq", "act_batch")  # what cuts the stream between mixers, and nothing else
# Sets of logical axes of which no array has two: these may lie on one mesh axis. Any other two may meet.
_NEVER_MEET = (
    # what a matmul makes of the model's width, and that width in an activation
    {"act_embed", "heads", "kv_heads", "ffn", "vocab"},
    # rows and positions of activations, against dims of stored weights
    *({tokens, stored} for tokens in ("batch", "seq", *_OF_STREAM, "act_embed") for stored in ("embed", "expert")),
    # experts' weights have no heads and no vocabulary
    *({"expert", inside} for inside in ("heads", "kv_heads", "vocab")),
    # a mixer takes whole stretches of a row, and whole rows
    *({stream, inside} for stream in _OF_STREAM for inside in ("heads", "kv_heads", "vocab")),
)


def mesh_problems(config: Config, num_devices: int) -> list[Problem]:
    """Why this config cannot run on so many devices, naming the nearest meshes that can; empty when it can."""
    sizes = tuple(getattr(config.mesh, axis) for axis in MESH_AXES)
    if config.mesh.size(MESH_AXES) == num_devices:
        return []
    nearest = " or ".join(_changes(config.mesh, mesh) for mesh in nearest_meshes(config, num_devices))
    product = " * ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    return [
        Problem(
            key="mesh",
            got=product,
            allowed=f"a product of {num_devices}, the devices of this run, not {config.mesh.size(MESH_AXES)}",
            nearest=nearest or f"none of the meshes of {num_devices} devices divides this model and batch",
        )
    ]


def nearest_meshes(config: Config, num_devices: int, most: int = 3) -> list[MeshConfig]:
    """The valid meshes of so many devices, the most like the config's own first."""
    meshes = every_mesh(num_devices, config.mesh)
    candidates = [mesh for mesh in meshes if not sharding_problems(dataclasses.replace(config, mesh=mesh))]
    return sorted(candidates, key=lambda mesh: _distance(mesh, config.mesh))[:most]


def every_mesh(num_devices: int, base: MeshConfig) -> Iterator[MeshConfig]:
    """All ways to lay so many devices over the four axes, with the rules of `base`."""
    for factors in _factorizations(num_devices, len(MESH_AXES)):
        yield dataclasses.replace(base, **dict(zip(MESH_AXES, factors, strict=True)))


def _factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (number,)
        return
    for first in divisors(number):
        for rest in _factorizations(number // first, parts - 1):
            yield (first, *rest)


def _changes(old: MeshConfig, new: MeshConfig) -> str:
    sizes = [(axis, getattr(new, axis)) for axis in MESH_AXES if getattr(new, axis) != getattr(old, axis)]
    return " ".join(f"--config.mesh.{axis}={size}" for axis, size in sizes)


def _distance(mesh: MeshConfig, other: MeshConfig) -> tuple[float, int, int, int]:
    """Factors of two apart; of equal ones, the mesh that is larger in the earlier axes."""
    apart = sum(abs(math.log2(getattr(mesh, axis) / getattr(other, axis))) for axis in MESH_AXES)
    return round(apart, 6), -mesh.data, -mesh.expert, -mesh.tensor


def divisors(number: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def nearest_divisor(number: int, value: int) -> int:
    """The divisor of a number nearest to a value, the smaller of two."""
    return min(divisors(number), key=lambda divisor: (abs(divisor - value), divisor))


def sharding_problems(config: Config) -> list[Problem]:
    """Every dimension that its mesh axes do not divide, and every mesh axis used twice by one array."""
    return [problem for _, rule in CROSS_RULES for problem in rule(config)]


def weight_problems(config: Config) -> list[Problem]:
    """Those of them that stand against the weights on their mesh, whatever rows come: of inference, which has none of
    a training run's batches.
    """
    return [problem for problem in sharding_problems(config) if not problem.key.startswith("train.")]


def axis_problems(key: str, axes: tuple[str, ...]) -> Iterator[Problem]:
    """Names in one rule that are no mesh axes, or stand there twice."""
    if not set(axes) <= set(MESH_AXES) or len(set(axes)) < len(axes):
        nearest = tuple(dict.fromkeys(fields.nearest_name(axis, MESH_AXES) or MESH_AXES[0] for axis in axes))
        allowed = f"mesh axes, each once: {', '.join(MESH_AXES)}"
        yield Problem(key=key, got=axes, allowed=allowed, nearest=repr(nearest))


def may_meet(first: str, second: str) -> bool:
    """Whether one array may have both logical axes."""
    return not any({first, second} <= apart for apart in _NEVER_MEET)


def _used_twice(config: Config) -> Iterator[Problem]:
    rules = config.mesh.rules
    for first, second in itertools.combinations(fields.field_types(type(rules)), 2):
        taken, axes = getattr(rules, first), getattr(rules, second)
        if set(taken) & set(axes) and may_meet(first, second):
            changes = [
                Change(
                    key=f"mesh.rules.{name}",
                    value=tuple(axis for axis in old if axis not in other),
                    allowed=f"as one array may have both, other axes than mesh.rules.{beside}={other!r}",
                )
                for name, old, beside, other in ((second, axes, first, taken), (first, taken, second, axes))
            ]
            key, nearest, allowed = changes[0].key, repr(changes[0].value), changes[0].allowed
            yield Problem(key=key, got=axes, allowed=allowed, nearest=nearest, changes=tuple(changes))


def _dim_rule(name: str, dim_key: str) -> Callable[[Config], Iterator[Problem]]:
    def rule(config: Config) -> Iterator[Problem]:
        dim, axes = fields.get(config, dim_key), _axes(config, name)
        parts = config.mesh.shards(name)
        if dim % parts:
            yield Problem(
                key=dim_key,
                got=dim,
                allowed=f"a multiple of {_product(axes)}",
                nearest=" or ".join([str(_multiple(dim, parts)), *_smaller_axis(dim, axes)]),
                changes=(Change(key=dim_key, value=_multiple(dim, parts), allowed=""), *_cuts(axes, dim, dim_key)),
            )

    return rule


def _stripes_rule(config: Config) -> Iterator[Problem]:
    """A zigzag shard holds two stripes of a row."""
    length, axes = config.train.sequence_length, _axes(config, "seq")
    parts = 2 * config.mesh.shards("seq")
    if config.compute.sequence_layout == "zigzag" and parts > 2 and length % parts:
        allowed = f"a multiple of {parts}, two stripes for each shard of {_product(axes)}"
        nearest = f"{_multiple(length, parts)} or compute.sequence_layout='contiguous'"
        changes = tuple(_cuts(axes, length // 2, "half of train.sequence_length")) if length % 2 == 0 else ()
        yield Problem(key="train.sequence_length", got=length, allowed=allowed, nearest=nearest, changes=changes)


def _slices_rule(config: Config) -> Iterator[Problem]:
    """Between mixers a sequence shard's positions are cut once more."""
    length, axes = config.train.sequence_length, [*_axes(config, "seq"), *_axes(config, "act_seq")]
    parts = config.mesh.shards("seq", "act_seq")
    if config.mesh.shards("seq") > 1 and config.mesh.shards("act_seq") > 1:
        if length % parts:
            allowed, nearest = f"a multiple of {_product(axes)}", str(_multiple(length, parts))
            changes = (Change(key="train.sequence_length", value=_multiple(length, parts), allowed=""),)
            yield Problem(key="train.sequence_length", got=length, allowed=allowed, nearest=nearest, changes=changes)
        if config.compute.sequence_layout == "zigzag" and config.model.routing == "capacity":
            allowed = "'contiguous' where mesh.rules.act_seq cuts positions and capacity counts them in order"
            yield Problem(key="compute.sequence_layout", got="zigzag", allowed=allowed, nearest="'contiguous'")


def of_answers(rules: Rules) -> Rules:
    """The rules of a model that answers: a token cannot be cut, and rows are few, so what cuts the stream further cuts
    experts' widths.
    """
    cuts = (*rules.act_seq, *rules.act_batch)
    if not cuts:
        return rules
    expert = tuple(axis for axis in rules.expert if axis not in cuts)
    return dataclasses.replace(rules, act_seq=(), act_batch=(), expert=expert, ffn=rules.ffn or cuts)


def _batch_rule(config: Config) -> Iterator[Problem]:
    axes = [
        *_axes(config, "batch"),
        *_axes(config, "act_batch"),
        ("train.num_microbatches", config.train.num_microbatches),
    ]
    parts = math.prod(size for _, size in axes)
    sizes = [("train.batch_size", config.train.batch_size)]
    sizes += [("train.batch_ramp", size) for _, size in config.train.batch_ramp]
    for key, size in sizes:
        if size % parts:
            allowed = f"batch sizes that are multiples of {_product(axes)}"
            nearest, changes = str(_multiple(size, parts)), tuple(_cuts(axes, size, key))
            yield Problem(key=key, got=size, allowed=allowed, nearest=nearest, changes=changes)


def _expert_rule(config: Config) -> Iterator[Problem]:
    """Shards of experts exchange tokens, so the axes of the experts have to cut the tokens too."""
    rules = config.mesh.rules
    strangers = [
        axis for axis in rules.expert if axis not in (*rules.batch, *rules.seq, *rules.act_seq, *rules.act_batch)
    ]
    if config.mesh.size(strangers) > 1:
        allowed = f"axes of mesh.rules.batch={rules.batch!r} or mesh.rules.seq={rules.seq!r}, which cut the tokens"
        for name in _OF_STREAM:
            allowed += f", or of mesh.rules.{name}={getattr(rules, name)!r}" if getattr(rules, name) else ""
        nearest = repr(tuple(axis for axis in rules.expert if axis not in strangers))
        yield Problem(key="mesh.rules.expert", got=rules.expert, allowed=allowed, nearest=nearest)


def _shared_keys_rule(config: Config) -> Iterator[Problem]:
    """Where key heads are held whole but query heads are cut, each cut needs whole key heads, or a part of one."""
    rules, kv_heads = config.mesh.rules, config.model.num_kv_heads
    cuts = config.mesh.size(axis for axis in rules.heads if axis not in rules.kv_heads)
    if kv_heads % cuts and cuts % kv_heads:
        allowed = f"a multiple or a divisor of the {cuts} shards of mesh.rules.heads={rules.heads!r}"
        yield Problem(
            key="model.num_kv_heads", got=kv_heads, allowed=allowed, nearest=str(nearest_divisor(cuts, kv_heads))
        )


def _axes(config: Config, name: str) -> list[tuple[str, int]]:
    return [(f"mesh.{axis}", getattr(config.mesh, axis)) for axis in getattr(config.mesh.rules, name)]


def _product(axes: list[tuple[str, int]]) -> str:
    axes = [(axis, size) for axis, size in axes if size > 1]
    text = " * ".join(f"{axis}={size}" for axis, size in axes)
    return text if len(axes) <= 1 else f"{math.prod(size for _, size in axes)} ({text})"


def _multiple(number: int, parts: int) -> int:
    return max(parts, round(number / parts) * parts)


def _cuts(axes: list[tuple[str, int]], number: int, name: str) -> Iterator[Change]:
    """The nearest six other sizes of each axis, but for 1, that divide a number."""
    for axis, size in axes:
        others = _product([other for other in axes if other[0] != axis])
        allowed = f"a divisor of {name}={number}" + (f" beside {others}" if others else "")
        near = sorted(divisors(number)[1:], key=lambda divisor: (abs(divisor - size), divisor))
        if size > 1:
            yield from (Change(key=axis, value=divisor, allowed=allowed) for divisor in near[:6])


def _smaller_axis(dim: int, axes: list[tuple[str, int]]) -> list[str]:
    sharded = [(axis, size) for axis, size in axes if size > 1]
    return [f"{axis}={nearest_divisor(dim, size)}" for axis, size in sharded] if len(sharded) == 1 else []


_SIZES = tuple(f"mesh.{axis}" for axis in MESH_AXES)
# (the keys that a rule reads, the rule)
CROSS_RULES: tuple[tuple[tuple[str, ...], Callable[[Config], Iterator[Problem]]], ...] = (
    (("mesh.rules",), _used_twice),
    *(((*_SIZES, f"mesh.rules.{name}", key), _dim_rule(name, key)) for name, key in _DIMS.items()),
    # The experts' result leaves with its width cut as the experts' is.
    ((*_SIZES, "mesh.rules.ffn", "model.embed_dim"), _dim_rule("ffn", "model.embed_dim")),
    ((*_SIZES, *(f"mesh.rules.{name}" for name in ("batch", "seq", *_OF_STREAM, "expert"))), _expert_rule),
    ((*_SIZES, "mesh.rules.heads", "mesh.rules.kv_heads", "model.num_kv_heads"), _shared_keys_rule),
    ((*_SIZES, "mesh.rules.seq", "train.sequence_length", "compute.sequence_layout"), _stripes_rule),
    (
        (
            *(*_SIZES, "mesh.rules.seq", "mesh.rules.act_seq", "train.sequence_length"),
            *("compute.sequence_layout", "model.routing"),
        ),
        _slices_rule,
    ),
    (
        (
            *_SIZES,
            "mesh.rules.batch",
            "mesh.rules.act_batch",
            "train.batch_size",
            "train.batch_ramp",
            "train.num_microbatches",
        ),
        _batch_rule,
    ),
)
