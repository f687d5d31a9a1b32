"""Which meshes of a host are measured: every axis alone, every pair, and where it divides every three; each whole."""

import math

import pytest

from benchmarks import scaling, scaling_case


@pytest.mark.parametrize(("devices", "count"), [(2, 4), (4, 10), (8, 14)])
def test_every_mesh_of_a_host_once(devices, count):
    meshes = scaling.meshes(devices)
    assert len({*meshes}) == len(meshes) == count
    assert all(math.prod(size for _, size in mesh) == devices for mesh in meshes)


def test_weak_scaling_gives_every_gpu_the_rows_of_one():
    alone, strong, weak = (
        scaling_case.config_of(scaling_case.Case("bench_1b", scaling, mesh))
        for scaling, mesh in (("strong", ()), ("strong", (("data", 4),)), ("weak", (("data", 4),)))
    )
    assert alone.train.batch_size == strong.train.batch_size == scaling_case.ROWS
    assert weak.train.batch_size == 4 * scaling_case.ROWS
    assert strong.mesh.data == 4


def test_a_period_of_the_released_model_has_its_widths():
    config = scaling_case.config_of(scaling_case.Case("text_01_period", "strong", (("expert", 4),)))
    assert (config.model.embed_dim, config.model.expert_dim, config.model.num_heads) == (6144, 9216, 64)
    assert config.model.num_periods == 1
    assert config.mesh.expert == 4
