"""Questions about pictures that cannot be answered: one line that names what is wrong, before any compute."""

import json
import re

import pytest
from flax import nnx

from mm01_jax.checkpoint import Checkpoints
from mm01_jax.config import saved
from mm01_jax.inference import __main__ as inference
from mm01_jax.inference import fitting
from mm01_jax.model import multimodal
from tests import small

WRONG = {
    "a line's image that is cut off": (
        ("--prompts=cut.jsonl", "--out=out.jsonl"),
        "cut.jsonl line 1: .*cut.png: .*the file is truncated or damaged",
    ),
    "an image that is cut off": (
        ("--image=cut.png", "--prompt=<image>?"),
        "cut.png: .*the file is truncated or damaged",
    ),
    "no such file": (("--image=none.png", "--prompt=<image>?"), "none.png: No such file or directory"),
    "more marks than images": (
        ("--image=a.png", "--prompt=<image><image>?"),
        "2 <image> marks in the text and 1 image; allowed is one mark an image",
    ),
    "no mark": (("--image=a.png", "--prompt=?"), "0 <image> marks in the text and 1 image;"),
    "images without a prompt": (("--image=a.png", "--chat"), "--image: got 'a.png'; allowed: a flag of --prompt"),
    "an image beyond the context": (
        (*["--image=a.png"] * 12, "--prompt=" + "<image>" * 12),
        "a.png: takes 10 tokens and ends at token 136 of its prompt; allowed: before 128, the context",
    ),
    "a mark without a picture": (
        ("--prompt=<image>?",),
        "--prompt: got 1 <image> mark and no picture; .*--image=a.png",
    ),
    "marks without pictures in a line": (
        ("--prompts=marks.jsonl", "--out=out.jsonl"),
        r'marks.jsonl line 1: prompt: got 2 <image> marks and no picture; .*nearest: "images": \["a.png"\]',
    ),
    "a mark without a picture in a message": (
        ("--prompts=said.jsonl", "--out=out.jsonl", "--template=minimax-01"),
        r"said.jsonl line 1: messages\[0\]: got 1 <image> mark and no picture",
    ),
    "a part of a message that is an image, without one": (
        ("--prompts=part.jsonl", "--out=out.jsonl", "--template=minimax-01"),
        r"part.jsonl line 1: messages\[0\]: got a part that is an image and no picture",
    ),
    "a mark where a conversation begins": (
        ("--chat", "--system=<image>", "--template=minimax-01"),
        "--system: got 1 <image> mark and no picture",
    ),
    "tools that are no list": (
        ("--prompts=tools.jsonl", "--out=out.jsonl"),
        "tools.jsonl line 1: tools: got 'look'; allowed: a list of functions",
    ),
    "an id that no token has": (
        ("--prompts=biased.jsonl", "--out=out.jsonl"),
        "biased.jsonl line 2: logit_bias: got the id 99999; allowed: 0 to 319",
    ),
    "half a pair of surrogates": (
        ("--prompts=half.jsonl", "--out=out.jsonl"),
        "half.jsonl line 1: its text: char",
    ),
    "calls that no template of ours writes": (
        ("--prompts=calls.jsonl", "--out=out.jsonl", "--template=minimax-01"),
        "calls.jsonl line 1: message 0 has tool_calls .*; allowed are calls as text of its content",
    ),
    "a stop id that no token has": (
        ("--prompts=stopped.jsonl", "--out=out.jsonl"),
        "stopped.jsonl line 1: stop: got the id 99999; allowed: 0 to 319",
    ),
    "a line with an image beyond the context": (
        ("--prompts=long.jsonl", "--out=out.jsonl"),
        "long.jsonl line 1: .*a.png: takes 10 tokens and ends at token 136 of its prompt",
    ),
    "a line's image outside its folder": (
        ("--prompts=outside.jsonl", "--out=out.jsonl"),
        "outside.jsonl line 1: .*elsewhere.png: .*outside",
    ),
    "a line's images that are no list": (
        ("--prompts=text.jsonl", "--out=out.jsonl"),
        r"""text.jsonl line 1: images: got 'a.png'; allowed: a list of paths; nearest: "images": \["a.png"\]""",
    ),
    "fewer images than marks in a line": (
        ("--prompts=few.jsonl", "--out=out.jsonl"),
        "few.jsonl line 1: 1 <image> mark in the text and 2 images",
    ),
}


@pytest.fixture(scope="module")
def wrong(picture_files):
    (picture_files / "cut.png").write_bytes((picture_files / "a.png").read_bytes()[:300])
    (picture_files.parent / "elsewhere.png").write_bytes((picture_files / "a.png").read_bytes())
    lines = {
        "long": {"prompt": "<image>" * 12, "images": ["a.png"] * 12},
        "outside": {"prompt": "<image>", "images": ["../elsewhere.png"]},
        "text": {"prompt": "<image>", "images": "a.png"},
        "few": {"prompt": "<image>", "images": ["a.png", "b.png"]},
        "cut": {"prompt": "<image>", "images": ["cut.png"]},
        "marks": {"prompt": "<image><image>", "images": []},
        "said": {"messages": [{"role": "user", "content": "<image>?"}]},
        "part": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "tools": {"messages": [{"role": "user", "content": "?"}], "tools": "look"},
        "biased": {"prompt": "x", "options": {"logit_bias": {"99999": 1}}},
        "half": {"prompt": "x", "options": {"stop": "\ud800"}},
        "calls": {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        "stopped": {"prompt": "x", "options": {"stop": [99999]}},
    }
    for name, line in lines.items():
        first = '{"prompt": "x"}\n' if name == "biased" else ""
        (picture_files / f"{name}.jsonl").write_text(first + json.dumps(line) + "\n")
    return picture_files


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_in_one_line_before_any_compute(what, vl_run, wrong, capsys, monkeypatch):
    monkeypatch.chdir(wrong)
    monkeypatch.setattr(fitting, "Engine", lambda *_, **__: pytest.fail("something was computed"))
    arguments, message = WRONG[what]
    code, out, err = inference.main([f"--checkpoint={vl_run}", *arguments]), *capsys.readouterr()
    data_is_wrong = re.search(r"truncated|No such file|ends at token|outside", message) or ".jsonl line " in err
    assert code == (3 if data_is_wrong else 2) and not out and err.count("\n") == 1, err
    assert re.search(message, err), err


def test_images_for_a_model_of_text_are_refused_by_name(tmp_path, picture_files, capsys):
    config = small.config(small.write_text(tmp_path / "text"))
    with small.one_device(), Checkpoints(tmp_path / "run") as checkpoints:
        model = multimodal.build(config, rngs=nnx.Rngs(params=0))
        checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    flags = f"--checkpoint={tmp_path / 'run'}", f"--image={picture_files / 'a.png'}", "--prompt=<image>"
    code, _, err = inference.main(flags), *capsys.readouterr()
    assert code == 2 and "allowed: a checkpoint with vision; nearest: --checkpoint=runs/vl/stage2" in err
