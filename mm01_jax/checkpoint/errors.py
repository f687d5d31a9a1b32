"""What can go wrong with a checkpoint, by who has to act, and how this room opens files."""

from mm01_jax import files


class CheckpointError(Exception):
    """A checkpoint is damaged or incomplete; the message names the file and the tensor."""

    exit_code = 3


class NoValidCheckpoint(CheckpointError):
    """A directory holds checkpoints and none of them verifies: starting anew would lose the run."""


class OtherVersion(CheckpointError):
    """A sound checkpoint that another version wrote; the message names it. Exit code 3, never skipped as damaged."""


class Unfit(CheckpointError, ValueError):
    """A checkpoint or an array file holds other things than the model: a ValueError, where a caller's own was wrong."""


class SaveFailed(Exception):
    """A save did not complete (full disk, I/O error). Steps saved before it are untouched."""

    exit_code = 74


FILES = files.Door(CheckpointError)
