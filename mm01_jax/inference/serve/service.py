"""What the HTTP process knows of the model that it speaks for."""

import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mm01_jax.config import VisionConfig
from mm01_jax.data import templates
from mm01_jax.data.conversations import IMAGE
from mm01_jax.data.tokenizer import open_tokenizer
from mm01_jax.data.tool_calls import form_of
from mm01_jax.inference import thoughts
from mm01_jax.inference.grammars import Grammars
from mm01_jax.inference.serve import conversation
from mm01_jax.inference.serve.errors import Refused
from mm01_jax.inference.serve.link import Link

if TYPE_CHECKING:  # needs pillow, which text alone does not
    from mm01_jax.inference.serve.images import Images, Pictures

_MARK_TOKENS = 16  # that a mark of thoughts and the line break behind it have, at most


def shutting_down() -> Refused:
    return Refused("the server is shutting down", status=503, code="shutting_down")


class Prompt(NamedTuple):
    """A conversation's token ids, and what its image tokens show."""

    ids: list[int]
    pictures: "Pictures | None" = None


class Service:
    """Made of the engine's "ready".

    name: of the model. context: tokens of a prompt and its answer. most: answers that may be open, running and waiting.
    slots: of them that run. device: where the model is. prefix_bytes: for what is remembered, at most. logprobs: of the
    likeliest tokens, at most. created: seconds since 1970. stop_id: what ends an answer of a conversation; None of a
    model without a template. thinks: answers begin with thoughts. form: of calls of tools, None where none is known.
    images: what it takes of them; None: none.
    """

    def __init__(self, told: dict[str, Any], link: Link):
        self.link, self.name, self.created = link, told["name"], told["created"]
        self.context, self.vocab_size, self.most = told["context"], told["vocab_size"], told["most"]
        self.slots, self.prefix_bytes, self.device = told["slots"], told["prefix_bytes"], told["device"]
        self.logprobs, self.stop_id = told["logprobs"], told["stop_id"]
        self.tokenizer = open_tokenizer(told["tokenizer"])
        self.grammars = Grammars(self.tokenizer, self.vocab_size, self.stop_ids)
        self.template = None
        if told["has_template"]:
            folders = [pathlib.Path(folder) for folder in told["folders"]]
            self.template = templates.choose(told["template"], folders, self.tokenizer)
        source = getattr(self.template, "source", "")
        self.form = None if self.template is None else form_of(self.template.name, source)
        self.thinks = self.template is not None and self.template.thinks
        self.images = _images(told["vision"], told["images"]) if told["vision"] else None
        self.name_of = functools.lru_cache(65_536)(self._name_of)

    @property
    def stop_ids(self) -> list[int]:
        """What ends an answer of a conversation."""
        return sorted({self.tokenizer.end_of_document, self.stop_id} - {None})

    def check_model(self, asked: str) -> None:
        if asked != self.name:
            message = f"model: got {asked[:100]!r}; allowed: {self.name!r}"
            raise Refused(message, "model", status=404, code="model_not_found")

    def check_room(self, prompts: int, each: int) -> None:
        """Refuses so many answers of each prompt that find no place in the queue, for now or for ever."""
        if (count := prompts * each) > self.most:
            name = "n" if prompts <= self.most else "prompt"
            message = f"{name}: {count} answers at a time; allowed: at most {self.most}, running and waiting"
            raise Refused(message, name)
        if self.link.draining.is_set():
            raise shutting_down()
        if (open_now := self.link.open) + count > self.most:
            message = f"{open_now} answers are running or waiting, and at most {self.most} may; try again"
            raise Refused(message, status=429, code="queue_full")

    def encode(self, name: str, text: str) -> list[int]:
        """Token ids of a text; a special token's name in it is text."""
        try:
            return self.tokenizer.encode(text).tolist()
        except ValueError as error:
            raise Refused(f"{name}: {error}", name) from None

    def conversation(
        self, messages: list[dict[str, Any]], tools: Sequence[dict] = (), name: str = "messages"
    ) -> Prompt:
        """A conversation and the header of the answer to come.

        Args:
          tools: functions that it may call. name: of the field that has the messages.
        """
        if self.template is None:
            raise Refused(f"{name}: this model has no chat template; start mm01-serve with --template", name)
        renamed = conversation.for_template(messages, self.template)
        if self.images is not None and any(IMAGE in text for message in renamed for text in _texts(message)):
            raise Refused(f"{name}: {IMAGE} in a text stands for an image, and images are parts of their own", name)
        has_images = any(part.get("type") == "image" for message in renamed for part in _parts(message))
        if has_images and not isinstance(self.template, templates.Released):
            raise Refused(f"{name}: images come in MiniMax-VL-01's template: mm01-serve --template=minimax-01", name)
        try:
            given = conversation.tools_for(tools, self.template)
            if has_images:
                return Prompt(*self.images.ask(renamed, self.tokenizer, given or (), name))
            return Prompt(self.template.ids(renamed, self.tokenizer, given).tolist())
        except ValueError as error:
            raise Refused(f"{name}: {str(error).removeprefix('messages: ')}", name) from None

    def has_begun_to_think(self, prompt: list[int]) -> bool:
        """Whether a conversation ends with the mark that begins thoughts."""
        return self.tokenizer.decode(prompt[-_MARK_TOKENS:]).rstrip().endswith(thoughts.OPEN)

    def _name_of(self, id: int) -> str:
        """A token's text; where it has none of its own, `token_id:17`."""
        text = self.tokenizer.decode([id])
        return f"token_id:{id}" if not text or "\ufffd" in text else text


def _images(vision: dict[str, Any], folder: str | None) -> "Images":
    from mm01_jax.inference.serve.images import Images

    return Images(VisionConfig(**vision | {"grids": tuple(map(tuple, vision["grids"]))}), folder)


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else [{"text": content}]


def _texts(message: dict[str, Any]) -> list[str]:
    return [part["text"] for part in _parts(message) if isinstance(part.get("text"), str)]
