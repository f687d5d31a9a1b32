"""Checkpoints: training steps and converted weights in one format on disk (docs/checkpoints.md)."""

from mm01_jax.checkpoint.disk_grid import MOST_LEAVES, leaf_paths, leaf_stacks
from mm01_jax.checkpoint.errors import FILES, CheckpointError, NoValidCheckpoint, OtherVersion, SaveFailed, Unfit
from mm01_jax.checkpoint.finite import check_finite
from mm01_jax.checkpoint.lock import Locked, RunLock
from mm01_jax.checkpoint.manifest import Leaf, Manifest
from mm01_jax.checkpoint.manifest import read_file as read_manifest
from mm01_jax.checkpoint.placement import place
from mm01_jax.checkpoint.plain import check_keys
from mm01_jax.checkpoint.processes import any_of
from mm01_jax.checkpoint.reader import Checkpoint, load_weights, open_checkpoint
from mm01_jax.checkpoint.steps import Checkpoints, Restored
from mm01_jax.checkpoint.writer import ArrayWriter

__all__ = [
    "FILES",
    "MOST_LEAVES",
    "ArrayWriter",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "Leaf",
    "Locked",
    "Manifest",
    "NoValidCheckpoint",
    "OtherVersion",
    "Restored",
    "RunLock",
    "SaveFailed",
    "Unfit",
    "any_of",
    "check_finite",
    "check_keys",
    "leaf_paths",
    "leaf_stacks",
    "load_weights",
    "open_checkpoint",
    "place",
    "read_manifest",
]
