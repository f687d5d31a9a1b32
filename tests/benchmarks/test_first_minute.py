"""The bench of the first minute reads jax's log: stages by program, how often each was compiled."""

from benchmarks import first_minute

LOG = [
    (1.5, "WARNING:jax._src.dispatch:Finished tracing train_step for jit in 2.5 sec"),
    (1.6, "WARNING:jax._src.dispatch:Finished tracing <lambda> for jit in 9.0 sec"),
    (1.7, "WARNING:jax._src.dispatch:Finished jaxpr to MLIR module conversion jit(train_step) in 0.75 sec"),
    (8.0, "WARNING:jax._src.dispatch:Finished XLA compilation of jit(train_step) in 6.25 sec"),
    (8.1, "something else"),
    (9.0, "WARNING:jax._src.dispatch:Finished XLA compilation of jit(train_step) in 5.0 sec"),
    (9.1, "WARNING:jax._src.dispatch:Finished XLA compilation of jit(small) in 0.01 sec"),
]


def test_the_log_of_jax_is_read_by_stage_and_program():
    stages, compiled = first_minute.read_log(LOG)
    assert stages == {
        "before the first program": 1.5,
        "train_step: trace": 2.5,
        "train_step: lower": 0.75,
        "train_step: compile": 11.25,
    }
    assert compiled["train_step"] == 2
    assert compiled["small"] == 1


def test_the_table_has_the_median_of_the_stages_that_every_run_has():
    runs = [
        first_minute.Run(s, {"imports": s / 2, **more}, {}) for s, more in ((3.0, {}), (1.0, {"x": 1.0}), (2.0, {}))
    ]
    assert first_minute.table({"training": runs}) == [
        "| | seconds |",
        "| --- | --- |",
        "| **training** | **2.0** (3.0, 1.0, 2.0) |",
        "| imports | 1.0 |",
    ]
