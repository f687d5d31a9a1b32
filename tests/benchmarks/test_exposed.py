"""What a profile says of messages: which milliseconds they hold up, and which they share with other work."""

import pytest

from benchmarks.exposed import Event, Exposure, exposed_by, exposure


def _events(device: str, *spans: tuple[str, float, float]) -> list[Event]:
    return [Event(device, name, name, start, stop - start) for name, start, stop in spans]


NCCL, COPY, WORK = "ncclDevKernel_AllGather_RING_LL", "MemcpyP2P", "loop_fusion_3"
# message  0..4        6..7        two messages at once count once
# work        2..5           8..9
ONE = _events("0", (NCCL, 0, 4), (COPY, 3, 4), (WORK, 2, 5), (COPY, 6, 7), (WORK, 8, 9), (WORK, 8, 8.5))


def test_a_message_is_exposed_where_no_other_work_runs():
    assert exposure(ONE) == Exposure(whole=9, computing=4, messages=5, exposed=3, idle=2)


def test_devices_are_averaged():
    other = _events("1", (WORK, 0, 9))
    assert exposure(ONE + other) == Exposure(whole=9, computing=6.5, messages=2.5, exposed=1.5, idle=1)


def test_exposed_milliseconds_of_all_labels_add_up():
    by = exposed_by(ONE, lambda event: event.name)
    assert by == {NCCL: 2, COPY: 1}
    assert sum(by.values()) == exposure(ONE).exposed


def test_instructions_of_a_tpu_are_messages_by_their_own_name():
    assert Event("0", "all-gather-start.3", "all-gather-start.3", 0, 1).is_message
    assert not Event("0", "fusion.7", "fusion.7", 0, 1).is_message


def test_an_empty_profile_is_refused():
    with pytest.raises(ValueError, match="no kernel"):
        exposure([])
