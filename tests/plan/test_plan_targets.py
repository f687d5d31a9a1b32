"""Names of machines: what they mean, and what is said to a name that means nothing."""

import pytest

from mm01_jax.config import ConfigError
from mm01_jax.plan import compiler, targets


@pytest.mark.parametrize(
    ("name", "chips", "topology"),
    [
        ("v5p-1024", 512, "v5p:8x8x8"),  # Google counts v5p's cores, two a chip
        ("v5p-32", 16, "v5p:2x2x4"),
        ("v5e-256", 256, "v5e:16x16"),
        ("v6e-256", 256, "v6e:16x16"),
        ("v6e-256x2", 512, "v6e:16x16"),
        ("v5p:4x4x8", 128, "v5p:4x4x8"),
        ("h100-512", 512, "1x64x8"),
        ("h100-4", 4, "1x1x4"),
        ("h200-16", 16, "1x2x8"),
    ],
)
def test_target_name_gives_its_chips_and_topology(name, chips, topology):
    found = targets.parse(name)
    assert (found.chips, found.topology) == (chips, topology)


@pytest.mark.parametrize("name", targets.names())
def test_every_listed_target_is_a_target(name):
    assert targets.parse(name).name == name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v5p-1000", "v5p-1024"),
        ("v5p-3", "v5p-8"),
        ("V6e-512", "v6e-256"),
        ("v5litepod-100", "v5e-128"),
        ("h100-500", "h100-512"),
        ("H200-100", "h200-128"),
        ("v5p1024", "v5p-1024"),
        ("v7q-64", "v4-64"),
    ],
)
def test_unknown_target_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(ConfigError) as refused:
        targets.parse(name)
    assert "--target" in str(refused.value)
    assert refused.value.problems[0].nearest == nearest


def test_h200_is_an_h100_with_another_memory():
    h100, h200 = targets.parse("h100-8"), targets.parse("h200-8")
    assert (h200.chip.flops, h200.chip.link_speed) == (h100.chip.flops, h100.chip.link_speed)
    assert h200.chip.hbm > 1.7 * h100.chip.hbm and h200.chip.hbm_speed == 4.8e12
    said = [set(compiler.gpu_config(target).splitlines()) for target in (h100, h200)]
    assert {line.split(":")[0].strip() for line in said[0] ^ said[1]} == {
        "memory_bandwidth",
        "device_memory_size",
        "device_description_str",
    }
