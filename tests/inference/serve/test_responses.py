"""/v1/responses as OpenAI's client reads it: thoughts, text and calls as items, whole and from events alike."""

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from mm01_jax.data.tool_calls import MINIMAX_M1, Call  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402
from tests.inference.serve.test_thinking import TEMPLATE  # noqa: E402

TOOL = {"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}
CALLS = [Call("find", '{"q": "é"}'), Call("find", "{}")]
SAID = f"<think>\nHm.\n</think>\n\nSo é.\n{MINIMAX_M1.written(CALLS)}"
ASKED = {"model": "tiny", "input": "?", "instructions": "Be kind.", "tools": [TOOL]}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    template = tmp_path_factory.mktemp("template") / "thinks.jinja"
    template.write_text(TEMPLATE + "{# <tool_calls> #}")
    with fronts.running(template=str(template)) as found:
        yield found


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="any", max_retries=0) as found:
        yield found


def items(response) -> list[tuple]:
    """What an answer's items say, without their ids."""
    found = []
    for item in response.output:
        assert item.status == "completed" and item.id
        said = (item.name, item.arguments) if item.type == "function_call" else item.content[0].text
        found.append((item.type, said))
    return found


WANTED = [
    ("reasoning", "Hm."),
    ("message", "So é."),
    *[("function_call", (call.name, call.arguments)) for call in CALLS],
]


def test_an_answers_items_are_the_same_whole_and_streamed(running, client):
    running.engine.says = SAID
    whole = client.responses.create(**ASKED)
    assert (whole.status, whole.object, whole.output_text, items(whole)) == ("completed", "response", "So é.", WANTED)
    assert whole.usage.output_tokens == len(SAID.encode()) and whole.usage.output_tokens_details.reasoning_tokens == 3
    assert whole.tools[0].name == "find" and whole.instructions == "Be kind." and whole.error is None
    with client.responses.stream(**ASKED) as stream:  # which builds the items of the events
        events = list(stream)
        assert items(stream.get_final_response()) == WANTED
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == "So é."


def test_what_was_answered_can_be_sent_back_with_what_the_tool_returned(running, client):
    running.engine.says = SAID
    first = client.responses.create(**ASKED)
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "found"}
    turns = [{"role": "user", "content": "?"}, *[item.model_dump(exclude_none=True) for item in first.output], result]
    running.engine.says = "Done."
    assert client.responses.create(**ASKED | {"input": turns}).output_text == "Done."


def test_an_answer_that_is_cut_is_incomplete_and_one_of_nothing_an_empty_message(running, client):
    running.engine.says = None
    cut = client.responses.create(model="tiny", input="?", max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason, cut.output[0].status) == (
        "incomplete",
        "max_output_tokens",
        "incomplete",
    )
    *_, last = client.responses.create(model="tiny", input="?", max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete" and last.response.usage.output_tokens == 3
    running.engine.says = "\n"
    assert [item.type for item in client.responses.create(model="tiny", input="?").output] == ["message"]


def test_errors_are_of_the_clients_classes(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**ASKED | {"temperature": 3})
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**ASKED | {"model": "gpt"})
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**ASKED, previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


WRONG = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [3]}, "input[0]"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_call_output", "call_id": "?", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "?", "name": "f"}]}, "input[0].arguments"),
    ({"input": "x" * fronts.CONTEXT}, "input"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": fronts.CONTEXT}, "max_output_tokens"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"instructions": 3}, "instructions"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools[1].name"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "null"}}]}, "tools[0].parameters"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
    (
        {"tools": [{"type": "function", "name": "f", "strict": True, "parameters": {"enum": [1]}}]},
        "tools[0].parameters",
    ),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "?"}}}}, "text.format"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"background": True}, "background"),
    ({"temperature": 3}, "temperature"),
]


def test_a_wrong_field_is_named_and_the_next_good_request_is_answered(running):
    running.engine.says = None
    for more, named in WRONG:
        status, said, _ = running.ask("/v1/responses", {"model": "tiny", "input": "x"} | more)
        assert (status, said["error"]["param"]) == (400, named), (more, said)
        assert running.is_well()
