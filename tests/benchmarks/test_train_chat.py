"""Conversations that a chat model learns: those that call tools have the tokens of what a server would ask."""

import json

import pytest

from benchmarks import chat_tools, train_chat
from mm01_jax.data.conversations import render
from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.data.tool_calls import MINIMAX_01, Call

BYTES = BytesTokenizer()


@pytest.fixture(scope="module")
def made() -> list[list[dict]]:
    return list(chat_tools.conversations(train_chat.facts(), train_chat.QUESTIONS, 200))


def test_a_first_answer_stands_behind_the_prompt_that_a_server_makes_of_messages_and_tools(made):
    for messages in made:
        first = next(place for place, message in enumerate(messages) if message["role"] == "assistant")
        tools = [json.loads(message["content"]) for message in messages[:first] if message["role"] == "tools"]
        prompt = render(messages[:1], BYTES, tools=tools, generate=True).ids.tolist()
        learnt = render(messages[: first + 1], BYTES)
        assert learnt.ids.tolist()[: len(prompt)] == prompt
        assert not learnt.answer[: len(prompt)].any() and learnt.answer[len(prompt)]


def test_calls_are_of_tools_that_are_offered_with_arguments_of_their_names(made):
    called = 0
    for messages in made:
        offered = [json.loads(one["content"]) for one in messages if one["role"] == "tools"]
        answer = next(one["content"] for one in messages if one["role"] == "assistant")
        for tool in offered:
            if answer.startswith(MINIMAX_01.open) and f"functions.{tool['name']}(" in answer:
                (name,) = tool["parameters"]["required"]
                value = json.loads(answer.partition("(")[2].rpartition(")")[0])[name]
                assert answer == MINIMAX_01.written([Call(tool["name"], json.dumps({name: value}))])
                assert value in messages[0]["content"]
                called += 1
                break
    assert called > 120


def test_what_a_tool_returned_is_said_and_what_needs_no_tool_is_answered(made):
    kinds = {"returned": 0, "no tool": 0}
    for messages in made:
        last = messages[-1]["content"]
        results = [json.loads(one["content"]) for one in messages if one["role"] == "function"]
        if results:
            assert last == chat_tools.RESULT.format(results[-1]["response"])
        kinds["returned"] += bool(results)
        kinds["no tool"] += not results and not last.startswith(MINIMAX_01.open)
    assert min(kinds.values()) > 10
