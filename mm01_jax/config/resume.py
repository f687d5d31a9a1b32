"""What a run may change against the config saved with its weights.

Resumed, a run goes on as it began: all that decides its numbers stays, but for how they are computed, on which devices,
how long it goes on and what it reports. Begun from weights alone, it keeps what the model is.
"""

from collections.abc import Iterable
from typing import Any

from mm01_jax.config import Config, Problem, fields

# Lengths and intervals, and the two sections that change the order of sums alone, or their rounding.
MAY_CHANGE = (
    "train.steps",
    "train.eval_every",
    "train.eval_batches",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.tensorboard",
    "train.profile",
    "data.prefetch",
    "data.source",  # a place: that it holds the same text, or tokens of it, is proved by digests (data/dataset.py)
    "compute.",
    "mesh.",
)
# The dtype of the arrays that are saved: another one would resume other weights than were trained.
_SAVED_AS = "compute.param_dtype"
ROTARY_BASE = "model.rope_theta"


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value at this key."""
    return key.startswith(MAY_CHANGE) and key != _SAVED_AS


def resume_problems(saved: Config, new: Config) -> list[Problem]:
    """Every change against the run's saved config that a resumed run refuses, by name.

    What may change is reported by the caller, from `fields.differences`.
    """
    refused = (change for change in fields.differences(saved, new) if not may_change(change[0]))
    return _refused(refused, "the value that this run was started with; another value is another --workdir")


def model_problems(saved: Config, new: Config, origin: str) -> list[Problem]:
    """Every difference in `model` from the config that was saved with the weights in `origin`, by name.

    Some of these differences have weights of the same shapes and other maths (`rotary_dim`, `norm_eps`). A larger base
    of the rotary positions is how a context is extended (docs/model.md), and stands.
    """
    refused = [change for change in fields.differences(saved, new) if change[0].startswith("model.")]
    refused = [(key, old, new) for key, old, new in refused if key != ROTARY_BASE or new < old]
    return _refused(refused, f"the value of the model whose weights lie in {origin}")


def _refused(changes: Iterable[tuple[str, Any, Any]], allowed: str) -> list[Problem]:
    return [Problem(key=key, got=new, allowed=allowed, nearest=repr(old)) for key, old, new in changes]
