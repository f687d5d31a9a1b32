"""One small run with vision on disk, and pictures, for all tests that ask about some."""

import json

import jax
import pytest
from flax import nnx

from mm01_jax.checkpoint import Checkpoints
from mm01_jax.config import saved
from mm01_jax.model import multimodal
from tests import small
from tests.data import conversation_data as data

SIZES = {"a.png": (20, 20), "b.png": (10, 30), "c.png": (40, 15)}


@pytest.fixture(scope="session")
def vl_run(tmp_path_factory):
    """A run's folder with a VLModel whose images decide what it says."""
    folder = tmp_path_factory.mktemp("vl")
    base = small.config(small.write_text(folder / "text"), train__sequence_length=data.LENGTH)
    config = small.replace(base, vision=data.VISION)
    with small.one_device(), Checkpoints(folder / "run") as checkpoints:
        model = multimodal.build(config, rngs=nnx.Rngs(params=3))
        model = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, model)
        checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    return folder / "run"


@pytest.fixture(scope="session")
def picture_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed, (name, size) in enumerate(SIZES.items()):
        (folder / name).write_bytes(data.png(*size, seed=seed))
    return folder
