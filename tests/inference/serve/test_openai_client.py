"""OpenAI's client and a checker of its API's schema, with a chat model that ends its answers: more than 40 calls."""

import json
import subprocess
import sys

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from tests.inference.serve.running import CHAT_TINY, NAME, Server  # noqa: E402

pytestmark = pytest.mark.slow  # `test_server.py` asks the same of weights of one step, by default
ASK = [{"role": "user", "content": "What does os.path.isdir do?"}]
BOOLEAN = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
BOOLEAN |= {"additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": BOOLEAN}} for name in ("f", "g")]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": BOOLEAN, "strict": True}}


# A question as `benchmarks/chat_tools.py` asks, a tool of that name, its parameter, what is said of it.
QUESTIONS = (
    ("Run isdir with purple.", "isdir", "s", "Test whether a path is a directory."),
    ("Get the bits for Sand", "get_bits", "name", "Get bits for a name."),
    ("What is the paper in Sand?", "get_paper", "place", "Get paper for a place."),
    ("Tell me the value of counting.", "get_value", "x", "Get value for a x."),
    ("sqrt 948, please.", "sqrt", "x", "Return the square root of x."),
    ("What is choice of 12?", "choice", "seq", "Choose a random element from a non-empty sequence."),
)


@pytest.fixture(scope="module")
def url():
    with Server(f"--checkpoint={CHAT_TINY}", "--template=minimax-01", "--context=896", "--slots=4") as server:
        yield server.until(r"(http://\S+/v1) serves")[1]


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=120) as found:
        yield found


class Chat:
    """Asks for an answer; made: how often it did."""

    def __init__(self, client):
        self.client, self.made = client, 0

    def __call__(self, **more):
        self.made += 1
        asked = {"model": NAME, "messages": ASK, "seed": self.made}
        return self.client.chat.completions.create(**asked | more)

    def said(self, **more) -> str:
        """A streamed answer."""
        with self(**more, stream=True) as stream:
            return "".join(part.choices[0].delta.content or "" for part in stream if part.choices)


def test_forty_calls_of_the_client(client):
    chat = Chat(client)
    sample(chat)
    hold_to_forms(chat)
    call_by_itself(chat)
    refuse(chat)
    assert chat.made + others(client) >= 40


def sample(chat: Chat) -> None:
    greedy = chat(temperature=0).choices[0]
    assert greedy.finish_reason == "stop" and greedy.message.content  # it says by itself when it is done
    for sampling in ({"temperature": 0}, {"seed": 5}, {"top_p": 0.5, "seed": 6}, {"presence_penalty": 1, "seed": 7}):
        assert chat.said(**sampling) == chat(**sampling).choices[0].message.content
    assert [choice.finish_reason for choice in chat(n=3).choices] == ["stop"] * 3
    assert chat(max_tokens=2).choices[0].finish_reason == "length"
    word = greedy.message.content.split()[1]
    cut = chat(temperature=0, stop=[word]).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content == greedy.message.content.partition(word)[0]
    listed = chat(temperature=0, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert all(token.logprob == token.top_logprobs[0].logprob for token in listed)
    assert "".join(token.token for token in listed).startswith(greedy.message.content)
    assert chat(logit_bias={"254": 100}).choices[0].message.content == ""
    *_, last = chat(stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens > 0


def hold_to_forms(chat: Chat) -> None:
    for form in (SCHEMA, {"type": "json_object"} | {}):
        answer = chat(response_format=form, logit_bias={str(ord("}")): 20}).choices[0]
        assert isinstance(json.loads(answer.message.content), dict) and answer.finish_reason == "stop"
    only = {"type": "function", "function": {"name": "g"}}
    for choice in ("required", only):
        called = chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False).choices[0]
        (call,) = called.message.tool_calls
        assert called.finish_reason == "tool_calls" and json.loads(call.function.arguments)["on"] in (True, False)
        turn = called.message.model_dump(exclude_none=True)
        result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
        assert chat(messages=[*ASK, turn, result], tools=TOOLS).choices
    for choice in ("none", "auto"):
        assert chat(tools=TOOLS, tool_choice=choice, max_tokens=30).choices
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "é"}]
    for role in ("system", "developer"):
        assert chat(messages=[{"role": role, "content": "Be kind."}, {"role": "user", "content": parts}]).choices


def call_by_itself(chat: Chat) -> None:
    """Nothing makes it call but what it learnt; what is strict holds the calls to names and parameters there are."""
    for question, name, parameter, sentence in QUESTIONS:
        parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
        function = {"name": name, "description": sentence, "strict": True}
        function["parameters"] = parameters | {"additionalProperties": False}
        asked = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        asked["tools"] = [{"type": "function", "function": function}]
        whole = chat(**asked).choices[0]
        (call,) = whole.message.tool_calls
        assert whole.finish_reason == "tool_calls" and call.function.name == name and whole.message.content is None
        assert [*json.loads(call.function.arguments)] == [parameter]
        with chat(**asked, stream=True) as stream:
            parts = [one for part in stream for one in part.choices[0].delta.tool_calls or ()]
        assert "".join(one.function.arguments or "" for one in parts) == call.function.arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "copper"}
        turns = [*asked["messages"], whole.message.model_dump(exclude_none=True), result]
        assert chat(**asked | {"messages": turns}).choices[0].finish_reason in ("stop", "tool_calls")


def refuse(chat: Chat) -> None:
    for wrong, kind in (
        ({"temperature": 3}, openai.BadRequestError),
        ({"model": "gpt"}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
        ({"max_tokens": 10_000}, openai.BadRequestError),
        ({"n": 0}, openai.BadRequestError),
        ({"response_format": SCHEMA | {"json_schema": {"name": "x", "schema": {"type": 3}}}}, openai.BadRequestError),
    ):
        with pytest.raises(kind):
            chat(**wrong)


def others(client) -> int:
    """Calls of the client's other methods."""
    model = NAME
    assert [one.id for one in client.models.list()] == [model] and client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    text = client.completions.create(model=model, prompt="def ", max_tokens=4, echo=True, logprobs=1, seed=1)
    assert text.choices[0].text.startswith("def ")
    with client.completions.create(model=model, prompt=["a", "b"], max_tokens=4, stream=True) as stream:
        assert {part.choices[0].index for part in stream} == {0, 1}
    answer = client.responses.create(model=model, input=ASK[0]["content"], temperature=0)
    with client.responses.stream(model=model, input=ASK[0]["content"], temperature=0) as stream:
        assert stream.until_done().get_final_response().output_text == answer.output_text != ""
    assert client.responses.create(model=model, input="?", text={"format": {"type": "text"}}).status == "completed"
    assert client.with_options(timeout=60).chat.completions.create(model=model, messages=ASK).choices
    return 9


def comply(url: str, model: str, kind: str, *more: str) -> dict[str, str]:
    """What llm-comply says of each of its cases."""
    command = [sys.executable, "-m", "llm_comply.cli", "run", "--format", kind, "-u", url, "-m", model, "-k", "any"]
    done = subprocess.run([*command, "--json", *more], capture_output=True, text=True, timeout=300, check=False)
    return {one["id"]: one["status"] for one in json.loads(done.stdout)["results"]}


_NOT_HERE = {"chat-image-input", "chat-reasoning-summary", "image-input", "reasoning-summary"}


@pytest.mark.parametrize("kind", ["openai-chat", "open-responses"])
def test_llm_comply_passes_but_for_images(url, kind):
    pytest.importorskip("llm_comply")
    found = {case: status for case, status in comply(url, NAME, kind).items() if case not in _NOT_HERE}
    assert len(found) >= 7 and set(found.values()) == {"passed"}, found
