"""How models write that they call tools: the forms that are known, by the marks of each.

    minimax-01  <function_call>```typescript      minimax-m1  <tool_calls>                      hermes  <tool_call>
                functions.NAME({arguments})                   {"name": NAME, "arguments": {}}           {"name": ...}
                ```                                           </tool_calls>                             </tool_call>

An answer may say something before. The first two hold several calls, a line each; of the third, each call has marks of
its own. What reads them is `inference/serve/calls.py`; this is how they are written.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple


class Call(NamedTuple):
    """name: of the tool. arguments: JSON of an object, as it was written."""

    name: str
    arguments: str


class Form(NamedTuple):
    """open, close: what stands around calls; lead: what follows `open`. head: a call's text up to its arguments, the
    name in its group. partial: what may become a head. before, after: of the arguments of a call, as `written`. holds:
    calls between two marks, at most. is_json: the name is in JSON's quotes.
    """

    open: str
    lead: str
    close: str
    head: re.Pattern
    partial: re.Pattern
    before: str
    after: str
    holds: int | None
    is_json: bool

    def written(self, calls: Sequence[Call]) -> str:
        """An answer's calls as text."""
        each = [
            self.before.replace("NAME", json.dumps(call.name) if self.is_json else call.name)
            + call.arguments
            + self.after
            for call in calls
        ]
        step = self.holds or len(each)
        groups = ["\n".join(each[at : at + step]) for at in range(0, len(each), step or 1)]
        return "\n".join(f"{self.open}{self.lead}\n{group}\n{self.close}" for group in groups)


def _json_form(word: str, holds: int | None) -> Form:
    return Form(
        open=f"<{word}>",
        lead="",
        close=f"</{word}>",
        head=re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\\n]|\\.)*+")\s*,\s*"arguments"\s*:\s*(?=\{)'),
        partial=re.compile(r"\{.*", re.DOTALL),
        before='{"name": NAME, "arguments": ',
        after="}",
        holds=holds,
        is_json=True,
    )


MINIMAX_01 = Form(
    open="<function_call>",
    lead="```typescript",
    close="```",
    head=re.compile(r"functions\.([\w.-]+)\(\s*(?=\{)"),
    partial=re.compile(r"f(u(n(c(t(i(o(n(s(\.([\w.-]*|[\w.-]+\(\s*))?)?)?)?)?)?)?)?)?"),
    before="functions.NAME(",
    after=")",
    holds=None,
    is_json=False,
)
MINIMAX_M1 = _json_form("tool_calls", None)
HERMES = _json_form("tool_call", 1)
_BY_NAME = {"minimax-01": MINIMAX_01, "minimax-m1": MINIMAX_M1}


def form_of(name: str, source: str = "") -> Form | None:
    """The form that a template teaches its model: of ours by name, of others by the marks in their source; or None."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    return next((form for form in (MINIMAX_M1, HERMES, MINIMAX_01) if form.open in source), None)
