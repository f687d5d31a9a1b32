"""The picture of a step's speed by the length of its rows."""

from benchmarks import results, train_lengths


def _row(subject: str, quantity: str, value: float) -> results.Row:
    return results.Row(
        what=f"{subject}: {quantity}", value=value, device="one", versions={}, commit=None, command="bench"
    )


def test_train_lengths_draws_a_line_for_each_kind_of_layers():
    rows = [
        _row("step bench_1b whole 4x32768, remat full", "speed", 200e3),
        _row("step bench_1b whole 16x8192, remat full", "speed", 220e3),
        _row("step bench_1b whole 16x8192, remat full", "step", 600.0),
        _row("step bench_1b of softmax whole 16x8192, remat full", "speed", 180e3),
        _row("step bench_1b 4x8192, remat none", "speed", 1e6),  # packed rows are another measurement
    ]
    lines = train_lengths.speeds(rows)
    assert lines == {"hybrid": {8192: 220e3, 32768: 200e3}, "softmax": {8192: 180e3}}
    drawn = train_lengths.picture(lines)
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 3
    assert "lightning" not in drawn
