"""`--mesh=auto`: the mesh that its rule names, at once, and a refusal where no mesh will do."""

import dataclasses
import time
import types

import jax
import pytest

from configs import small as small_config
from configs import text_01, tiny
from mm01_jax.config import ConfigError, MeshConfig
from mm01_jax.convert.sources import with_dtype
from mm01_jax.plan import automatic

H200 = 139 * 2**30


def devices(count: int, of_a_host: int = 8, slices: int = 1) -> list:
    return [types.SimpleNamespace(process_index=i // of_a_host, slice_index=i * slices // count) for i in range(count)]


def choose(module, count: int, memory: float = H200, **place) -> MeshConfig:
    config = with_dtype(module.get_config(), "bfloat16")
    return automatic.choose(config, devices(count, **place), memory)


@pytest.mark.parametrize(
    ("module", "count", "place", "mesh"),
    [
        (tiny, 1, {}, MeshConfig()),
        (text_01, 8, {}, MeshConfig(tensor=8)),  # every device reads its part of each expert
        (text_01, 16, {}, MeshConfig(tensor=8, expert=2)),  # sums over tensor stay inside a host
        (text_01, 16, {"of_a_host": 4}, MeshConfig(tensor=4, expert=4)),
        (text_01, 512, {}, MeshConfig(tensor=8, expert=32, data=2)),  # 32 experts: data has what is left
        (text_01, 32, {"slices": 2}, MeshConfig(tensor=8, expert=2, data=2)),  # data goes over slices
        (small_config, 8, {}, MeshConfig(tensor=4, expert=2)),
        (tiny, 7, {}, MeshConfig(tensor=2, expert=2)),  # no mesh of 7, nor of 6 or 5 without data
    ],
)
def test_the_mesh_is_the_one_of_the_rule(module, count, place, mesh):
    found = choose(module, count, **place)
    assert dataclasses.replace(found, rules=mesh.rules) == mesh


def test_weights_that_fit_nowhere_are_refused_with_both_numbers():
    with pytest.raises(ConfigError) as refused:
        choose(text_01, 8, 80e9)
    said = str(refused.value)
    assert "mesh: got 'auto'; allowed: weights of at most 72.0 GB a device; here they take 114.0 GB" in said
    assert "nearest: 13 devices or more" in said


def test_a_mesh_that_stores_less_is_taken_where_another_does_not_fit():
    found = choose(text_01, 8, 130e9, of_a_host=4)  # tensor 4 leaves attention whole on two expert shards
    assert found.tensor == 8


def test_several_processes_leave_no_device_over(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="a mesh of all 7 devices; the model divides over none"):
        choose(tiny, 7)


def test_the_choice_takes_less_than_a_second():
    choose(text_01, 8)
    start = time.process_time()
    choose(text_01, 512)
    assert time.process_time() - start < 1.0
