"""By which names a server may be asked, and paths that are almost one."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("llguidance")

from mm01_jax.inference.serve import front, keys  # noqa: E402
from mm01_jax.inference.serve.hosts import is_loopback  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402

COMPLETION = "/v1/completions"


@pytest.fixture(scope="module")
def running():
    with fronts.running() as found:
        yield found


@pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com."])
def test_another_site_s_name_that_leads_here_is_refused_on_every_path(running, host):
    for path, body in (("/", None), ("/health", None), ("/state", None), ("/nowhere", None), (COMPLETION, fronts.GOOD)):
        status, said, _ = running.ask(path, body, host=host)
        assert (status, said["error"]["code"], said["error"]["param"]) == (403, "host_not_allowed", "host"), path


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.", "a.localhost:1", "127.0.0.1", "[::1]:8000", "10.1.2.3:80"]
)
def test_names_that_no_site_can_have_are_taken(running, host):
    assert running.ask(COMPLETION, fronts.GOOD, host=host)[0] == 200


def test_the_name_of_the_flag_is_taken_and_who_has_keys_or_is_open_to_all_is_asked_by_any_name():
    for address, asked, name, found in (("127.0.0.1", [], "my.machine", 200), ("0.0.0.0", [], "0.0.0.0", 200)):
        listening = front.listen(address, 0)
        port = listening.getsockname()[1]
        with front.Front(listening, asked, name) as made:
            status, _, _ = fronts.Running(made, port, {}).ask(COMPLETION, fronts.GOOD, host="My.Machine:80")
            assert status == found
    with fronts.running(keys.parse("secret")) as made:
        assert made.ask(COMPLETION, fronts.GOOD, host="evil.com")[0] == 401
        assert made.ask(COMPLETION, fronts.GOOD, host="a.proxy", authorization="Bearer secret")[0] == 200


def test_addresses_of_this_machine_alone_are_known():
    assert [is_loopback(it) for it in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.0.0.1", "x")] == [
        *[True] * 3,
        *[False] * 4,
    ]


@pytest.mark.parametrize("path", ["/health/", "/v1/completions/", "/tokenize/"])
def test_a_path_with_a_slash_too_many_is_none_and_leads_nowhere(running, path):
    body = None if path == "/health/" else fronts.GOOD
    status, said, headers = running.ask(path, body, host="localhost:1")
    assert status == 404 and said["error"]["param"] == "path" and "location" not in headers


def test_another_method_than_a_path_has_is_told_which_it_has(running):
    status, _, headers = running.ask(COMPLETION)
    assert status == 405 and headers["allow"] == "POST"
    status, _, headers = running.ask("/v1/models", {})
    assert status == 405 and "GET" in headers["allow"]


def test_more_answers_than_there_is_room_for_name_the_field_that_asks_for_them(running):
    for change, name in (({"prompt": ["x"] * 9}, "prompt"), ({"n": 9}, "n"), ({"prompt": ["x"] * 3, "n": 3}, "n")):
        status, said, _ = running.ask(COMPLETION, fronts.GOOD | change)
        assert (status, said["error"]["param"]) == (400, name) and "9 answers at a time" in said["error"]["message"]


def test_no_tokens_are_no_text_as_no_text_is_no_tokens(running):
    assert running.ask("/tokenize", {"prompt": ""})[1]["tokens"] == []
    assert running.ask("/detokenize", {"tokens": []})[:2] == (200, {"prompt": ""})
