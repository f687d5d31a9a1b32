"""The npm client `openai`, a second implementation of the API, asks a chat model and gets what it expects."""

import pathlib
import shutil
import subprocess

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from tests.inference.serve.running import CHAT_TINY, NAME, Server  # noqa: E402

SCRIPT = pathlib.Path(__file__).with_name("openai_client.mjs")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_npm_client_asks_and_is_answered(tmp_path):
    install = ["npm", "install", "--no-audit", "--no-fund", f"--prefix={tmp_path}", "openai"]
    if subprocess.run(install, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("npm cannot install openai")
    shutil.copy(SCRIPT, tmp_path)
    with Server(f"--checkpoint={CHAT_TINY}", "--template=minimax-01", "--context=896", "--slots=4") as server:
        url = server.until(r"(http://\S+/v1) serves")[1]
        command = ["node", str(tmp_path / SCRIPT.name), url, NAME]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done.stderr
