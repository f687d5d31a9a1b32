"""mm01-serve with a checkpoint, asked by OpenAI's own client."""

import json
import re
import shutil
import signal

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from tests import small  # noqa: E402
from tests.inference.serve.running import CHAT_TINY, Server  # noqa: E402
from tests.train import cheap_run  # noqa: E402

HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hello é"}]}]
CHAT = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "seed": 3}
TEXT = {"model": "tiny", "prompt": "def f", "max_tokens": 8, "seed": 3}

CLOSED = {"additionalProperties": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        workdir.mkdir()
        cheap_run.run(workdir, small.config(small.write_text(workdir / "text"), train__steps=1))
    asked = f"--checkpoint={workdir}", "--template=minimax-01", "--context=896", "--slots=4"
    with Server(*asked, name=None) as found:
        assert found.until(r"fits: (\d) requests at a time of (\d+) tokens")[1] == "4"
        found.url = found.until(r"(http://\S+/v1) serves 'tiny'")[1]
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="any", max_retries=0, timeout=120) as found:
        yield found


def chunks(stream) -> list:
    with stream:
        return list(stream)


def test_the_model_is_listed_by_its_name(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"


def test_a_conversation_is_answered_and_the_same_seed_says_the_same_whole_and_streamed(client):
    whole = client.chat.completions.create(**CHAT)
    (choice,) = whole.choices
    assert whole.id.startswith("chatcmpl-") and choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None and choice.message.refusal is None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    streamed = chunks(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    *parts, last = streamed
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert "".join(part.choices[0].delta.content or "" for part in parts) == choice.message.content
    finishes = [part.choices[0].finish_reason for part in parts]
    assert finishes[-1] == choice.finish_reason and not any(finishes[:-1])
    assert parts[0].choices[0].delta.role == "assistant" and all(part.usage is None for part in parts)


def test_to_a_model_without_sight_the_mark_of_an_image_is_text(client):
    said = [[{"role": "user", "content": text}] for text in ("What is <image>?", "What is ?")]
    told = [client.chat.completions.create(**CHAT | {"messages": one, "max_tokens": 1}).usage for one in said]
    assert told[0].prompt_tokens == told[1].prompt_tokens + len("<image>"), "a byte a token"


def test_a_long_prompt_asked_again_is_found_and_says_how_much_of_it(client):
    asked = CHAT | {"messages": [{"role": "user", "content": "x" * 150}], "temperature": 0}
    first, again = (client.chat.completions.create(**asked) for _ in range(2))
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens >= 64


def test_several_answers_are_those_of_their_seeds_in_order_whole_and_streamed(client):
    whole = client.chat.completions.create(**CHAT, n=3).choices
    assert [choice.index for choice in whole] == [0, 1, 2]
    assert whole[0].message.content == client.chat.completions.create(**CHAT).choices[0].message.content
    texts = ["", "", ""]
    for part in chunks(client.chat.completions.create(**CHAT, n=3, stream=True)):
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole] and len(set(texts)) == 3


def test_an_answer_ends_before_a_stop_text(client):
    said = client.completions.create(**TEXT | {"logit_bias": {str(ord("a")): 100}, "max_tokens": 5}).choices[0]
    assert (said.text, said.finish_reason) == ("aaaaa", "length")
    said = client.completions.create(**TEXT | {"logit_bias": {str(ord("a")): 100}, "stop": ["aaa"]}).choices[0]
    assert (said.text, said.finish_reason) == ("", "stop")
    end = {"logit_bias": {"254": 100}}  # the token that ends an answer
    assert client.chat.completions.create(**CHAT | end).choices[0].finish_reason == "stop"


def test_log_probabilities_come_with_tokens_and_the_likeliest(client):
    listed = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(listed) == 12
    for token in listed:
        best = [one.logprob for one in token.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True) and token.logprob <= 0
    plain = client.completions.create(**TEXT | {"temperature": 0}, logprobs=0).choices[0].logprobs
    best = client.completions.create(**TEXT | {"temperature": 0}, logprobs=1).choices[0].logprobs
    assert plain.token_logprobs == best.token_logprobs
    assert [max(top.values()) for top in best.top_logprobs] == best.token_logprobs  # greedy, and the same number


def test_a_prompt_comes_back_with_its_log_probabilities_which_are_those_of_an_answer(client):
    first = client.completions.create(**TEXT | {"temperature": 0, "logprobs": 1})
    ids = [*b"def f"]
    listed = client.completions.create(
        model="tiny", prompt=[ids, ids[:3]], echo=True, logprobs=1, max_tokens=1, temperature=0
    ).choices
    assert [choice.index for choice in listed] == [0, 1]
    assert listed[0].text.startswith("def f") and listed[0].logprobs.tokens[:5] == [*"def f"]
    assert listed[0].logprobs.token_logprobs[0] is None and listed[0].logprobs.text_offset[:5] == [0, 1, 2, 3, 4]
    assert listed[0].logprobs.token_logprobs[1:3] == listed[1].logprobs.token_logprobs[1:3]
    assert listed[0].logprobs.token_logprobs[5] == first.choices[0].logprobs.token_logprobs[0]


def test_a_prompt_alone_has_the_numbers_that_it_has_before_an_answer(client):
    asked = {"model": "tiny", "prompt": [[*b"def f"], [*b"x = 3"]], "echo": True, "logprobs": 2, "temperature": 0}
    alone = client.completions.create(**asked, max_tokens=0)
    before = client.completions.create(**asked, max_tokens=1)
    assert [choice.text for choice in alone.choices] == ["def f", "x = 3"] and alone.usage.completion_tokens == 0
    for one, other in zip(alone.choices, before.choices, strict=True):
        assert one.finish_reason == "length" and len(one.logprobs.tokens) == 5
        assert one.logprobs.token_logprobs == other.logprobs.token_logprobs[:5]
        assert one.logprobs.top_logprobs == other.logprobs.top_logprobs[:5]


def test_completions_of_several_prompts_are_streamed_by_their_places(client):
    asked = TEXT | {"prompt": ["a", "b"], "n": 2}
    whole = [choice.text for choice in client.completions.create(**asked).choices]
    texts = [""] * 4
    for part in chunks(client.completions.create(**asked, stream=True)):
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == whole


def test_an_answer_has_the_form_that_it_is_asked_for_whole_and_streamed(client):
    colour = {"type": "object", "properties": {"c": {"enum": ["é", "b"]}}, "required": ["c"]}
    for form, fits in (
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": colour | CLOSED}}, is_colour),
        ({"type": "regex", "regex": "[a-c]{3}"}, re.compile("[a-c]{3}").fullmatch),
        ({"type": "grammar", "grammar": 'start: "yes" | "no"'}, ("yes", "no").__contains__),
    ):
        asked = CHAT | {"max_tokens": 150, "extra_body": {"response_format": form}}
        (choice,) = client.chat.completions.create(**asked).choices
        assert fits(choice.message.content) and choice.finish_reason == "stop"
        parts = chunks(client.chat.completions.create(**asked, stream=True))
        assert "".join(part.choices[0].delta.content or "" for part in parts) == choice.message.content
    large = {"type": "object", "properties": {"c": {"pattern": "^(?:a?){900}a{900}$", "type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": large | {"required": ["c"]} | CLOSED}}
    with pytest.raises(openai.BadRequestError, match="dead end") as refused:
        client.chat.completions.create(**CHAT | {"max_tokens": 150}, extra_body={"response_format": form})
    assert refused.value.code == "grammar_dead_end"


def is_colour(text: str) -> bool:
    return json.loads(text) in ({"c": "é"}, {"c": "b"})


def test_a_model_that_has_to_call_a_tool_does_with_arguments_of_its_schema(client):
    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]} | CLOSED
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("f", "g")]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "tools": tools, "seed": 5}
    only = {"type": "function", "function": {"name": "g"}}
    for wanted, names in (("required", {"f", "g"}), (only, {"g"})):
        whole = client.chat.completions.create(**asked, tool_choice=wanted, parallel_tool_calls=False).choices[0]
        (call,) = whole.message.tool_calls
        assert whole.finish_reason == "tool_calls" and whole.message.content is None
        assert call.function.name in names and json.loads(call.function.arguments)["on"] in (True, False)
        stream = client.chat.completions.create(**asked, tool_choice=wanted, parallel_tool_calls=False, stream=True)
        said = [one for part in chunks(stream) for one in part.choices[0].delta.tool_calls or ()]
        assert "".join(one.function.arguments for one in said) == call.function.arguments


def test_errors_are_of_the_classes_that_the_client_has_for_them(client):
    for wrong, kind in (
        ({"temperature": 3}, openai.BadRequestError),
        ({"model": "gpt-4"}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
        ({"max_tokens": 1000}, openai.BadRequestError),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, openai.BadRequestError),
    ):
        with pytest.raises(kind) as refused:
            client.chat.completions.create(**CHAT | wrong)
        assert refused.value.param.startswith(next(iter(wrong)))
    assert client.chat.completions.create(**CHAT).choices


def test_a_stream_that_is_left_frees_its_slots_for_others(client):
    for _ in range(12):  # three times as many as there are slots
        stream = client.chat.completions.create(**CHAT | {"max_tokens": 150, "n": 2}, stream=True)
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(**CHAT).choices


def test_text_becomes_tokens_and_back(client):
    found = client.post("/../tokenize", body={"prompt": "é"}, cast_to=object)
    assert found["tokens"] == [*"é".encode()] and found["count"] == 2
    assert client.post("/../detokenize", body={"tokens": found["tokens"]}, cast_to=object) == {"prompt": "é"}
    assert client.post("/../tokenize", body={"messages": HELLO}, cast_to=object)["count"] > 30


def test_a_signal_ends_the_server_when_open_answers_are_given(client, server):
    stream = client.chat.completions.create(**CHAT | {"max_tokens": 150}, stream=True)
    parts = iter(stream)
    next(parts)
    server.process.send_signal(signal.SIGTERM)
    rest = list(parts)
    assert rest[-1].choices[0].finish_reason in ("stop", "length")
    assert server.process.wait(30) == 0
    assert server.until("all answers are given")


def test_a_checkpoint_whose_template_is_no_text_is_refused_at_the_start(tmp_path):
    shutil.copytree(CHAT_TINY, tmp_path / "chat")
    (tmp_path / "chat" / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with Server(f"--checkpoint={tmp_path / 'chat'}") as server:
        assert server.process.wait(120) == 3
    (line,) = [line for line in server.said if line]
    assert "tokenizer_config.json: chat_template: got 5; allowed: a text" in line
