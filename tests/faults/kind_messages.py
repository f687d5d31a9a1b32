"""What is said of a wrong checkpoint: one cause is one problem, the file that is wrong is named, a screen at most."""

import json
import pathlib
import random
import re
from collections.abc import Callable
from typing import NamedTuple

from tests.faults import hostile
from tests.faults.hostile_json import sign

WORDS = "one cause is one problem, in at most a screen of printable lines that names the file that is wrong"
TORCH = "torch/config.json"
CONFIG = "step/state/config.json"


class Wrong(NamedTuple):
    """spoil: changes what `reader` reads. says: patterns that the message has. problems: how many it tells at most."""

    reader: str
    spoil: Callable[[pathlib.Path], None]
    says: tuple[str, ...]
    problems: int = 1


def judge(wrong: Wrong, room: pathlib.Path) -> str | None:
    def spoil(root: pathlib.Path, chance: random.Random) -> str:
        wrong.spoil(root)
        return root.name if wrong.reader == "tokenizer" else wrong.reader

    member = hostile.Member(wrong.reader, spoil, 0, refused=True)
    problem, ended = hostile.tried(member, room)
    if problem:
        return problem
    message = [line for line in ended.complained.splitlines() if not hostile.is_progress(line)]
    said = "\n".join(message)
    if absent := [pattern for pattern in wrong.says if not re.search(pattern, said)]:
        return f"does not say {absent}: {said[:400]}"
    told = said.count("; ") - said.count("; allowed") - said.count("; nearest") + 1
    return f"tells {told} problems of {wrong.problems}: {said[:400]}" if told > wrong.problems else None


def _json(name: str, change: Callable[[dict], object]) -> Callable[[pathlib.Path], None]:
    def spoil(root: pathlib.Path) -> None:
        path = root / name
        plain = json.loads(path.read_text())
        change(plain)
        path.write_text(json.dumps(plain))
        sign(path)

    return spoil


def _renamed(pattern: str, by: str) -> Callable[[pathlib.Path], None]:
    """Tensors under other names, in headers and index alike; the new name is as long as the old one."""

    def spoil(root: pathlib.Path) -> None:
        for path in [*(root / "torch").glob("*.safetensors"), root / "torch" / "model.safetensors.index.json"]:
            path.write_bytes(re.sub(pattern.encode(), by.encode(), path.read_bytes()))

    return spoil


def _set(**values) -> Callable[[dict], object]:
    return lambda plain: plain.update(values)


def _within(section: str, **values) -> Callable[[dict], object]:
    return lambda plain: plain[section].update(values)


ESCAPE = _renamed(r"lm_head\.weight", r"\\u001b[2J.wght")  # as long as it was, so that the header stays sound
MISSPELT = _renamed("experts", "expertz")
WIDER, EXPERTS, LAYERS = _set(hidden_size=24), _set(num_local_experts=8), _set(num_hidden_layers=12)
STEP = r"state/config\.json"


def _in_step(says: str, change: Callable[[dict], object], problems: int = 1) -> Wrong:
    return Wrong("step", _json(CONFIG, change), (STEP, says), problems)


def _in_torch(change: Callable[[dict], object], *says: str, problems: int = 1) -> Wrong:
    return Wrong("torch", _json(TORCH, change), says, problems)


MEMBERS = {
    'torch_dtype "auto"': _in_torch(_set(torch_dtype="auto"), r"config\.json", "'auto'"),
    "torch_dtype of other weights": _in_torch(_set(torch_dtype="float32"), "117 of 117 tensors are bfloat16"),
    "another width": _in_torch(WIDER, r"\d+ of 117 tensors have other shapes", "config.json gives"),
    "twice the experts": _in_torch(EXPERTS, r"missing \d+ of ", problems=4),
    "half the layers named": _in_torch(LAYERS, "num_hidden_layers=12 contradicts attn_type_list"),
    "an unknown model": _in_torch(_set(model_type="\x1b[31mx"), "model_type", "minimax_text_01"),
    "every expert misnamed": Wrong("torch", MISSPELT, (r"missing \d+", r"surplus \d+"), problems=2),
    "a name with an escape sequence": Wrong("torch", ESCAPE, (r"\\x1b\[2J",), problems=2),
    "a config inside a step, a field": _in_step("num_heads", _within("model", num_heads="two")),
    "a config inside a step, a key": _in_step("num_headz", _within("model", num_headz=2)),
    "a config inside a step, no section": _in_step("train", lambda plain: plain.pop("train")),
    "a config inside a step, 100,000 keys": _in_step("and [0-9]+ more", _set(**{f"k{i}": i for i in range(10**5)}), 30),
    "a tokenizer that is none": Wrong(
        "tokenizer", lambda root: (root / "tokenizer.json").write_text("[]"), (r"tokenizer\.json",)
    ),
}
