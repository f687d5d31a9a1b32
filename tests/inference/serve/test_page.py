"""The page at `/`: what a browser may load for it, and a conversation in one."""

import http.client
import os
import re
import subprocess

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("llguidance")

from tests.inference.serve import chromium, fronts  # noqa: E402


@pytest.fixture(scope="module")
def running():
    with fronts.running() as found:
        yield found


def test_the_page_names_nothing_that_lies_elsewhere_and_may_load_nothing_else(running):
    html = running.raw("/").decode()
    assert not re.search(r"https?://|\ssrc=|\shref=|@import|url\(", html)
    for field in re.findall(r'<(?:input|textarea) [^>]*id="(\w+)"', html):  # each has a name for who cannot see it
        assert re.search(rf'<label for="{field}"|<label>[^<]*<input id="{field}"', html), field
    status, _, headers = running.ask("/state")
    assert status == 200
    policy = running.headers("/")["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "connect-src 'self'" in policy


def test_the_state_says_what_runs_and_waits_in_numbers_alone(running):
    statistics = {"running": 1, "prefix": {"bytes": 1024}}
    with running.connect() as end:
        end.sendall(fronts.request("/v1/completions", {"model": "tiny", "prompt": "secret wait", "max_tokens": 4}))
        running.engine.wait_until(lambda message: "ask" in message)
        running.front.channel.say({"statistics": statistics})
        _, said, _ = running.ask("/state")
        while not said["engine"]:
            _, said, _ = running.ask("/state")
    assert said["answers"] == [{"prompt": 11, "cached": 0, "said": 0}] and said["engine"] == statistics
    assert (said["slots"], said["status"], said["model"]) == (fronts.SLOTS, "ok", "tiny")
    assert "secret" not in str(said)


def test_while_the_model_is_loaded_the_page_is_there_and_all_else_says_so():
    with fronts.loading() as (_, port):
        for path, status, said in (
            ("/", 200, b"<!doctype html>"),
            ("/health", 503, b'"loading"'),
            ("/state", 503, b'"loading"'),
            ("/v1/models", 503, b'"loading"'),
            ("/metrics", 503, b'"loading"'),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            reply = connection.getresponse()
            assert (reply.status, said in reply.read()) == (status, True), path
            connection.close()


@pytest.fixture(scope="module")
def browser():
    """Chromium; where there is none, and packages may be installed, Debian's."""
    if chromium.installed() is None and os.geteuid() == 0:
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium-headless-shell"]):
            subprocess.run(["apt-get", "--quiet", "--quiet", *command], check=False, capture_output=True)
    found = chromium.installed()
    if found is None:
        pytest.skip("no Chromium here, and none to install")
    return found


@pytest.mark.slow
def test_a_conversation_is_held_with_the_keyboard_alone_and_nothing_else_is_asked(running, browser, tmp_path):
    running.engine.says = "Grüße 👋 <b>plain</b>"
    url = f"http://127.0.0.1:{running.port}/"
    with chromium.Page(browser, url) as page:
        page.until("document.getElementById('status')?.textContent === 'ok'")
        page.write("Hello <script>alert(1)</script>")
        page.press("Enter", 13, "\r")
        page.until("document.querySelector('.assistant:not([aria-busy]) span')")
        assert page.value("document.querySelector('.user').textContent") == "Hello <script>alert(1)</script>"
        assert page.value("document.querySelector('.assistant').textContent") == running.engine.says
        assert page.value("document.activeElement.id") == "text"
        page.until(f"document.querySelectorAll('#slots i').length === {fronts.SLOTS}")
        running.engine.says = ""  # nothing comes
        page.write("wait")
        page.press("Enter", 13, "\r")
        page.until("document.querySelector('[aria-busy]')")
        page.press("Escape", 27)
        page.until("document.body.innerText.includes('(stopped)')")
        page.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000
        assert all(asked.startswith(url) for asked in page.asked) and len(page.asked) >= 3
    running.engine.wait_until(lambda message: "cancel" in message)


@pytest.mark.slow
def test_what_the_server_refuses_is_said_on_the_page(running, browser):
    with chromium.Page(browser, f"http://127.0.0.1:{running.port}/") as page:
        page.until("document.getElementById('status')?.textContent === 'ok'")
        page.write("x" * fronts.CONTEXT)
        page.press("Enter", 13, "\r")
        page.until("document.querySelector('.wrong')")
        assert "allowed: at most" in page.value("document.querySelector('.wrong').textContent")


@pytest.mark.slow
def test_the_page_says_that_the_model_is_being_loaded_and_then_that_it_is_there(browser):
    with fronts.loading() as (made, port), chromium.Page(browser, f"http://127.0.0.1:{port}/") as page:
        page.until("document.getElementById('status')?.textContent === 'the model is being loaded'")
        fronts.Running(made, port, {})
        page.until("document.getElementById('status').textContent === 'ok'")
