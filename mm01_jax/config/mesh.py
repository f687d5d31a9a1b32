"""Does a config divide over its mesh, and which meshes of some number of devices does it divide over?

Every sharded dimension is a multiple of the product of its mesh axes (`MeshConfig.rules`), and no array uses a mesh
axis twice.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

from mm01_jax.config import MESH_AXES, Config, MeshConfig, Problem, fields

# Logical axis -> the field that is its dimension. `batch` is apart: it also divides into microbatches.
_DIMS = {
    "seq": "train.sequence_length",
    "act_embed": "model.embed_dim",
    "embed": "model.embed_dim",
    "heads": "model.num_heads",
    "kv_heads": "model.num_kv_heads",
    "ffn": "model.expert_dim",
    "vocab": "model.vocab_size",
    "expert": "model.num_experts",
    "head_dim": "model.head_dim",
    "period": "model.num_periods",
}

# The logical axes of the arrays: weights with their stack in front, then activations.
_ARRAYS = (
    ("vocab", "embed"),
    ("period", "layer", "embed", "heads", "head_dim"),
    ("period", "layer", "embed", "kv_heads", "head_dim"),
    ("period", "layer", "embed", "expert"),
    ("period", "layer", "expert", "embed", "ffn"),
    ("batch", "seq", "act_embed"),
    ("batch", "seq", "heads", "head_dim"),
    ("batch", "seq", "kv_heads", "head_dim"),
    ("batch", "seq", "vocab"),
    ("batch", "seq", "ffn"),
)


def mesh_problems(config: Config, num_devices: int) -> list[Problem]:
    """Why this config cannot run on so many devices, naming the nearest meshes that can; empty when it can."""
    sizes = tuple(getattr(config.mesh, axis) for axis in MESH_AXES)
    if math.prod(sizes) == num_devices:
        return []
    nearest = " or ".join(_changes(config.mesh, mesh) for mesh in nearest_meshes(config, num_devices))
    product = " * ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    return [
        Problem(
            key="mesh",
            got=product,
            allowed=f"a product of {num_devices}, the devices of this run, not {math.prod(sizes)}",
            nearest=nearest or f"none of the meshes of {num_devices} devices divides this model and batch",
        )
    ]


def nearest_meshes(config: Config, num_devices: int, most: int = 3) -> list[MeshConfig]:
    """The valid meshes of so many devices, the most like the config's own first."""
    candidates = []
    for factors in _factorizations(num_devices, len(MESH_AXES)):
        mesh = dataclasses.replace(config.mesh, **dict(zip(MESH_AXES, factors, strict=True)))
        if not sharding_problems(dataclasses.replace(config, mesh=mesh)):
            candidates.append(mesh)
    return sorted(candidates, key=lambda mesh: _distance(mesh, config.mesh))[:most]


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


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of a number nearest to the wanted one, the smaller of two."""
    return min(divisors(number), key=lambda divisor: (abs(divisor - wanted), divisor))


def sharding_problems(config: Config) -> list[Problem]:
    """Every dimension that its mesh axes do not divide, and every mesh axis used twice by one array."""
    return [problem for _, rule in CROSS_RULES for problem in rule(config)]


def axis_problems(key: str, axes: tuple[str, ...]) -> Iterator[Problem]:
    """Names in one rule that are no mesh axes, or stand there twice."""
    if not set(axes) <= set(MESH_AXES) or len(set(axes)) < len(axes):
        nearest = tuple(dict.fromkeys(fields.nearest_name(axis, MESH_AXES) or MESH_AXES[0] for axis in axes))
        allowed = f"mesh axes, each once: {', '.join(MESH_AXES)}"
        yield Problem(key=key, got=axes, allowed=allowed, nearest=repr(nearest))


def _used_twice(config: Config) -> Iterator[Problem]:
    rules = config.mesh.rules
    reported = set()
    for array in _ARRAYS:
        owner = {}
        for name in array:
            for axis in getattr(rules, name):
                first = owner.setdefault(axis, name)
                if first != name and (first, name) not in reported:
                    reported.add((first, name))
                    allowed = f"other axes than mesh.rules.{first}={getattr(rules, first)!r}: one array has both"
                    nearest = repr(tuple(other for other in getattr(rules, name) if other not in getattr(rules, first)))
                    yield Problem(key=f"mesh.rules.{name}", got=getattr(rules, name), allowed=allowed, nearest=nearest)


def _dim_rule(name: str, dim_key: str) -> Callable[[Config], Iterator[Problem]]:
    def rule(config: Config) -> Iterator[Problem]:
        dim, axes = fields.get(config, dim_key), _axes(config, name)
        parts = math.prod(size for _, size in axes)
        if dim % parts:
            yield Problem(
                key=dim_key,
                got=dim,
                allowed=f"a multiple of {_product(axes)}",
                nearest=" or ".join([_multiple(dim, parts), *_smaller_axis(dim, axes)]),
            )

    return rule


def _stripes_rule(config: Config) -> Iterator[Problem]:
    """A zigzag shard holds two stripes of a row."""
    length, axes = config.train.sequence_length, _axes(config, "seq")
    parts = 2 * math.prod(size for _, size in axes)
    if config.compute.sequence_layout == "zigzag" and parts > 2 and length % parts:
        allowed = f"a multiple of {parts}, two stripes for each shard of {_product(axes)}"
        nearest = f"{_multiple(length, parts)} or compute.sequence_layout='contiguous'"
        yield Problem(key="train.sequence_length", got=length, allowed=allowed, nearest=nearest)


def _layer_rule(config: Config) -> Iterator[Problem]:
    # The layer stacks of a period are its runs of one kind, whose lengths differ (7 and 1): no mesh axis divides them.
    parts = math.prod(size for _, size in _axes(config, "layer"))
    if parts > 1:
        got = config.mesh.rules.layer
        yield Problem(key="mesh.rules.layer", got=got, allowed="axes of size 1", nearest="()")


def _batch_rule(config: Config) -> Iterator[Problem]:
    axes, microbatches = _axes(config, "batch"), config.train.num_microbatches
    parts = math.prod(size for _, size in axes) * microbatches
    sizes = [("train.batch_size", config.train.batch_size)]
    sizes += [("train.batch_ramp", size) for _, size in config.train.batch_ramp]
    for key, size in sizes:
        if size % parts:
            allowed = f"batch sizes that are multiples of {_product([*axes, ('train.num_microbatches', microbatches)])}"
            yield Problem(key=key, got=size, allowed=allowed, nearest=_multiple(size, parts))


def _expert_rule(config: Config) -> Iterator[Problem]:
    """Shards of experts exchange tokens, so the axes of the experts have to cut the tokens too."""
    rules = config.mesh.rules
    strangers = [axis for axis in rules.expert if axis not in (*rules.batch, *rules.seq)]
    if math.prod(getattr(config.mesh, axis) for axis in strangers) > 1:
        allowed = f"axes of mesh.rules.batch={rules.batch!r} or mesh.rules.seq={rules.seq!r}, which cut the tokens"
        nearest = repr(tuple(axis for axis in rules.expert if axis not in strangers))
        yield Problem(key="mesh.rules.expert", got=rules.expert, allowed=allowed, nearest=nearest)


def _shared_keys_rule(config: Config) -> Iterator[Problem]:
    """Where key heads are held whole but query heads are cut, each cut needs whole key heads, or a part of one."""
    rules, held = config.mesh.rules, config.model.num_kv_heads
    cuts = math.prod(getattr(config.mesh, axis) for axis in rules.heads if axis not in rules.kv_heads)
    if held % cuts and cuts % held:
        allowed = f"a multiple or a divisor of the {cuts} shards of mesh.rules.heads={rules.heads!r}"
        yield Problem(key="model.num_kv_heads", got=held, allowed=allowed, nearest=str(nearest_divisor(cuts, held)))


def _axes(config: Config, name: str) -> list[tuple[str, int]]:
    return [(f"mesh.{axis}", getattr(config.mesh, axis)) for axis in getattr(config.mesh.rules, name)]


def _product(axes: list[tuple[str, int]]) -> str:
    axes = [(axis, size) for axis, size in axes if size > 1]
    text = " * ".join(f"{axis}={size}" for axis, size in axes)
    return text if len(axes) == 1 else f"{math.prod(size for _, size in axes)} ({text})"


def _multiple(number: int, parts: int) -> str:
    return str(max(parts, round(number / parts) * parts))


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
    ((*_SIZES, "mesh.rules.batch", "mesh.rules.seq", "mesh.rules.expert"), _expert_rule),
    ((*_SIZES, "mesh.rules.heads", "mesh.rules.kv_heads", "model.num_kv_heads"), _shared_keys_rule),
    ((*_SIZES, "mesh.rules.seq", "train.sequence_length", "compute.sequence_layout"), _stripes_rule),
    ((*_SIZES, "mesh.rules.layer"), _layer_rule),
    (
        (*_SIZES, "mesh.rules.batch", "train.batch_size", "train.batch_ramp", "train.num_microbatches"),
        _batch_rule,
    ),
)
