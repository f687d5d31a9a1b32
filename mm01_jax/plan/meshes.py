"""Which meshes a step can have on a target: those that the model and batch divide over and that the machine can lay
out. Imports no jax.
"""

import dataclasses
import re

from mm01_jax.config import MESH_AXES, Config, ConfigError, MeshConfig, Problem, fields
from mm01_jax.config.causes import named_once
from mm01_jax.config.mesh import mesh_problems, nearest_meshes, sharding_problems
from mm01_jax.plan.targets import Target

_ALL = 100_000


def valid(kind: str, config: Config, target: Target) -> list[MeshConfig]:
    """All of them, the most like the config's own first."""
    meshes = nearest_meshes(config, target.chips, most=_ALL)
    return [mesh for mesh in meshes if not _misplaced(kind, mesh, target)]


def problems(kind: str, config: Config, target: Target) -> list[Problem]:
    """Why the config's own mesh is none of them; empty when it is."""
    problems = named_once(config, sharding_problems) + _misplaced(kind, config.mesh, target)
    if wrong_product := mesh_problems(config, target.chips):
        near = valid(kind, config, target)[:3]
        nearest = " or ".join(map(_as_flag, near))
        nearest = nearest or f"none: no mesh of {target.chips} chips divides this model and batch"
        allowed = f"a product of {target.chips}, the chips of {target.name}"
        product = Problem(key="mesh", got=wrong_product[0].got, allowed=allowed, nearest=nearest)
        return [product] if near else [*problems, product]  # another mesh has none of the other problems
    return problems


def _misplaced(kind: str, mesh: MeshConfig, target: Target) -> list[Problem]:
    problems = []
    if kind != "train" and mesh.sequence > 1:
        allowed = f"1 for {kind}: a token and its cache are not split over sequence"
        problems.append(Problem(key="mesh.sequence", got=mesh.sequence, allowed=allowed, nearest="1"))
    if mesh.data % target.slices:  # sharding.make_mesh
        allowed = f"a multiple of the {target.slices} slices of {target.name}, over which data alone goes"
        nearest = str(max(1, round(mesh.data / target.slices)) * target.slices)
        problems.append(Problem(key="mesh.data", got=mesh.data, allowed=allowed, nearest=nearest))
    return problems


def parse(text: str, config: Config) -> MeshConfig:
    """The mesh of `data=8,expert=16,tensor=4` with the config's rules; axes not named have size 1."""
    sizes, seen = dict.fromkeys(MESH_AXES, 1), set()
    for part in text.split(","):
        match = re.fullmatch(r"(\w+)=([1-9]\d*)", part)
        if not match or match[1] not in sizes:
            near = fields.nearest_name(part.partition("=")[0], list(sizes)) or "data"
            raise _refused(part, f"AXIS=SIZE, of the axes {', '.join(sizes)}", f"{near}=8")
        if match[1] in seen:
            raise _refused(text, "every axis once", f"one {match[1]}")
        seen.add(match[1])
        sizes[match[1]] = int(match[2])
    return dataclasses.replace(config.mesh, **sizes)


def _as_flag(mesh: MeshConfig) -> str:
    sizes = ((axis, getattr(mesh, axis)) for axis in MESH_AXES)
    return "--mesh=" + (",".join(f"{axis}={size}" for axis, size in sizes if size > 1) or "data=1")


def _refused(got: str, allowed: str, nearest: str) -> ConfigError:
    return ConfigError([Problem(key="--mesh", got=got, allowed=allowed, nearest=nearest)])
