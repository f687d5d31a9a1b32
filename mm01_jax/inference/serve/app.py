"""Paths, who may use them, and what becomes of errors."""

import asyncio
import concurrent.futures
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mm01_jax.inference.serve import chat, completions, fields, page, responses
from mm01_jax.inference.serve.asked import Asked
from mm01_jax.inference.serve.body import MOST_BYTES, MOST_WITH_IMAGES, ClientGone, read_json
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.fields import Field
from mm01_jax.inference.serve.hosts import OwnHosts
from mm01_jax.inference.serve.keys import Keys
from mm01_jax.inference.serve.link import Link, Question
from mm01_jax.inference.serve.metrics import CONTENT_TYPE
from mm01_jax.inference.serve.replies import Reply, refusal
from mm01_jax.inference.serve.service import Service

_QUICK_BYTES = 2**14
_DECODERS = 2  # images at a time: each may take half a gigabyte and a second
Handler = Callable[[Request], Awaitable[Response]]


class App:
    """Handlers of all paths.

    keys: as `keys.parse` has them; of none, anybody may ask. host: the name by which `OwnHosts` lets it be asked, where
    only this machine may. service: None until the engine is ready.
    """

    def __init__(self, link: Link, keys: Sequence[dict[str, Any]], host: str | None = None):
        self._link, self._keys = link, Keys(keys)
        self.service: Service | None = None
        self._decoders = concurrent.futures.ThreadPoolExecutor(_DECODERS)
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            *self._routes("/state", self._state, "GET"),
            *self._routes("/v1/models", self._models, "GET"),
            *self._routes("/v1/models/{name:path}", self._model, "GET"),
            *self._routes("/v1/completions", self._answering(completions.parse, _QUICK_BYTES), "POST"),
            *self._routes("/v1/chat/completions", self._answering(chat.parse), "POST"),
            *self._routes("/v1/responses", self._answering(responses.parse), "POST"),
            *self._routes("/metrics", self._metrics, "GET"),
            *self._routes("/tokenizer_info", self._tokenizer_info, "GET"),
            *self._routes("/tokenize", self._tokenize, "POST"),
            *self._routes("/detokenize", self._detokenize, "POST"),
        ]
        own = [] if host is None else [Middleware(OwnHosts, host=host, log=log)]
        handlers = {HTTPException: _no_path, Exception: _bug}
        self.asgi = Starlette(routes=routes, exception_handlers=handlers, middleware=own)
        self.asgi.router.redirect_slashes = False  # to a place that the client itself names, in `Host`
        self.asgi.state.requests = link.metrics.requests
        self.asgi.state.paths = {route.path for route in routes}

    def _routes(self, path: str, handler: Handler, method: str) -> list[Route]:
        async def guarded(request: Request) -> Response:
            try:
                request.state.key = self._keys.of(request.headers.get("authorization", ""))
                if self.service is None:
                    raise Refused("the model is being loaded", status=503, code="loading")
                return await handler(request)
            except Refused as why:
                log(request, why.status)
                return refusal(why)
            except ClientGone:
                log(request, 499)
                return Response(status_code=499)

        return [Route(path, guarded, methods=[method])]

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": self._status}, 200 if self._status == "ok" else 503)

    @property
    def _status(self) -> str:
        if self._link.stalled:
            return "stalled"
        return "loading" if self.service is None else "draining" if self._link.draining.is_set() else "ok"

    async def _page(self, request: Request) -> Response:
        return page.page()

    async def _state(self, request: Request) -> Response:
        return JSONResponse(page.state(self.service, self._link, self._status))

    async def _metrics(self, request: Request) -> Response:
        return Response(self._link.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self.service.check_model(request.path_params["name"])
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        service = self.service
        head = {"id": service.name, "object": "model", "created": service.created, "owned_by": "mm01_jax"}
        return head | {"max_model_len": service.context}

    def _answering(self, parse: Callable[[Any, Service], Asked], quick: int = -1) -> Handler:
        """quick: bytes of a body up to which it is read where it comes: another thread takes longer to begin."""

        async def handler(request: Request) -> Response:
            key = request.state.key
            key.check()
            began, body = time.monotonic(), await self._read(request)
            length = request.headers.get("content-length", "")
            if length.isdigit() and int(length) <= quick:
                asked = parse(body, self.service)
            else:  # a template is another process's, and a long text takes seconds: others go on meanwhile
                asked = await asyncio.to_thread(parse, body, self.service)
            self.service.check_room(len(asked.prompts), asked.count)

            if asked.pictures is not None:
                decoding = asyncio.get_running_loop().run_in_executor(self._decoders, asked.pictures.shown)
                asked = asked._replace(request=asked.request | {"shows": await decoding}, pictures=None)
            key.spend(sum(map(len, asked.prompts)))

            def told(status: int, question: Question) -> None:
                key.spend(sum(answer.count for answer in question.answers))
                log(request, status, self._counted(question, began), began)

            return Reply(self._link, asked, told)

        return handler

    async def _read(self, request: Request) -> Any:
        return await read_json(request, MOST_BYTES if self.service.images is None else MOST_WITH_IMAGES)

    def _counted(self, question: Question, began: float) -> str:
        """The tokens of a question that is over, as the log has them; they are counted, too."""
        metrics, first = self._link.metrics, question.answers[:: question.count]
        prompt, said = sum(len(one.prompt) for one in first), sum(answer.count for answer in question.answers)
        metrics.prompt_tokens.inc(prompt)
        metrics.cached_tokens.inc(sum(one.cached for one in first))
        metrics.generated_tokens.inc(said)
        metrics.whole.observe(time.monotonic() - began)
        return f" {prompt}+{said} tokens"

    async def _tokenizer_info(self, request: Request) -> Response:
        """What lm-eval asks for before it has its texts tokenized here. No text is a special token, so none is told."""
        names = dict.fromkeys(("eos_token", "bos_token", "pad_token"))
        return JSONResponse(names | {"chat_template": getattr(self.service.template, "source", None)})

    async def _tokenize(self, request: Request) -> Response:
        body = await self._read(request)
        tokens = await asyncio.to_thread(self._tokens_of, body)
        return JSONResponse({"count": len(tokens), "max_model_len": self.service.context, "tokens": tokens})

    def _tokens_of(self, body: Any) -> list[int]:
        own = {
            "prompt": Field(fields.text),
            "add_special_tokens": Field(fields.switch),
            "messages": Field(chat.messages(self.service)),
        }
        values = fields.read(body, {"model": Field(fields.text, self.service.name)} | own)
        self.service.check_model(values["model"])
        if (values["prompt"] is None) == (values["messages"] is None):
            raise Refused("prompt: allowed is one of prompt and messages", "prompt")
        if values["prompt"] is None:
            return self.service.conversation(values["messages"]).ids
        return self.service.encode("prompt", values["prompt"])

    async def _detokenize(self, request: Request) -> Response:
        ids = fields.ids(self.service.tokenizer.vocab_size, 0)  # a model may have more, which are no text
        known = {"model": Field(fields.text, self.service.name), "tokens": Field(ids, required=True)}
        values = fields.read(await read_json(request), known)
        self.service.check_model(values["model"])
        text = await asyncio.to_thread(self.service.tokenizer.decode, values["tokens"])
        return JSONResponse({"prompt": text})


async def _no_path(request: Request, error: HTTPException) -> Response:
    message = f"{request.method[:20]} {request.url.path[:200]}: {error.detail}"
    log(request, error.status_code)
    said = refusal(Refused(message, "path", status=error.status_code))
    said.headers.update(error.headers or {})  # `Allow`, where the path has another method
    return said


async def _bug(request: Request, error: Exception) -> Response:
    log(request, 500)
    return refusal(Refused("the server has a bug; its log says where", status=500))


def log(request: Request, status: int, more: str = "", began: float | None = None) -> None:
    """A line on stderr, and one more counted: what was asked and how it ended, and nothing of what was said."""
    state = request.app.state
    state.requests.labels(request.url.path if request.url.path in state.paths else "other", str(status)).inc()
    path = ascii(request.url.path)[1:-1][:100]
    took = f" {time.monotonic() - began:.3f} s" if began is not None else ""
    print(f"{request.method[:20]} {path} {status}{more}{took}", file=sys.stderr, flush=True)
