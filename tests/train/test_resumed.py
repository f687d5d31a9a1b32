"""What a saved step says of itself is compared with the run and with its own state, where its digests are right."""

import dataclasses
import pathlib
import types

import jax.numpy as jnp
import optax
import pytest

from configs import tiny
from mm01_jax.checkpoint import CheckpointError
from mm01_jax.train import resumed

CONFIG = tiny.get_config()
DATA = {"fingerprint": "", "tokenizer": "", "held_out": 0.1, "seed": 0, "packing": 1, "bad_records": [], "files": {}}


@pytest.mark.parametrize(("count", "taken"), [(0, True), (3, True), (4, True), (5, False), (1100, False), (-7, False)])
def test_an_optimizer_that_has_counted_other_steps_than_there_were_is_refused(count, taken):
    counted = optax.ScaleByAdamState(count=jnp.int32(count), mu=(), nu=())
    state = types.SimpleNamespace(step=jnp.int32(4), opt_state=(optax.EmptyState(), counted))
    mesh = {axis: 1 for axis in dataclasses.asdict(CONFIG.mesh) if axis != "rules"}
    meta = {"row": CONFIG.train.rows_before(4), "data": DATA, "mesh": mesh}
    restored = types.SimpleNamespace(meta=meta, step=4, state=state)

    def check():
        resumed.check(restored, CONFIG, None, pathlib.Path("00000004/manifest.json"), allow_nonfinite=True)

    if taken:
        check()
        return
    with pytest.raises(CheckpointError, match=rf"00000004: the optimizer has counted {count} steps; allowed: 0 to 4"):
        check()
