"""Checkpoints: training steps and converted weights in one format on disk (docs/checkpoints.md)."""

from mm01_jax.checkpoint.errors import CheckpointError, NoValidCheckpoint, SaveFailed
from mm01_jax.checkpoint.layout import leaf_paths, stack_axes
from mm01_jax.checkpoint.lock import Locked, RunLock
from mm01_jax.checkpoint.manifest import read_file as read_manifest
from mm01_jax.checkpoint.reader import Checkpoint, load_config, load_weights, open_checkpoint
from mm01_jax.checkpoint.steps import Checkpoints, Restored
from mm01_jax.checkpoint.writer import ArrayWriter

__all__ = [
    "ArrayWriter",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "Locked",
    "NoValidCheckpoint",
    "Restored",
    "RunLock",
    "SaveFailed",
    "leaf_paths",
    "load_config",
    "load_weights",
    "open_checkpoint",
    "read_manifest",
    "stack_axes",
]
