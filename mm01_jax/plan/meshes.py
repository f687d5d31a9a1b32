"""Which meshes a step can have on a target: those that the model and batch divide over and that the machine can lay
out. Imports no jax.
"""

from mm01_jax.config import Config, MeshConfig, Problem
from mm01_jax.config.causes import named_once
from mm01_jax.config.mesh import mesh_problems, nearest_meshes, sharding_problems
from mm01_jax.config.mesh_sizes import as_text
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
        nearest = " or ".join(f"--mesh={as_text(mesh)}" for mesh in near)
        nearest = nearest or f"none: no mesh of {target.chips} chips divides this model and batch"
        allowed = f"a product of {target.chips}, the chips of {target.name}"
        product = Problem(key="mesh", got=wrong_product[0].got, allowed=allowed, nearest=nearest)
        return [product] if near else [*problems, product]  # another mesh has none of the other problems
    return problems


def _misplaced(kind: str, mesh: MeshConfig, target: Target) -> list[Problem]:
    problems = []
    if kind == "decode" and mesh.sequence > 1:
        allowed = "1 for decode: a token and its cache are not split over sequence"
        problems.append(Problem(key="mesh.sequence", got=mesh.sequence, allowed=allowed, nearest="1"))
    if mesh.data % target.slices:  # sharding.make_mesh
        allowed = f"a multiple of the {target.slices} slices of {target.name}, over which data alone goes"
        nearest = str(max(1, round(mesh.data / target.slices)) * target.slices)
        problems.append(Problem(key="mesh.data", got=mesh.data, allowed=allowed, nearest=nearest))
    return problems
