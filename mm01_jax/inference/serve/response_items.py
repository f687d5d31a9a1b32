"""The items of an answer of /v1/responses, made of its parts as they come: thoughts, messages, calls of tools."""

import copy
import secrets
from typing import Any

from mm01_jax.inference.serve.calls import ARGUMENTS, CALL, TEXT, THINKING, Part

_KINDS = {TEXT: "output_text", THINKING: "reasoning_text"}


class Items:
    """found: the items so far. Each part gives the events that a client builds the same items from."""

    def __init__(self):
        self.found: list[dict[str, Any]] = []
        self._kind: str | None = None  # of the last item's parts, while it is open

    def add(self, part: Part) -> list[dict]:
        """Events of one more part."""
        if part.kind == CALL:
            return self._close("completed") + self._open(ARGUMENTS, part.text)
        opening = [] if part.kind == self._kind else self._close("completed") + self._open(part.kind)
        if part.kind == ARGUMENTS:
            self.found[-1]["arguments"] += part.text
            return [self._event("response.function_call_arguments.delta", delta=part.text)]
        self.found[-1]["content"][0]["text"] += part.text
        more = {"logprobs": []} if part.kind == TEXT else {}
        return [*opening, self._event(f"response.{_KINDS[part.kind]}.delta", content_index=0, delta=part.text, **more)]

    def end(self, is_whole: bool) -> list[dict]:
        """Events of the end; an answer that says nothing is an empty message. is_whole: it was not cut."""
        opening = [] if self.found else self._open(TEXT)
        return opening + self._close("completed" if is_whole else "incomplete")

    def _open(self, kind: str, name: str = "") -> list[dict]:
        self._kind = kind
        item: dict[str, Any] = {"status": "in_progress"}
        if kind == ARGUMENTS:
            ids = {"id": f"fc_{secrets.token_hex(12)}", "call_id": f"call_{secrets.token_hex(12)}"}
            item |= {"type": "function_call", "name": name, "arguments": ""} | ids
        elif kind == TEXT:
            item |= {"type": "message", "id": f"msg_{secrets.token_hex(12)}", "role": "assistant", "content": []}
        else:
            item |= {"type": "reasoning", "id": f"rs_{secrets.token_hex(12)}", "summary": [], "content": []}
        self.found.append(item)
        added = {"type": "response.output_item.added", "output_index": self._index, "item": copy.deepcopy(item)}
        if kind == ARGUMENTS:
            return [added]
        part = {"type": _KINDS[kind], "text": ""} | ({"annotations": [], "logprobs": []} if kind == TEXT else {})
        item["content"].append(part)
        return [added, self._event("response.content_part.added", content_index=0, part=dict(part))]

    def _close(self, status: str) -> list[dict]:
        if self._kind is None:
            return []
        item, kind, self._kind = self.found[-1], self._kind, None
        item["status"] = status
        if kind == ARGUMENTS:
            said = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._event("response.function_call_arguments.done", **said)]
        else:
            (part,) = item["content"]
            more = {"logprobs": []} if kind == TEXT else {}
            events = [
                self._event(f"response.{_KINDS[kind]}.done", content_index=0, text=part["text"], **more),
                self._event("response.content_part.done", content_index=0, part=dict(part)),
            ]
        done = {"type": "response.output_item.done", "output_index": self._index, "item": copy.deepcopy(item)}
        return [*events, done]

    @property
    def _index(self) -> int:
        return len(self.found) - 1

    def _event(self, kind: str, **more: Any) -> dict:
        """An event of the last item."""
        return {"type": kind, "item_id": self.found[-1]["id"], "output_index": self._index} | more
