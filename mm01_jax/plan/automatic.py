"""`--mesh=auto`: the mesh on which a model answers, of the devices that are there (docs/sharding.md has the rule).

    of all meshes of the devices that the model divides over, with one shard of the sequence, the first by
      1  its weights fit            bytes of one device, from the shapes and logical axes of the weights
      2  the least `data`           weights are cut over it while stored, and gathered for every token
      3  `tensor` inside a host     each layer sums over it twice
      4  the largest `tensor`       every device reads its part of every weight that a token uses
    and what is left is `expert`

No program is made and nothing is compiled: one look at the shapes, then arithmetic.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

import jax
from flax import nnx

from mm01_jax import cluster
from mm01_jax.config import Config, ConfigError, MeshConfig, Problem
from mm01_jax.config.mesh import every_mesh, weight_problems
from mm01_jax.config.mesh_sizes import AUTO
from mm01_jax.model.abstract import abstract_weights

_OF_MEMORY = 0.9  # the rest is for the cache and what a step makes
GB = 1e9


def choose(config: Config, devices: Sequence[jax.Device], memory: float | None = None) -> MeshConfig:
    """The mesh for `config`, with its rules; one process may leave devices over, where the model divides over fewer.

    Args:
      devices: of all processes.
      memory: bytes of one device; None asks it, and of CPUs takes an equal share of the machine's.

    Raises:
      ConfigError: the weights fit on no mesh of these devices, or they divide over none that all processes are part of.
    """
    memory = cluster.least(int(_memory())) if memory is None else memory
    counts = range(len(devices), 0, -1) if jax.process_count() == 1 else [len(devices)]
    for count in counts:
        if meshes := list(_candidates(config, devices[:count])):
            break
    else:
        allowed = f"a mesh of all {len(devices)} devices; the model divides over none"
        raise ConfigError([Problem(key="mesh", got=AUTO, allowed=allowed, nearest="another number of devices")])
    weights = [(leaf.shape, leaf.get_metadata()["axes"], leaf.dtype.itemsize) for leaf in _leaves(config)]
    sizes = {mesh: _bytes(weights, mesh) for mesh in meshes}
    best = min(meshes, key=lambda mesh: (sizes[mesh] > _OF_MEMORY * memory, *_order(mesh, devices[:count])))
    if sizes[best] > _OF_MEMORY * memory:
        least = min(sizes.values())
        room = _OF_MEMORY * memory
        allowed = f"weights of at most {room / GB:.1f} GB a device; here they take {least / GB:.1f} GB at the least"
        nearest = f"{math.ceil(count * least / room)} devices or more"
        raise ConfigError([Problem(key="mesh", got=AUTO, allowed=allowed, nearest=nearest)])
    return best


def _candidates(config: Config, devices: Sequence[jax.Device]) -> Iterator[MeshConfig]:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    for mesh in every_mesh(len(devices), config.mesh):
        usable = mesh.sequence == 1 and mesh.data % slices == 0
        if usable and not weight_problems(dataclasses.replace(config, mesh=mesh)):
            yield mesh


def _order(mesh: MeshConfig, devices: Sequence[jax.Device]) -> tuple:
    of_a_host = sum(device.process_index == devices[0].process_index for device in devices)
    return mesh.data, of_a_host % mesh.tensor != 0, -mesh.tensor


def _leaves(config: Config) -> list[nnx.Variable]:
    return jax.tree.leaves(abstract_weights(config), is_leaf=lambda x: isinstance(x, nnx.Variable))


def _bytes(weights: list[tuple], mesh: MeshConfig) -> int:
    """Of the weights on one device."""

    def cut(axes: tuple[str | None, ...]) -> int:
        return mesh.shards(*(axis for axis in axes if axis is not None))

    return sum(math.prod(shape) * itemsize // cut(axes) for shape, axes, itemsize in weights)


def _memory() -> float:
    """Bytes that one device of this process may use; another's says nothing of its memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(jax.local_devices())
