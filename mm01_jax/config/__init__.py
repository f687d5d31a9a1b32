"""The configuration of a run: what its values are, which are allowed, how they are read and saved. Imports no jax."""

from mm01_jax.config.problem import Change, ConfigError, Problem
from mm01_jax.config.schema import (
    MESH_AXES,
    ComputeConfig,
    Config,
    DataConfig,
    MeshConfig,
    MixerKind,
    ModelConfig,
    OptimizerConfig,
    Rules,
    ScheduleConfig,
    SequenceLayout,
    TrainConfig,
    VisionConfig,
)

__all__ = [
    "MESH_AXES",
    "Change",
    "ComputeConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "MeshConfig",
    "MixerKind",
    "ModelConfig",
    "OptimizerConfig",
    "Problem",
    "Rules",
    "ScheduleConfig",
    "SequenceLayout",
    "TrainConfig",
    "VisionConfig",
]
