"""Names of machines: what they mean, and what is said to a name that means nothing."""

import pytest

from mm01_jax.config import ConfigError
from mm01_jax.plan import targets


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
        ("H200-8", "h100-8"),
        ("v5p1024", "v5p-1024"),
        ("v7q-64", "v5p-64"),
    ],
)
def test_unknown_target_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(ConfigError) as refused:
        targets.parse(name)
    assert "--target" in str(refused.value)
    assert refused.value.problems[0].nearest.split("-")[1] == nearest.split("-")[1]
