"""A run's profile, its metrics and what it writes for TensorBoard; and that the scopes are those of the code."""

import re
import struct

import jax
import pytest

from mm01_jax import scopes
from mm01_jax.train import loop
from mm01_jax.train.metrics import MetricsLog
from mm01_jax.train.metrics_file import read_metrics
from tests import small
from tests.house.checkout import ROOT


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(what a run of four steps that profiled its third said, its folder)."""
    root = tmp_path_factory.mktemp("profiled")
    config = small.config(small.write_text(root / "text"), train__steps=4, train__profile="3:4", train__eval_every=4)
    with pytest.MonkeyPatch.context() as patch:
        small.use_one_device(patch)
        said = []
        patch.setattr(loop.Progress, "log", lambda self, text: said.append(text))
        loop.run(config, str(root / "run"), log=said.append)
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)
    return said, root / "run"


def test_the_ten_dearest_scopes_are_said_with_their_shares(ran):
    lines = [re.fullmatch(r"  (\w+) +([\d.]+) % +([\d.]+) ms +(\d+)", line) for line in ran[0]]
    rows = [(row[1], float(row[2]), int(row[4])) for row in lines if row]
    assert len(rows) == 10
    shares = [share for _, share, _ in rows]
    assert shares == sorted(shares, reverse=True)
    assert 90.0 < sum(shares) <= 100.5
    assert all(launches > 0 for _, _, launches in rows)


def test_every_scope_of_the_model_has_time_in_the_trace_and_little_has_none(ran):
    times = {scope: seconds for scope, seconds, _ in scopes.read(ran[1] / "profile")}
    assert set(scopes.SCOPES) - {"vision"} <= times.keys()
    assert times[scopes.OTHER] < 0.3 * sum(times.values())


def test_instructions_may_be_called_by_something_else_than_their_scope(ran):
    found = scopes.read(ran[1] / "profile", lambda op_name: "backward" if "transpose(jvp" in op_name else "forward")
    assert {"backward", "forward"} <= {time.scope for time in found}


def test_a_folder_without_a_trace_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trace"):
        scopes.read(tmp_path)


@pytest.mark.parametrize(
    ("op_name", "scope"),
    [
        ("jit(train_step)/while/body/transpose(jvp(experts))/exchange/gather", "exchange"),
        ("jit(train_step)/jvp(lightning)/checkpoint/rematted_computation/mul", "lightning"),
        ("jit(train_step)/jit(softmax)/exp", "other"),  # a function of that name
        ("", "other"),
    ],
)
def test_the_innermost_scope_counts(op_name, scope):
    assert scopes.scope_of(op_name) == scope


def test_the_scopes_are_those_that_the_code_names():
    files = [path for room in ("mm01_jax", "pallas_kernels") for path in (ROOT / room).rglob("*.py")]
    named = {name for path in files for name in re.findall(r'jax\.named_scope\("(\w+)"\)', path.read_text())}
    assert named == {*scopes.SCOPES, *scopes.DECODE_SCOPES}


def test_the_metrics_have_the_losses_and_the_norms(ran):
    records = read_metrics(ran[1])
    for record in records:
        assert record["balance_loss"] >= 0.0
        assert record["z_loss"] > 0.0
        assert record["update_norm"] > 0.0


def test_tensorboard_gets_scalars_and_the_expert_load(ran):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (file,) = (ran[1] / "tensorboard").iterdir()
    raw, tags = file.read_bytes(), {}
    while raw:  # each record: its length, a check sum, the event, a check sum
        (length,) = struct.unpack("<Q", raw[:8])
        event = event_pb2.Event.FromString(raw[12 : 12 + length])
        for value in event.summary.value:
            tags.setdefault(value.tag, []).append((event.step, value.WhichOneof("value")))
        raw = raw[16 + length :]
    assert tags["loss"] == [(step, "simple_value") for step in (1, 2, 3, 4)]
    assert tags["expert_load"] == [(step, "histo") for step in (1, 2, 3, 4)]


def test_tensorboard_is_switched_off_by_the_config(tmp_path):
    config = small.config(train__tensorboard=False)
    MetricsLog(tmp_path, 0, tensorboard=config.train.tensorboard).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
