"""Every member of every kind of fault is met as it must be: a tenth of them by default, all in the long suite."""

import pytest

from tests.faults import kinds


@pytest.mark.parametrize("counts", ["fast", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", kinds.names())
def test_no_member_of_a_kind_goes_wrong(name, counts):
    kind = kinds.load(name)
    outcome = kinds.attempt(kind, kind.chosen(counts))
    assert (outcome.tried or not kind.every) and not outcome.wrong, "\n".join(
        f"{member}: {why}" for member, why in outcome.wrong.items()
    )


def test_what_a_judge_says_or_raises_is_counted_as_wrong():
    def judge(member, room):
        (room / "a file").write_text("left behind")
        return member() or None

    def ends():
        raise RuntimeError("a judge's own fault")

    kind = kinds.Kind("made up", "nothing", {"good": str, "bad": lambda: "it hung", "raises": ends}, judge)
    outcome = kinds.attempt(kind, kind.members)
    assert (outcome.tried, outcome.ok) == (3, 1)
    assert outcome.wrong == {"bad": "it hung", "raises": "RuntimeError: a judge's own fault"}
    assert kind.chosen("full") == list(kind.members) and kind.chosen("fast") == ["good"]
