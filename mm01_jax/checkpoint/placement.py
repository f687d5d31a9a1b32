"""An array on its devices, from a source that gives any box of it; no host holds a leaf whole on its way.

Each distinct part that this process's devices hold is read once, whatever the mesh, and handed to every device that
has it; host memory holds the part being read and the one before, which may still be on its way.
"""

from collections.abc import Callable

import jax
import numpy as np

Box = tuple[slice, ...]  # one slice per axis, with explicit start and stop


def place(want: jax.ShapeDtypeStruct, read: Callable[[Box], np.ndarray]) -> jax.Array:
    """The array of the shape and sharding of `want` (none: the first device), in the dtype that `read` gives."""
    sharding = want.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(want.shape).items():
        key = tuple(s.indices(n)[:2] for s, n in zip(index, want.shape, strict=True))
        holders.setdefault(key, []).append(device)
    shards, before = [], []
    for key, devices in holders.items():
        box = read(tuple(slice(*ends) for ends in key))
        # may_alias=False: a buffer that NumPy owns could not be donated to the first step.
        parts = [jax.device_put(box, device, may_alias=False) for device in devices]
        jax.block_until_ready(before)
        shards, before = shards + parts, parts
    return jax.make_array_from_single_device_arrays(want.shape, sharding, shards)
