"""A process killed inside a save or a deletion leaves only steps that restore right."""

import pytest

from tests.faults import checkpoint_kills


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_every_step_listed_after_a_kill_restores_the_bits_of_its_number(tmp_path, kills):
    total = checkpoint_kills.count(kills, seed=kills, workdir=tmp_path)
    print("\n" + checkpoint_kills.as_text(total))
    assert total["kills"] == kills
    assert total["wrong"] == total["unreadable"] == total["lost"] == 0
