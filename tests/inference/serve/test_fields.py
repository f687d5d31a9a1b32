"""Fields that change no answer are taken as OpenAI's newest client sends them; what is wrong at any depth is named."""

import itertools
import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from mm01_jax.inference.serve.body import MOST_NAMES  # noqa: E402
from tests.inference.serve import fronts  # noqa: E402
from tests.inference.serve.test_bad_requests import ALONE, CHAT, COMPLETION, SAID, called, json_schema, tool  # noqa: E402

RESPONSE = "/v1/responses"
GOOD = ALONE | {RESPONSE: {"model": "tiny", "input": "x", "max_output_tokens": 4}}
HALF, LONG = "\ud800", 10**50


@pytest.fixture(scope="module")
def running():
    with fronts.running() as found:
        yield found


CACHED = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}
PARTS = {
    CHAT: {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"} | CACHED]}]},
    RESPONSE: {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"} | CACHED]}]},
}
_SHARED = {
    "metadata": {"a": "b"},
    "prompt_cache_key": "a",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "a",
    "service_tier": "flex",
    "user": "a",
}
# What leaves an answer as it is.
TAKEN = {
    COMPLETION: {"best_of": 1, "suffix": "", "user": "a", "stop": None},
    CHAT: _SHARED
    | {
        "max_completion_tokens": 4,
        "max_tokens": 4,
        "modalities": ["text"],
        "prediction": {"type": "content", "content": "x"},
        "store": False,
        "top_logprobs": 0,
        "verbosity": "medium",
    },
    RESPONSE: _SHARED
    | {
        "background": False,
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "max_tool_calls": 3,
        "reasoning": {"mode": "standard", "context": "auto"},
        "store": True,
        "text": {"verbosity": "medium"},
        "top_logprobs": 0,
        "truncation": "disabled",
    },
}
# What would make another, or another kind of thing.
REFUSED = {
    COMPLETION: {"best_of": 2, "suffix": "x"},
    CHAT: {
        "audio": {"format": "wav", "voice": "x"},
        "function_call": "auto",
        "functions": [{"name": "f"}],
        "moderation": {"model": "x"},
        "reasoning_effort": "high",
        "store": True,
        "verbosity": "low",
        "web_search_options": {},
    },
    RESPONSE: {
        "access_programs": {"cyber": "standard"},
        "background_options": {"completion_window": "2h"},
        "background": True,
        "context_management": [{"type": "compaction"}],
        "conversation": "x",
        "image": {"context_compression": "enabled"},
        "moderation": {"model": "x"},
        "previous_response_id": "x",
        "prompt": {"id": "x"},
        "top_logprobs": 2,
        "truncation": "auto",
    },
}


@pytest.mark.parametrize("path", TAKEN)
def test_what_changes_no_answer_is_taken(running, path):
    assert running.ask(path, GOOD[path] | TAKEN[path])[0] == 200
    assert running.ask(path, GOOD[path] | PARTS.get(path, {}))[0] == 200


@pytest.mark.parametrize("path", REFUSED)
def test_what_would_change_an_answer_is_refused_by_its_name(running, path):
    for name, value in REFUSED[path].items():
        status, said, _ = running.ask(path, GOOD[path] | {name: value})
        assert status == 400 and said["error"]["param"] == name and said["error"]["message"].startswith(name), said


def test_no_field_of_openais_client_takes_what_is_of_no_type(running):
    """Whatever a newer client knows is refused by its name as well."""
    types = pytest.importorskip("openai.types")
    chat = pytest.importorskip("openai.types.chat.completion_create_params")
    responses = pytest.importorskip("openai.types.responses.response_create_params")
    for path, kind in (
        (COMPLETION, types.completion_create_params.CompletionCreateParamsNonStreaming),
        (CHAT, chat.CompletionCreateParamsNonStreaming),
        (RESPONSE, responses.ResponseCreateParamsNonStreaming),
    ):
        names = set(kind.__annotations__)
        assert len(names) > 15 and names >= GOOD[path].keys()
        for name in names:
            for wrong in ({"?": {"?": 1}}, [[]], 1.5e300):
                status, said, _ = running.ask(path, GOOD[path] | {name: wrong})
                assert status == 400 and said["error"]["param"].startswith(name), (path, name, wrong, said)


# A path, fields beside the good ones, the field that is named.
CASES = [
    *[
        (path, fields, named)
        for path, (fields, named) in itertools.product(
            (COMPLETION, CHAT),
            (
                ({"logit_bias": {"065": 1}}, "logit_bias.065"),
                ({"logit_bias": {"65": 1, "065": 2}}, "logit_bias.065"),
                ({"seed": LONG}, "seed"),
                ({"stop": ["a", LONG]}, "stop[1]"),
                ({"logit_bias": {"5": -LONG}}, "logit_bias.5"),
                ({"stop": ["a", HALF]}, "stop[1]"),
                ({"user": HALF}, "user"),
            ),
        )
    ],
    *[
        (CHAT, fields, named)
        for fields, named in (
            ({"metadata": 3}, "metadata"),
            ({"metadata": ["a"]}, "metadata"),
            ({"metadata": {"a": 3}}, "metadata.a"),
            ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
            ({"metadata": {"a": LONG}}, "metadata.a"),
            ({"prompt_cache_key": 3}, "prompt_cache_key"),
            ({"prompt_cache_options": {"mode": "never"}}, "prompt_cache_options.mode"),
            ({"prompt_cache_retention": "1h"}, "prompt_cache_retention"),
            ({"safety_identifier": {}}, "safety_identifier"),
            ({"service_tier": "gold"}, "service_tier"),
            ({"prediction": {"type": "content"}}, "prediction.content"),
            ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
            ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
            ({"messages": [*SAID, {"role": "user", "content": "x", "parsed": 1}]}, "messages[1].parsed"),
            ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
            (tool(parameters={"a": [HALF]}), "tools[0].function.parameters.a[0]"),
            (tool(parameters={HALF: 1}), "tools[0].function.parameters.\\ud800"),
            (tool(parameters={"minimum": LONG}), "tools[0].function.parameters.minimum"),
            (json_schema(schema={"title": HALF}), "response_format.json_schema.schema.title"),
            (called(json.dumps({"a": HALF})), "messages[1].tool_calls[0].function.arguments.a"),
            (called(json.dumps({"a": LONG})), "messages[1].tool_calls[0].function.arguments.a"),
            ({"messages": [*SAID, {"role": "user", "content": HALF}]}, "messages[1].content"),
        )
    ],
]


def test_what_is_wrong_at_any_depth_is_named_and_the_next_good_request_is_answered(running):
    wrong = []
    for path, fields, named in CASES:
        status, said, _ = running.ask(path, GOOD[path] | fields)
        if (status, said["error"]["param"]) != (400, named) or not said["error"]["message"].startswith(named):
            wrong.append((path, str(fields)[:80], status, said))
        assert running.is_well()
    assert not wrong, "\n".join(map(str, wrong))


def test_a_body_of_more_names_than_a_long_conversation_has_is_not_read(running):
    names = ", ".join(f'"{number}\\\\" : 1' for number in range(MOST_NAMES))
    status, said, _ = running.ask(COMPLETION, f'{{"model": "tiny", {names}}}'.encode())
    assert status == 400 and f"{MOST_NAMES:,} names" in said["error"]["message"]
    text = json.dumps({str(number): 1 for number in range(MOST_NAMES)})  # names of a text are its own
    status, said, _ = running.ask(COMPLETION, {"model": "tiny", "prompt": text, "max_tokens": 4})
    assert (status, said["error"]["param"]) == (400, "prompt") and "tokens" in said["error"]["message"]
    assert running.is_well()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (b'"temperature": NaN', "temperature"),
        (b'"logit_bias": {"5": -1e999}', "logit_bias.5"),
        (b'"prompt": [1, ' + b"9" * 41 + b"]", "prompt[1]"),
        (b'"logit_bias": {"' + b"9" * 5000 + b'": Infinity}', "logit_bias." + "9" * 100),
        (b'"seed": [' + b"NaN," * 200_000 + b"NaN]", "seed[0]"),
    ],
)
def test_a_number_that_none_may_be_is_named_by_its_field(running, fields, named):
    status, said, _ = running.ask(COMPLETION, b'{"model": "tiny", ' + fields + b"}")
    assert (status, said["error"]["param"]) == (400, named), said
    assert running.is_well()


def test_without_a_seed_each_prompt_of_a_request_has_its_own_also_one_that_stands_there_twice(running):
    for seed, count in ((None, 3), (7, 1)):
        while not running.engine.heard.empty():
            running.engine.heard.get()
        assert running.ask(COMPLETION, GOOD[COMPLETION] | {"prompt": ["x"] * 3, "seed": seed})[0] == 200
        assert len({running.engine.heard.get(timeout=10)["seed"] for _ in range(3)}) == count


def test_one_who_asks_for_the_prompt_alone_gets_it_and_no_token(running):
    asked = GOOD[COMPLETION] | {"prompt": ["good", "well"], "echo": True, "max_tokens": 0, "n": 2}
    status, said, _ = running.ask(COMPLETION, asked)
    assert status == 200 and said["usage"]["completion_tokens"] == 0 and said["usage"]["prompt_tokens"] == 8
    found = [(choice["text"], choice["finish_reason"]) for choice in said["choices"]]
    assert found == [("good", "length")] * 2 + [("well", "length")] * 2
    texts = [""] * 4
    for event in running.stream(COMPLETION, asked):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["good", "good", "well", "well"]
    assert running.is_well()
