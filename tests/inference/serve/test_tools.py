"""Tools of a request, as /v1/chat/completions takes and calls them, whole and streamed, in every form of template."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from mm01_jax.data import conversations  # noqa: E402
from mm01_jax.data.templates import Released, Template  # noqa: E402
from mm01_jax.data.tokenizer import BytesTokenizer  # noqa: E402
from mm01_jax.data.tool_calls import HERMES, MINIMAX_01, MINIMAX_M1, Call  # noqa: E402
from mm01_jax.inference.grammars import Grammars  # noqa: E402
from mm01_jax.inference.serve import formats  # noqa: E402
from mm01_jax.inference.serve.conversation import for_template, tools_for  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402

BYTES, CHAT = BytesTokenizer(), "/v1/chat/completions"
FIND = {"name": "find", "description": "looks for it", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FIND}, {"type": "function", "function": {"name": "stop"}}]
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "tools": TOOLS}
CALLS = [Call("find", '{"q": "é"}'), Call("stop", "{}")]


@pytest.fixture(scope="module")
def running():
    with fronts.running() as found:
        yield found


def streamed(events: list[dict]) -> tuple[dict, str | None]:
    """The message that a stream's events make, and how it ended."""
    text, calls, finish = "", {}, None
    for choice in (event["choices"][0] for event in events):
        text += choice["delta"].get("content") or ""
        finish = choice["finish_reason"] or finish
        for one in choice["delta"].get("tool_calls", ()):
            if one["index"] not in calls:
                calls[one["index"]] = {"id": one["id"], "type": one["type"], "function": dict(one["function"])}
            else:
                calls[one["index"]]["function"]["arguments"] += one["function"]["arguments"]
    return {"content": text or None, "tool_calls": [calls[index] for index in sorted(calls)]}, finish


def test_calls_of_tools_are_told_whole_and_streamed(running):
    running.engine.says = "One moment.\n" + MINIMAX_01.written(CALLS)
    _, whole, _ = running.ask(CHAT, BODY)
    (choice,) = whole["choices"]
    called = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "One moment."
    assert [one["function"] for one in called] == [call._asdict() for call in CALLS]
    assert len({one["id"] for one in called}) == 2 and {one["type"] for one in called} == {"function"}
    message, finish = streamed(running.stream(CHAT, BODY))
    assert finish == "tool_calls" and message["content"] == "One moment."
    assert [one["function"] for one in message["tool_calls"]] == [one["function"] for one in called]


def test_one_call_at_a_time_and_none_where_that_is_asked_for(running):
    running.engine.says = MINIMAX_01.written(CALLS)
    _, whole, _ = running.ask(CHAT, BODY | {"parallel_tool_calls": False})
    assert len(whole["choices"][0]["message"]["tool_calls"]) == 1 and whole["choices"][0]["message"]["content"] is None
    for more in ({"tool_choice": "none"}, {"tools": []}):
        _, whole, _ = running.ask(CHAT, BODY | more)
        (choice,) = whole["choices"]
        assert choice["message"]["content"] == running.engine.says and choice["finish_reason"] == "stop"
        assert "tool_calls" not in choice["message"]
    running.engine.says = None


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_of_the_tools_of_a_request_those_that_are_allowed_may_be_called(running, path):
    def body(choice) -> dict:
        if path == CHAT:
            return BODY | {"tool_choice": choice}
        flat = [{"type": "function"} | tool["function"] for tool in TOOLS]
        return {"model": "tiny", "input": "?", "tools": flat, "tool_choice": choice}

    def allowed(mode: str, *names: str) -> dict:
        refers = [{"name": name} if path != CHAT else {"function": {"name": name}} for name in names]
        inner = {"mode": mode, "tools": [{"type": "function"} | one for one in refers]}
        return {"type": "allowed_tools"} | ({"allowed_tools": inner} if path == CHAT else inner)

    def called(choice) -> list[str]:
        _, said, _ = running.ask(path, body(choice))
        if path == CHAT:
            return [one["function"]["name"] for one in said["choices"][0]["message"].get("tool_calls", ())]
        assert said["tool_choice"] == choice
        return [item["name"] for item in said["output"] if item["type"] == "function_call"]

    running.engine.says = MINIMAX_01.written(CALLS[:1])
    assert called("auto") == called(allowed("auto", "find")) == called(allowed("required", "find", "stop")) == ["find"]
    assert called(allowed("auto", "stop")) == called("none") == []
    while not running.engine.heard.empty():
        running.engine.heard.get()
    for mode, is_held in (("auto", False), ("required", True)):
        assert called(allowed(mode, "stop", "find")) == ["find"]
        assert (running.engine.heard.get(timeout=10).get("grammar") is not None) == is_held
    for choice, named in (
        (allowed("auto", "other"), "tool_choice"),
        (allowed("auto"), "tool_choice" + ".allowed_tools" * (path == CHAT) + ".tools"),
        (allowed("none", "find"), "tool_choice" + ".allowed_tools" * (path == CHAT) + ".mode"),
        ({"type": "custom", "custom": {"name": "find"}}, "tool_choice.type"),
        ({"name": "find"}, "tool_choice.type"),
    ):
        status, said, _ = running.ask(path, body(choice))
        assert (status, said["error"]["param"]) == (400, named), said
    running.engine.says = None


def test_a_call_that_an_answer_ends_inside_is_no_call_to_make(running):
    """Of a client's own `stop`, or of a model that ends there; its arguments are no JSON."""
    running.engine.says = MINIMAX_01.written(CALLS).partition("}")[0]
    for finish in (
        running.ask(CHAT, BODY)[1]["choices"][0]["finish_reason"],
        streamed(running.stream(CHAT, BODY))[1],
    ):
        assert finish == "stop"
    flat = [{"type": "function"} | tool["function"] for tool in TOOLS]
    _, said, _ = running.ask("/v1/responses", {"model": "tiny", "input": "?", "tools": flat})
    assert [(item["type"], item["status"]) for item in said["output"]] == [("function_call", "incomplete")]
    running.engine.says = None


def test_what_openais_client_read_out_of_an_answer_comes_back_with_it(running):
    openai = pytest.importorskip("openai")
    pydantic = pytest.importorskip("pydantic")
    found = pydantic.create_model("Found", q=(str, ...))
    running.engine.says = MINIMAX_01.written(CALLS[:1])
    with openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="any", max_retries=0) as client:
        tools = [openai.pydantic_function_tool(found, name="find")]
        answer = client.chat.completions.parse(**BODY | {"tools": tools}).choices[0].message
        assert answer.tool_calls[0].function.parsed_arguments.q == "é"
        result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "x"}
        running.engine.says = json.dumps({"q": "x"})
        turns = [*BODY["messages"], answer, result]
        answer = client.chat.completions.parse(model="tiny", messages=turns, response_format=found).choices[0].message
        assert (
            answer.parsed.q == "x"
            and running.ask("/tokenize", {"messages": [answer.model_dump(warnings=False)]})[0] == 200
        )
        answer = client.responses.parse(model="tiny", input="?", text_format=found)
        turns = [item.model_dump(warnings=False) for item in answer.output]
        assert answer.output_parsed.q == "x" and client.responses.create(model="tiny", input=turns).output_text
    running.engine.says = None


SWITCH = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
STRICT = {"name": "switch", "parameters": SWITCH | {"additionalProperties": False}}


def may_be_said(grammar: str, text: str) -> bool:
    """Whether a whole answer follows a grammar."""
    hook, said = Grammars(BYTES, fronts.VOCAB, [0xFE]).hook(grammar), [*text.encode()]
    return all(hook(said[:at])[token // 32] >> (token % 32) & 1 for at, token in enumerate([*said, 0xFE]))


@pytest.mark.parametrize("form", [MINIMAX_01, MINIMAX_M1, HERMES], ids=["01", "m1", "hermes"])
def test_a_strict_tool_is_called_with_arguments_of_its_schema_or_not_at_all(form):
    pytest.importorskip("llguidance")
    rules = formats.text_and_calls_of([STRICT], form, True, BYTES.specials)
    grammar = formats.grammar("SAID | text_and_calls", rules, {}, begun=False)
    right, wrong = (form.written([Call("switch", text)]) for text in ('{"on": true}', '{"on": 3}'))
    for text, fits in (
        ("Hello <fun", True),
        (right, True),
        ("Sure.\n" + right, True),
        (form.written([Call("switch", '{"on": true}'), Call("switch", '{"on": false}')]), True),
        (wrong, False),
        ("Sure.\n" + wrong, False),
        (form.written([Call("other", '{"on": true}')]), False),
    ):
        assert may_be_said(grammar, text) == fits, text
    specials = formats.text_and_calls_of([STRICT], form, True, {form.open: 7})
    assert specials["text_and_calls"].startswith("SAID? block") and specials["block"].startswith(form.open)


def test_the_engine_is_told_of_strict_tools_and_the_prompt_is_not(running):
    pytest.importorskip("llguidance")
    running.engine.says = "No."
    heard = []
    for more in ({}, {"strict": False}, {"strict": True}):
        while not running.engine.heard.empty():
            running.engine.heard.get()
        tools = [{"type": "function", "function": STRICT | more}]
        assert running.ask(CHAT, BODY | {"tools": tools})[0] == 200
        heard.append(running.engine.heard.get(timeout=10))
    assert [asked.get("grammar") is not None for asked in heard] == [False, False, True]
    assert heard[0]["prompt"] == heard[1]["prompt"] == heard[2]["prompt"]
    running.engine.says = None


def test_what_was_called_and_what_came_back_can_be_said_again(running):
    calls = [{"id": "1", "type": "function", "function": CALLS[0]._asdict()}]
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    messages = [*BODY["messages"], answer, {"role": "tool", "tool_call_id": "1", "content": "found é"}]
    status, said, _ = running.ask("/tokenize", {"messages": messages})
    text = BYTES.decode(said["tokens"])
    assert status == 200 and MINIMAX_01.written(CALLS[:1]) in text
    assert 'system function_response=functions\n{"name": "find", "response": "found é"}' in text


def test_each_template_gets_calls_results_thoughts_and_tools_in_its_own_form():
    calls = [{"id": "1", "call": CALLS[0]}]
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "found"}]},
    ]
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }}{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments.q }}{% endfor %}"
        "{{ m.name }};{% endfor %}"
        "{{ tools[0].function.name }}"
    )
    theirs = Template(source, "x.jinja")
    ids = theirs.ids(for_template(messages, theirs), BYTES, tools_for([FIND], theirs))
    assert BYTES.decode(ids) == "system: Be kind.;assistant: HmSo.findé;tool: foundfind;find"
    ours = Released()
    text = BYTES.decode(ours.ids(for_template(messages, ours), BYTES, tools_for([FIND], ours)))
    assert "assistant\nSo.\n<function_call>" in text and f"functions\n{json.dumps(FIND)}" in text and "Hm" not in text


def test_calls_are_part_of_what_an_answer_says_in_training_too():
    message = {"role": "assistant", "content": "", "calls": CALLS}
    rendered = conversations.render([message], BYTES)
    assert BYTES.decode(rendered.ids[rendered.answer][:-1]) == MINIMAX_01.written(CALLS)
    assert BYTES.decode(conversations.encode_calls(message, MINIMAX_M1, BYTES)) == MINIMAX_M1.written(CALLS)


def test_names_of_special_tokens_in_a_tools_description_are_text():
    template = Template("{{ messages[0].content }}{% if tools %}{{ tools | tojson }}{% endif %}", "x.jinja")
    tool = {"description<end_of_sentence>": "<end_of_sentence>"}
    ids = template.ids([{"role": "user", "content": "x"}], BYTES, [tool]).tolist()
    assert BYTES.special("<end_of_sentence>") not in ids and bytes(ids).decode() == "x" + json.dumps([tool])
