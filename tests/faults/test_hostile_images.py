"""An image that is none is refused in one line that names it, within half a second and 50 MiB."""

import re
import tracemalloc

import pytest

from mm01_jax.data.images.decoding import decode
from mm01_jax.data.images.opening import open_image
from tests.faults.hostile_images import CASES, refusal, saved


@pytest.fixture(scope="module", autouse=True)
def started():
    """The process that decodes some of them: it takes its half second once."""
    decode(open_image(saved("gif")), "a.gif")


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_image_is_refused_by_name(name, tmp_path):
    tracemalloc.start()
    said, seconds = refusal(name, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said.startswith("picture: ") and "\n" not in said, said
    assert re.search(CASES[name][1], said), said
    assert seconds < 0.5 and peak < 50 * 2**20


def test_there_are_sixty():
    assert len(CASES) >= 60
