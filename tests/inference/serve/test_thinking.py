"""Thoughts of an answer beside its text, streamed and whole: `reasoning_content`."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.inference.serve import fronts  # noqa: E402

SAID = "<think>\nWhy not é?\n</think>\n\nYes 好."
TEMPLATE = (
    "{% for m in messages %}<beginning_of_sentence>{{ m.role }}\n{{ m.content }}<end_of_sentence>\n{% endfor %}"
    "{% if add_generation_prompt %}<beginning_of_sentence>assistant\n{% endif %}{# <think></think> #}"
)
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "?"}]}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    template = tmp_path_factory.mktemp("template") / "thinks.jinja"
    template.write_text(TEMPLATE)
    with fronts.running(template=str(template)) as found:
        found.engine.says = SAID
        yield found


def test_thoughts_stand_beside_the_answer_whole_and_streamed(running):
    status, whole, _ = running.ask("/v1/chat/completions", BODY)
    said = whole["choices"][0]["message"]
    assert (status, said["reasoning_content"], said["content"]) == (200, "Why not é?", "Yes 好.")
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("Why not é?".encode())
    events = running.stream("/v1/chat/completions", BODY | {"stream": True, "stream_options": {"include_usage": True}})
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == said[name]
    assert json.dumps(events[-1]["usage"]) == json.dumps(whole["usage"])
