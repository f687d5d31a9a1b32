"""What a client does wrong is said by the name of the field, and the next good request is answered."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from mm01_jax.inference.serve import keys  # noqa: E402
from mm01_jax.inference.serve.body import MOST_BYTES  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402


@pytest.fixture(scope="module")
def running():
    with fronts.running() as found:
        yield found


COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
SAID = [{"role": "user", "content": "x"}]


def tool(**more) -> dict:
    return {"tools": [{"type": "function", "function": {"name": "f"} | more}]}


def json_schema(**more) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}} | more}}


def turns(*more) -> dict:
    return {"messages": [*SAID, *more]}


def called(arguments) -> dict:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    return turns({"role": "assistant", "content": None, "tool_calls": calls})


OTHER = {"tools": [{"type": "function", "function": {"name": "g"}}]}
REFERS = tool(parameters={"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}})
F_ALONE = {"tool_choice": {"type": "function", "function": {"name": "f"}}}
# A path, fields beside the good ones, the field that is named.
_BOTH = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": {}}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 9}, "n"),  # more than run and wait
    ({"best_of": 2}, "best_of"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"seed": 0.5}, "seed"),
    ({"seed": 2**70}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1e9}, "max_tokens"),
    ({"max_tokens": fronts.CONTEXT}, "max_tokens"),  # beside the prompt
    ({"stop": ""}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", 3]}, "stop[1]"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "\ud800"}, "stop"),
    ({"\ud800": 1}, "\\ud800"),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": 3}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ({"logit_bias": {"257": 1}}, "logit_bias.257"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
    ({"model": 3}, "model"),
    ({"model": None}, "model"),
    ({"user": 3}, "user"),
    ({"temprature": 1}, "temprature"),
]
CASES = [
    *[(path, fields, named) for path in (COMPLETION, CHAT) for fields, named in _BOTH],
    *[
        (COMPLETION, fields, named)
        for fields, named in (
            ({"prompt": None}, "prompt"),
            ({"prompt": ""}, "prompt"),
            ({"prompt": 3}, "prompt"),
            ({"prompt": [1.5]}, "prompt[0]"),
            ({"prompt": []}, "prompt"),
            ({"prompt": [[]]}, "prompt[0]"),
            ({"prompt": ["a", 3]}, "prompt[1]"),
            ({"prompt": [1, "a"]}, "prompt[1]"),
            ({"prompt": [1, True]}, "prompt[1]"),
            ({"prompt": [1, 1.5]}, "prompt[1]"),
            ({"prompt": [1, -1]}, "prompt[1]"),
            ({"prompt": [1, fronts.VOCAB]}, "prompt[1]"),
            ({"prompt": [[1], [2, fronts.VOCAB]]}, "prompt[1][1]"),
            ({"prompt": [[1], "a"]}, "prompt[1]"),
            ({"prompt": {"a": 1}}, "prompt"),
            ({"prompt": "a\udc00"}, "prompt"),
            ({"prompt": "a" * fronts.CONTEXT}, "prompt"),
            ({"prompt": ["a"] * 9}, "prompt"),
            ({"logprobs": 6}, "logprobs"),
            ({"logprobs": True}, "logprobs"),
            ({"echo": "yes"}, "echo"),
            ({"suffix": "end"}, "suffix"),
        )
    ],
    *[
        (CHAT, fields, named)
        for fields, named in (
            ({"messages": None}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "x"}, "messages"),
            ({"messages": [3]}, "messages[0]"),
            ({"messages": [{}]}, "messages[0].role"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
            ({"messages": [*SAID, {"role": "user"}]}, "messages[1].content"),
            ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
            ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
            ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
            ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0].mood"),
            ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": "x" * fronts.CONTEXT}]}, "messages"),
            ({"max_completion_tokens": 0}, "max_completion_tokens"),
            ({"logprobs": 2}, "logprobs"),
            ({"top_logprobs": 2}, "top_logprobs"),
            ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
            ({"response_format": "json"}, "response_format"),
            ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
            ({"response_format": {"type": "xml"}}, "response_format.type"),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
            (json_schema(name="a b"), "response_format.json_schema.name"),
            (json_schema(schema=[]), "response_format.json_schema.schema"),
            (json_schema(strict=1), "response_format.json_schema.strict"),
            (json_schema(schema={"type": "nope"}), "response_format"),
            (json_schema(schema={"$ref": "http://127.0.0.1/x"}), "response_format"),
            ({"response_format": {"type": "regex", "regex": "("}}, "response_format"),
            ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format"),
            ({"response_format": {"type": "grammar", "regex": "x"}}, "response_format.regex"),
            ({"prompt": "x"}, "prompt"),
            ({"tools": {}}, "tools"),
            ({"tools": [{"type": "web"}]}, "tools[0].type"),
            ({"tools": [{"type": "function"}]}, "tools[0].function"),
            ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
            ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
            (tool(parameters=[]), "tools[0].function.parameters"),
            (tool(strict="yes"), "tools[0].function.strict"),
            (tool(description=1), "tools[0].function.description"),
            ({"tools": tool()["tools"] * 2}, "tools[1].function.name"),
            ({"tools": tool()["tools"] * 129}, "tools"),
            (tool() | {"tool_choice": "any"}, "tool_choice"),
            ({"tool_choice": "required"}, "tool_choice"),
            (tool() | {"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
            (tool(parameters={"type": 3}) | {"tool_choice": "required"}, "tools[0].function.parameters"),
            (tool(parameters={"type": "string"}), "tools[0].function.parameters"),
            (tool(parameters={"type": ["array"]}) | {"tool_choice": "required"}, "tools[0].function.parameters"),
            (tool(parameters={"anyOf": [{"type": "null"}]}, strict=True), "tools[0].function.parameters"),
            ({"tools": [*OTHER["tools"], *REFERS["tools"]]} | F_ALONE, "tools[1].function.parameters"),
            (tool() | {"tool_choice": "required"} | json_schema(schema={"type": "nope"}), "response_format"),
            ({"response_format": {"type": "regex", "regex": "a{99999999}"}}, "response_format"),
            ({"messages": SAID * 50_001}, "messages"),
            ({"zz": None, "yy": 1, "xx": 1}, "yy"),  # the first of them
            ({"yy": 1, "xx": 1, "zz": 1}, "yy"),
            (tool() | {"parallel_tool_calls": 1}, "parallel_tool_calls"),
            (turns({"role": "tool", "content": "x"}), "messages[1].tool_call_id"),
            (turns({"role": "tool", "content": "x", "tool_call_id": "?"}), "messages[1].tool_call_id"),
            (turns({"role": "assistant", "content": None}), "messages[1].content"),
            (turns({"role": "assistant", "content": None, "tool_calls": []}), "messages[1].content"),
            (turns({"role": "user", "content": "x", "tool_calls": [1]}), "messages[1].tool_calls"),
            (turns({"role": "assistant", "tool_calls": [{"id": "a"}]}), "messages[1].tool_calls[0].function"),
            (called("{"), "messages[1].tool_calls[0].function.arguments"),
            (called("[]"), "messages[1].tool_calls[0].function.arguments"),
            (called({}), "messages[1].tool_calls[0].function.arguments"),
        )
    ],
    ("/tokenize", {"model": "tiny"}, "prompt"),
    ("/tokenize", {"prompt": 3}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/detokenize", {"tokens": [300]}, "tokens[0]"),
    ("/detokenize", {"tokens": "x"}, "tokens"),
]
ALONE = {COMPLETION: {"model": "tiny", "prompt": "x"}, CHAT: {"model": "tiny", "messages": SAID}}


def test_a_wrong_field_is_named_and_the_next_good_request_is_answered(running):
    wrong = []
    for path, fields, named in CASES:
        status, said, _ = running.ask(path, ALONE.get(path, {}) | fields)
        error = said.get("error", {})
        if (status, error.get("param")) != (400, named) or not error["message"].startswith(named):
            wrong.append((path, str(fields)[:80], status, str(said)[:200]))
        assert running.is_well()
    assert len(CASES) >= 120 and not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"[]", 400, "no JSON object"),
        (b'"x"', 400, "no JSON object"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b'{"model": "tiny", "prompt": "\xc3("}', 400, "not UTF-8"),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400, "NaN"),
        (b'{"model": "tiny", "prompt": "x", "temperature": 1e999}', 400, "beyond float64"),
        (b'{"model": "tiny", "prompt": "x", "prompt": "y"}', 400, "'prompt' occurs twice"),
        (b'{"model": "tiny", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "deep"),
        (b'{"model": "tiny", "seed": ' + b"9" * 100_000 + b"}", 400, "digits"),
        (b'{"model": "tiny", "prompt": "' + b"x" * 10_000_000 + b'"}', 413, f"{MOST_BYTES:,}"),
        (b"[" + b"[]," * 2_000_000 + b"[]]", 400, "values"),
    ],
)
def test_a_body_that_is_none_is_refused_before_it_is_looked_into(running, body, status, said):
    found, error, _ = running.ask(COMPLETION, body)
    assert found == status and said in error["error"]["message"], error
    assert running.is_well()


def test_paths_methods_types_and_models_that_there_are_none_of_are_refused_in_the_same_form(running):
    assert running.ask("/v1/completion", fronts.GOOD)[0] == 404
    assert running.ask("/v1/completions")[0] == 405
    assert running.ask(COMPLETION, fronts.GOOD, content_type="text/plain")[0] == 415
    for path in (COMPLETION, CHAT):
        status, said, _ = running.ask(path, ALONE[path] | {"model": "gpt-4"})
        assert status == 404 and (said["error"]["code"], said["error"]["param"]) == ("model_not_found", "model")
    status, said, _ = running.ask("/v1/models/other")
    assert status == 404 and said["error"].keys() == {"message", "type", "param", "code"}


def test_an_answer_without_an_end_has_no_ids_that_end_it(running):
    for path, more, ends in ((COMPLETION, {"stop_token_ids": [7]}, [7]), (CHAT, {}, [])):
        while not running.engine.heard.empty():
            running.engine.heard.get()
        assert running.ask(path, ALONE[path] | more | {"ignore_eos": True, "best_of": 1, "max_tokens": 4})[0] == 200
        assert running.engine.heard.get(timeout=10)["stop_ids"] == ends


def test_ids_that_a_model_has_and_its_tokenizer_has_not_are_no_text():
    with fronts.running(vocab_size=320) as running:
        assert running.ask("/detokenize", {"tokens": [65, 256]})[1] == {"prompt": "A"}
        status, said, _ = running.ask("/detokenize", {"tokens": [65, 257]})
        assert (status, said["error"]["param"]) == (400, "tokens[1]")


def test_what_is_not_http_is_closed_and_harms_nobody(running):
    for sent in (
        b"\x16\x03\x01\x02",
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nx: " + b"y" * 100_000,
    ):
        with running.connect() as end:
            end.sendall(sent)
            head, _, body = end.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["type"] == "invalid_request_error"
    assert running.is_well()


def test_two_hundred_connections_that_never_finish_delay_nobody(running):
    ends = [running.connect() for _ in range(200)]
    whole = fronts.request(COMPLETION, fronts.GOOD)
    for number, end in enumerate(ends):
        end.sendall(whole[: min(number, len(whole) - 1)])
    assert all(running.is_well() for _ in range(5))
    for end in ends:
        end.close()
    assert running.is_well()


def test_keys_are_asked_for_and_no_other_is_taken():
    with fronts.running(keys=keys.parse("first\nsécond\n")) as running:
        assert running.ask("/health")[0] == 200
        for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Basic first"}):
            status, said, _ = running.ask(COMPLETION, fronts.GOOD, **headers)
            assert status == 401 and said["error"]["code"] == "invalid_api_key"
            assert running.ask("/v1/models", **headers)[0] == 401
        for key in ("first", "sécond".encode().decode("latin-1")):
            assert running.ask(COMPLETION, fronts.GOOD, authorization=f"Bearer {key}")[0] == 200
