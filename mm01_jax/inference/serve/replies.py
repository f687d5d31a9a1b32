"""Answers on their way to a client: whole, or as server-sent events; a client that leaves or stalls frees its slots."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from mm01_jax.inference.serve.asked import Asked
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.link import Link, Question

WRITE_SECONDS = 60.0  # that a client may take none of what is sent


def refusal(why: Refused) -> Response:
    return JSONResponse(why.body, why.status, headers=why.headers)


class Reply(Response):
    """Asks the engine when it is called, and answers.

    told: gets (status, question) when the answer is over; 499: the client has left.
    """

    def __init__(self, link: Link, asked: Asked, told: Callable[[int, Question], object]):
        self._link, self._asked, self._told = link, asked, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = self._asked
        question = self._link.ask(asked.prompts, asked.count, asked.request, streams=asked.streams)
        asked.request.clear()  # pixels are the engine's from here on
        answering = (
            self._streamed(question, scope, receive, send)
            if asked.streams
            else self._whole(question, scope, receive, send)
        )
        tasks = [asyncio.ensure_future(answering), asyncio.ensure_future(_gone(receive))]
        status = 499
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0] in done:
                status = tasks[0].result()
        except TimeoutError:
            pass  # it takes nothing any more: as if it had left
        finally:
            for task in tasks:
                task.cancel()
            if not question.finished:
                self._link.cancel(question)
            self._told(status, question)

    async def _whole(self, question: Question, scope: Scope, receive: Receive, send: Send) -> int:
        """The status that was sent."""
        try:
            while not question.finished:
                question.changed.clear()
                if question.failed is not None:
                    raise question.failed
                await question.changed.wait()
            pieces = [answer.take() for answer in question.answers]
            _check(question)
            reply = JSONResponse(self._asked.shape.whole(question.answers, pieces))
        except Refused as why:
            reply = refusal(why)
        await _sent(reply(scope, receive, send))
        return reply.status_code

    async def _streamed(self, question: Question, scope: Scope, receive: Receive, send: Send) -> int:
        try:
            news = await question.news()  # what is refused before anything is said has a status of its own
        except Refused as why:
            await _sent(refusal(why)(scope, receive, send))
            return why.status
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers.append((b"x-accel-buffering", b"no"))
        await _sent(send({"type": "http.response.start", "status": 200, "headers": headers}))
        shape, status = self._asked.shape, 200
        events = shape.opening(question.answers)
        try:
            while True:
                _check(question)
                for place, piece in news:
                    events += shape.events(place, question.answers[place], piece)
                await _say(send, events)
                events = []
                if question.finished and not any(answer.pending for answer in question.answers):
                    break
                news = await question.news()
            await _say(send, [*shape.closing(question.answers), "[DONE]"])
        except Refused as why:
            await _say(send, [shape.failed(why)])
            status = why.status
        await _sent(send({"type": "http.response.body", "body": b"", "more_body": False}))
        return status


def _check(question: Question) -> None:
    """Refuses to hand out an answer that is none."""
    for answer in question.answers:
        if answer.finish == "masked":
            raise Refused(f"response_format: {answer.error}", "response_format", code="grammar_dead_end")
        if answer.error is not None:
            raise Refused(answer.error, status=500)


async def _say(send: Send, events: list[Any]) -> None:
    body = "".join(map(_event, events)).encode()
    if body:
        await _sent(send({"type": "http.response.body", "body": body, "more_body": True}))


def _event(event: dict | str) -> str:
    """An event as it is sent, under its own name where it has one."""
    if isinstance(event, str):
        return f"data: {event}\n\n"
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n"


async def _sent(sending) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await sending


async def _gone(receive: Receive) -> None:
    """Returns when the client has left; its request is whole, so nothing else comes."""
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
