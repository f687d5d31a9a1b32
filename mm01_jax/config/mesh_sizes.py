"""A mesh in one word, as the flag `--mesh` takes it: `data=2,tensor=4`; axes not named have size 1."""

import dataclasses
import re

from mm01_jax.config import MESH_AXES, ConfigError, MeshConfig, Problem, fields

AUTO = "auto"  # the planner chooses (plan/automatic.py)


def parse(text: str, base: MeshConfig | None = None, *, key: str = "--mesh", auto: bool = False) -> MeshConfig:
    """The mesh of these sizes with the rules of `base` (default: the usual ones).

    Args:
      key: what was typed, for the message. auto: whether AUTO is allowed beside sizes; the caller has looked for it.

    Raises:
      ConfigError: no axis of that name (the nearest is said), a size that is none, an axis named twice.
    """
    sizes, seen = dict.fromkeys(MESH_AXES, 1), set()
    for part in text.split(","):
        match = re.fullmatch(r"(\w+)=([1-9]\d{0,8})", part)
        if not match or match[1] not in sizes:
            raise _refused(key, part, auto)
        if match[1] in seen:
            problem = Problem(key=key, got=text, allowed="every axis once", nearest=f"one {match[1]}")
            raise ConfigError([problem])
        seen.add(match[1])
        sizes[match[1]] = int(match[2])
    return dataclasses.replace(base or MeshConfig(), **sizes)


def _refused(key: str, part: str, auto: bool) -> ConfigError:
    name, _, size = part.partition("=")
    if auto and not size and fields.nearest_name(name, [AUTO], cutoff=0.6):
        nearest = AUTO
    else:
        near = fields.nearest_name(name, MESH_AXES) or MESH_AXES[0]
        nearest = f"{near}={size if re.fullmatch(r'[1-9]\d{0,8}', size) else 2}"
    allowed = f"AXIS=SIZE, of the axes {', '.join(MESH_AXES)}" + (f"; or {AUTO}" if auto else "")
    return ConfigError([Problem(key=key, got=part, allowed=allowed, nearest=nearest)])


def as_text(mesh: MeshConfig) -> str:
    """The word that `parse` reads back: axes of size 1 are left out."""
    sizes = ((axis, getattr(mesh, axis)) for axis in MESH_AXES)
    return ",".join(f"{axis}={size}" for axis, size in sizes if size > 1) or f"{MESH_AXES[0]}=1"


def device_problems(
    mesh: MeshConfig, num_devices: int, num_processes: int = 1, *, key: str = "--mesh"
) -> list[Problem]:
    """Why a mesh cannot be made of the devices there are, by both numbers; empty when it can.

    One process may use some of its devices, the first ones. Several processes use all, or one would hold no part.
    """
    size = mesh.size(MESH_AXES)
    if size == num_devices or (size < num_devices and num_processes == 1):
        return []
    devices = f"{num_devices} device{'s' * (num_devices > 1)}"
    if num_processes > 1:
        allowed = f"all {devices} of the {num_processes} processes, not {size}"
    else:
        allowed = f"at most the {devices} here, not {size}"
    return [Problem(key=key, got=as_text(mesh), allowed=allowed, nearest=f"{AUTO}, or {MESH_AXES[0]}={num_devices}")]
