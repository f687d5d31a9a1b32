"""Which values a resumed run may change: those that decide how long it goes on and what it reports, not its numbers."""

from mm01_jax.config import Config, Problem, fields

MAY_CHANGE = (
    "train.steps",
    "train.eval_every",
    "train.eval_batches",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "data.prefetch",
    # How a mesh is used. Like the mesh, they change sums' order alone.
    "compute.exchange",
    "compute.sequence_attention",
    "compute.sequence_layout",
)


def resume_problems(saved: Config, new: Config) -> list[Problem]:
    """Every change against the run's saved config that a resumed run refuses, by name.

    The mesh may change too: the state restores bit for bit, later losses agree to rounding; the caller reports it from
    `fields.differences`.
    """
    refused = [
        change
        for change in fields.differences(saved, new)
        if change[0] not in MAY_CHANGE and not change[0].startswith("mesh.")
    ]
    allowed = "the value that the run in this work directory was started with; another value is another --workdir"
    return [Problem(key=key, got=after, allowed=allowed, nearest=repr(before)) for key, before, after in refused]
