"""Whether a saved step is one to go on from: what it says of itself fits the run, and its numbers are numbers.

Its digests have been compared before; this is about a file that is whole and says what cannot be.
"""

import pathlib

import optax
from jax.sharding import Mesh

from mm01_jax.checkpoint import CheckpointError, Restored, check_finite, check_keys, plain
from mm01_jax.config import MESH_AXES, Config

_DATA = {
    "fingerprint": plain.TEXT,
    "tokenizer": plain.TEXT,
    "held_out": plain.NUMBER,
    "seed": plain.WHOLE,
    "packing": plain.WHOLE,
    "bad_records": plain.LIST,
    "files": plain.objects_of(plain.LIST),
}
_META = {"row": plain.WHOLE, "data": plain.OBJECT, "mesh": plain.objects_of(plain.POSITIVE)}


def check(
    restored: Restored, config: Config, mesh: Mesh, manifest: pathlib.Path, *, allow_nonfinite: bool = False
) -> None:
    """Raises CheckpointError that names the file and the fact, or the leaves that are not finite.

    Args:
      config: of the run that goes on. manifest: the file that the facts stand in.
      allow_nonfinite: of a run that began from weights with NaN and infinity.
    """
    meta, step = restored.meta, restored.step
    check_keys(meta, _META, manifest, "meta")
    check_keys(meta["data"], _DATA, manifest, "meta.data")
    if sorted(meta["mesh"]) != sorted(MESH_AXES):
        _refuse(manifest, "mesh", ", ".join(meta["mesh"]) or "no axes", ", ".join(MESH_AXES))
    rows = config.train.rows_before(step)
    if meta["row"] != rows:
        _refuse(manifest, "row", meta["row"], f"{rows}, the next after {step} steps of this run's batch sizes")
    if int(restored.state.step) != step:
        _refuse(manifest, "step", step, f"{int(restored.state.step)}, as the state that was saved counts")
    for _, count in optax.tree_utils.tree_get_all_with_path(restored.state.opt_state, "count"):
        if not 0 <= int(count) <= step:
            what = f"the optimizer has counted {int(count)} steps; allowed: 0 to {step}, of which some may be refused"
            raise CheckpointError(f"{manifest.parent}: {what}")
    if not allow_nonfinite:
        check_finite(manifest.parent, restored.state, mesh)


def _refuse(manifest: pathlib.Path, name: str, got: object, allowed: str) -> None:
    raise CheckpointError(f"{manifest}: meta.{name}: got {got}; allowed: {allowed}")
