"""The device mesh, and the translation of logical axis names into mesh axes.

Axes are `Auto`: XLA places what nobody states, `constrain` states it at layer boundaries, and everything with a
collective of its own is a `shard_map` in `mm01_jax/parallel` (docs/architecture.md, "Decisions").
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mm01_jax.config import MESH_AXES, MeshConfig, Rules


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, expert, tensor, sequence) of `config` over `devices` (default: all of them).

    Raises:
      ValueError: the product of the axis sizes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(getattr(config, axis) for axis in MESH_AXES)
    size = config.size(MESH_AXES)
    if size != len(devices):
        sizes = " x ".join(f"{axis} {n}" for axis, n in zip(MESH_AXES, shape, strict=True))
        raise ValueError(f"mesh {sizes} = {size} devices, but {len(devices)} are available")
    ordered = np.asarray(devices).reshape(shape)
    if devices[0].platform == "tpu":
        ordered = _tpu_order(shape, devices)
    return Mesh(ordered, MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def _tpu_order(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices laid out so that neighbours of an axis are neighbours of the torus; `data` spans slices, whose links
    are the slow ones.

    `jax.make_mesh` refuses most shapes of four axes: it does not split a physical axis.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        nearest = max(1, round(shape[0] / slices)) * slices
        raise ValueError(
            f"mesh.data={shape[0]} must be a multiple of the {slices} slices, over which it alone may go; "
            f"nearest: --config.mesh.data={nearest}"
        )
    inner = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(
        inner, (slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
    )


def spec(rules: Rules, *logical: str | None) -> P:
    """PartitionSpec of an array whose dims carry these logical axis names (None: replicated).

    Raises:
      ValueError: a logical axis is unknown, or a mesh axis would shard two dims.
    """
    used: dict[str, str] = {}
    parts = []
    for name in logical:
        if name is not None and name not in rules.__dataclass_fields__:
            raise ValueError(f"unknown logical axis {name!r}; known: {', '.join(rules.__dataclass_fields__)}")
        mesh_axes = () if name is None else getattr(rules, name)
        for axis in mesh_axes:
            if axis in used:
                raise ValueError(f"mesh axis {axis!r} would shard both {used[axis]!r} and {name!r}")
            used[axis] = str(name)
        parts.append(None if not mesh_axes else mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
    return P(*parts)


def constrain(x: jax.Array, rules: Rules, *logical: str | None) -> jax.Array:
    """States the sharding of an activation or of a gathered weight."""
    return jax.lax.with_sharding_constraint(x, spec(rules, *logical))


def named(mesh: Mesh, rules: Rules, *logical: str | None) -> NamedSharding:
    """The NamedSharding of an array with these logical axes on `mesh`."""
    return NamedSharding(mesh, spec(rules, *logical))


def mesh_of(tree: Any) -> Mesh:
    """The mesh that the arrays of a tree lie on; of arrays on one device a mesh of it alone."""
    placed = jax.tree.leaves(tree)[0].sharding
    if isinstance(placed, NamedSharding):
        return placed.mesh
    return make_mesh(MeshConfig(), list(placed.device_set))


def put(array: np.ndarray, rules: Rules, *logical: str | None) -> jax.Array:
    """An array on the mesh in force, of which every process holds the whole and gives its devices their part."""
    return jax.make_array_from_callback(array.shape, named(jax.sharding.get_mesh(), rules, *logical), array.__getitem__)


def of_stream(rules: Rules) -> Rules:
    """The rules between mixers and in the experts, where more axes may cut positions (`act_seq`) or rows."""
    batch, seq = (*rules.batch, *rules.act_batch), (*rules.seq, *rules.act_seq)
    return dataclasses.replace(rules, batch=batch, seq=seq, act_batch=(), act_seq=())


def whole_for_mixer(x_BSD: jax.Array, rules: Rules) -> jax.Array:
    """The stream as a mixer takes it: gathered over `act_seq` and `act_batch`, its gradient summed into slices."""
    return _whole(x_BSD, rules) if (*rules.act_seq, *rules.act_batch) else x_BSD


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(x_BSD: jax.Array, rules: Rules) -> jax.Array:
    return constrain(x_BSD, rules, "batch", "seq", None)


# By hand: the transpose of a constraint is the same constraint, a gradient summed whole and cut afterwards.
_whole.defvjp(
    lambda x_BSD, rules: (_whole(x_BSD, rules), None),
    lambda rules, _, d_BSD: (constrain(d_BSD, of_stream(rules), "batch", "seq", None),),
)


def gathered(rules: Rules) -> Rules:
    """The rules of a weight in use: fully sharded dims (`embed`) are gathered, all others stay where they are."""
    return dataclasses.replace(rules, embed=())
