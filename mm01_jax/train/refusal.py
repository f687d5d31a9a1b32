"""Why a step was refused, and what to set so that the next is not."""

from typing import Any

import numpy as np

from mm01_jax.config import ComputeConfig
from mm01_jax.messages import counted


def reason(values: dict[str, Any], compute: ComputeConfig) -> str:
    """What of a step's metrics (`step.train_step`) tells why."""
    told = [f"loss {values['loss']}", f"gradient norm {values['grad_norm']}"]
    if values["overflow"]:
        rows, busiest = counted(int(values["overflow"]), "row"), _busiest(values)
        bound = f"compute.dropless_bound={compute.dropless_bound}"
        if (shard := compute.dropless_shard_bound) is not None:
            bound += f", compute.dropless_shard_bound={shard}"
        told.append(f"{rows} of experts beyond {bound} (the busiest expert has {busiest:.2f} times the balanced load)")
    return ", ".join([*told, f"learning rate {values['learning_rate']:g}"])


def advice(values: dict[str, Any] | None, compute: ComputeConfig, where: str = "its rows") -> str:
    """What to change. values: of the step, None where they are not known any more."""
    bounded = "compute.dropless_bound=None, which holds every routing"
    if values is not None and values["overflow"]:
        # A group of tokens on a device may be less even than the batch, of which the load is told.
        return f"Set {bounded} for more memory, or a bound well above {_busiest(values):.2f}."
    lower = f"Try a lower optimizer.schedule.peak, or look at {where}."
    if values is None and compute.dropless_bound is not None:
        return f"{lower} If rows of experts were too many: {bounded}."
    return lower


def _busiest(values: dict[str, Any]) -> float:
    return float(np.max(values["expert_load"]))
