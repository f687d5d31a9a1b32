"""What `compute.remat=auto` becomes: the most that a device holds, by a count that never leaves out what is named."""

import dataclasses

import jax
import pytest

from configs import bench_1b
from mm01_jax.model import decoder, remat
from mm01_jax.plan.planner import abstract_mesh
from mm01_jax.plan.targets import parse
from mm01_jax.train import step
from tests import small

GIB = 2**30
H200 = parse("h200-1")


def settled(config, memory: int | None) -> str:
    mesh = abstract_mesh(config, H200)
    with jax.sharding.use_abstract_mesh(mesh):
        return remat.settle(config, step.abstract_state(config, mesh), memory)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(141 * GIB, "none"), (80 * GIB, "none"), (40 * GIB, "named"), (24 * GIB, "full"), (None, "full")],
)
def test_auto_is_the_most_that_the_memory_holds(memory, expected):
    assert settled(bench_1b.get_config(), memory) == expected


def test_what_is_asked_for_is_what_one_gets():
    config = bench_1b.get_config()
    for asked in ("none", "dots", "full"):
        assert (
            settled(dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat=asked)), 1) == asked
        )


def test_layers_that_are_walked_are_never_without_remat(monkeypatch):
    monkeypatch.setattr(remat, "unrolls", lambda model, remat: False)
    assert settled(bench_1b.get_config(), 1000 * GIB) == "named"


def test_the_count_is_that_of_the_kept_values_of_a_step(capsys):
    """Of one lightning layer in bfloat16."""
    config = small.config(model__num_periods=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, period=("lightning",)))
    with small.one_device():
        model = small.model(small.Variant(config.model, dataclasses.replace(small.COMPUTE, dtype="bfloat16")))
        layer = next(decoder._taken_apart(model.stacks[0], "bfloat16"))
        tokens = small.batch([[0] * 32] * 2)
        x = jax.numpy.zeros((2, 32, config.model.embed_dim), "bfloat16")

        def run(x, layer):
            step = jax.checkpoint(lambda *a: decoder._one_layer("contiguous", *a), policy=decoder.REMAT["named"])
            return step((jax.numpy.ones(2), tokens.positions, tokens.segments), x, layer)[0].sum()

        jax.ad_checkpoint.print_saved_residuals(run, x, layer)
    kept = 0
    for line in capsys.readouterr().out.splitlines():
        kind, _, rest = line.partition("[")
        shape = [int(n) for n in rest.partition("]")[0].split(",") if n]
        if "from the argument" not in line and kind in ("bf16", "f32") and len(shape) > 1:
            kept += {"bf16": 2, "f32": 4}[kind] * int(jax.numpy.prod(jax.numpy.asarray(shape)))
    counted = remat.named_bytes(
        dataclasses.replace(config, compute=dataclasses.replace(config.compute, dtype="bfloat16"))
    )
    assert kept <= counted <= 1.5 * kept
