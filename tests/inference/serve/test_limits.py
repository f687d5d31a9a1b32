"""Keys and what each may have a minute; counts at /metrics."""

import re

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("llguidance")

from mm01_jax.inference.serve import keys  # noqa: E402
from mm01_jax.inference.serve.errors import Refused  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402

COMPLETION = "/v1/completions"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(key: keys.Key) -> str | None:
    """The seconds to wait, None where the request is taken."""
    try:
        key.check()
    except Refused as why:
        assert (why.status, why.body["error"]["code"]) == (429, "rate_limit_exceeded")
        return why.headers["retry-after"]
    return None


def test_a_key_has_its_requests_of_a_minute_and_then_those_that_flow_in():
    clock = Clock()
    key = keys.Key({"requests": 6}, clock)
    assert [refused(key) for _ in range(7)] == [None] * 6 + ["10"]
    clock.now += 9.5
    assert refused(key) == "1"
    clock.now += 0.5
    assert refused(key) is None and refused(key) == "10"
    clock.now += 1000
    assert [refused(key) for _ in range(7)] == [None] * 6 + ["10"]  # silence gives no more than a minute's


def test_tokens_that_were_taken_beyond_a_minute_s_are_paid_back_before_more_are_given():
    clock = Clock()
    key = keys.Key({"tokens": 60}, clock)
    assert refused(key) is None
    key.spend(100)
    assert refused(key) == "41"
    clock.now += 41
    assert refused(key) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got no key"),
        ("# none\n\n", "got no key"),
        ("a requests=0", "line 1: got 'requests=0'"),
        ("a\nsecret tokens=many", "line 2: got 'tokens=many'"),
        ("secret speed=3", "allowed: requests=N, tokens=N"),
        ("a requests=" + "1" * 400, "of 15 digits at most"),
        ("secret\nb\nsecret", "line 3: got a key that stands above"),
    ],
)
def test_a_file_of_keys_that_is_wrong_names_the_line_and_no_key(text, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        keys.parse(text)
    assert "secret" not in str(error.value)


@pytest.fixture(scope="module")
def running():
    with fronts.running(keys=keys.parse("free\nfew requests=2\nshort tokens=8\n")) as found:
        yield found


def test_each_key_has_its_own_limits_and_is_told_when_to_come_again(running):
    def ask(key: str):
        return running.ask(COMPLETION, fronts.GOOD, authorization=f"Bearer {key}")

    assert [ask("few")[0] for _ in range(3)] == [200, 200, 429]
    status, said, headers = ask("few")
    assert said["error"]["type"] == "rate_limit_error" and 1 <= int(headers["retry-after"]) <= 30
    assert [ask("short")[0] for _ in range(2)] == [200, 429]  # four of the prompt, four of the answer
    assert [ask("free")[0] for _ in range(5)] == [200] * 5


def counted(running) -> dict[str, float]:
    """Every line of /metrics."""
    raw = running.raw("/metrics", authorization="Bearer free")
    lines = [line.rpartition(" ") for line in raw.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_metrics_count_requests_tokens_and_latencies_and_say_what_the_engine_says(running):
    assert running.ask("/metrics")[0] == 401
    statistics = {"waiting": 3, "running": 2, "free_slots": 1, "decoded_tokens": 9}
    prefix = {"lookups": 5, "hits": 4, "misses": {"new tokens": 1}}
    running.front.channel.say({"statistics": statistics | {"prefix": prefix}})
    before = counted(running)
    body = {"authorization": "Bearer free"}
    assert running.ask(COMPLETION, fronts.GOOD, **body)[0] == 200
    assert running.ask(COMPLETION, fronts.GOOD | {"n": 0}, **body)[0] == 400
    assert running.ask("/nowhere", fronts.GOOD, **body)[0] == 404
    after = counted(running)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('mm01_requests_total{path="/v1/completions",status="200"}') == 1
    assert grown('mm01_requests_total{path="/v1/completions",status="400"}') == 1
    assert grown('mm01_requests_total{path="other",status="404"}') == 1
    assert grown("mm01_prompt_tokens_total") == grown("mm01_generated_tokens_total") == 4
    assert grown("mm01_time_to_first_token_seconds_count") == 1 and grown("mm01_inter_token_seconds_count") == 3
    assert grown("mm01_request_seconds_count") == 1 and after["mm01_open_answers"] == 0
    assert (after["mm01_queue"], after['mm01_slots{state="running"}'], after['mm01_slots{state="free"}']) == (3, 2, 1)
    assert (after["mm01_prefix_hits_total"], after['mm01_prefix_misses_total{reason="new tokens"}']) == (4, 1)
