"""No damaged checkpoint is ever restored as if it were sound."""

import pytest

from tests.faults import checkpoint_faults


@pytest.mark.parametrize("each", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_damage_of_every_kind_is_refused_by_name_or_changes_no_bit(tmp_path, each):
    table = checkpoint_faults.count(each, seed=each, workdir=tmp_path)
    print("\n" + checkpoint_faults.as_text(table))
    total = sum(table.values(), start=checkpoint_faults.collections.Counter())
    assert total["silent"] == total["crash"] == 0
    assert total["refused"] + total["identical"] == each * len(checkpoint_faults.KINDS)
    assert total["named"] >= 0.95 * total["refused"]
