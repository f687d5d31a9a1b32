"""Answers about image files: by the command, by `generate`, by lines of a file; what is refused, before any compute."""

import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

from mm01_jax.checkpoint import Checkpoints
from mm01_jax.config import saved
from mm01_jax.inference import __main__ as inference
from mm01_jax.inference import fitting, pictures, prompt_answers
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import generate
from mm01_jax.loading import load
from mm01_jax.model import multimodal
from tests import small
from tests.data import conversation_data as data
from tests.inference import answering

TOKENS = 6
SIZES = {"a.png": (20, 20), "b.png": (10, 30), "c.png": (40, 15)}
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run's folder with a VLModel whose images decide what it says."""
    folder = tmp_path_factory.mktemp("vl")
    base = small.config(small.write_text(folder / "text"), train__sequence_length=data.LENGTH)
    config = small.replace(base, vision=data.VISION)
    with small.one_device(), Checkpoints(folder / "run") as checkpoints:
        model = multimodal.build(config, rngs=nnx.Rngs(params=3))
        model = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, model)
        checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    return folder / "run"


@pytest.fixture(scope="module")
def loaded(checkpoint):
    with small.one_device():
        return load(str(checkpoint))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed, (name, size) in enumerate(SIZES.items()):
        (folder / name).write_bytes(data.png(*size, seed=seed))
    return folder


def answer(loaded, prompts, images) -> list[str]:
    return generate(loaded.model, loaded.tokenizer, prompts, max_tokens=TOKENS, sampling=GREEDY, images=images)


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    fixed = (f"--max_tokens={TOKENS}", "--temperature=0")
    return inference.main((*arguments, *fixed)), *capsys.readouterr()


def test_decoding_after_images_chooses_what_whole_rows_say(loaded, files):
    said = [{"role": "user", "content": "<image>and <image>: which?"}]
    asked = pictures.ask(said, [files / "b.png", files / "a.png"], loaded.tokenizer, data.VISION)
    shown = pictures.show(asked, data.VISION)
    (chosen,) = answering.drawn(
        loaded.model, [asked.ids], shows=[shown], max_tokens=TOKENS, sampling=GREEDY, vocab_size=257
    )
    ids, index = (np.concatenate([x, y]) for x, y in ((asked.ids, chosen), (shown.index, np.full(TOKENS, -1))))
    positions, segments = np.arange(len(ids), dtype=np.int32)[None], np.zeros((1, len(ids)), np.int32)
    with small.one_device():
        row = ids[None].astype(np.int32), positions, segments
        whole = loaded.model(*row, shown.tiles[None], index[None].astype(np.int32))
    expected = np.argmax(np.asarray(whole)[0, len(asked.ids) - 1 : -1, :257], axis=-1)
    assert np.array_equal(chosen, expected)


def test_the_command_answers_as_generate_does_and_the_order_of_images_counts(checkpoint, loaded, files, capsys):
    prompt, names = "<image>or <image>?", ["a.png", "b.png"]
    flags = [f"--image={files / name}" for name in names]
    code, out, err = command(capsys, f"--checkpoint={checkpoint}", *flags, f"--prompt={prompt}")
    assert (code, err) == (0, "")
    there, back = answer(loaded, [prompt] * 2, [[files / name for name in order] for order in (names, names[::-1])])
    assert out == there + "\n" and there != back


def test_lines_with_pictures_are_answered_as_each_alone_beside_lines_of_text(checkpoint, loaded, files, capsys):
    said = [{"role": "user", "content": "<image>then <image>"}]
    lines = [
        {"prompt": "<image>?", "images": ["c.png"], "id": 7},
        {"prompt": "def "},
        {"messages": said, "images": ["a.png", "c.png"]},
        {"prompt": "<image>?", "images": ["b.png"]},
    ]
    asked, answered = files / "asked.jsonl", files / "answered.jsonl"
    asked.write_text("\n".join(map(json.dumps, lines)) + "\n")
    code, _, _ = command(capsys, f"--checkpoint={checkpoint}", f"--prompts={asked}", f"--out={answered}", "--batch=4")
    assert code == 0
    got = [json.loads(line) for line in answered.read_text().splitlines()]
    assert [{name: one[name] for name in line} for one, line in zip(got, lines, strict=True)] == lines
    prompts = ["<image>?", "<image>then <image>", "<image>?"]
    alone = [
        answer(loaded, [prompt], [[files / name for name in lines[at]["images"]]])[0]
        for prompt, at in zip(prompts, (0, 2, 3), strict=True)
    ]
    assert [got[at]["text"] for at in (0, 2, 3)] == alone and len(set(alone)) == 3


def test_lines_with_pictures_have_options_like_others(checkpoint, loaded, files, capsys):
    lines = [
        {"prompt": "<image>?", "images": ["c.png"], "options": {"max_tokens": 3}},
        {"prompt": "<image>?", "images": ["c.png"], "options": {"n": 2, "temperature": 1}},
    ]
    asked, answered = files / "options.jsonl", files / "optional.jsonl"
    asked.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert command(capsys, f"--checkpoint={checkpoint}", f"--prompts={asked}", f"--out={answered}")[0] == 0
    short, *two = (json.loads(line) for line in answered.read_text().splitlines())
    (whole,) = answer(loaded, ["<image>?"], [[files / "c.png"]])
    assert whole.startswith(short["text"]) and short["text"] != whole
    assert [one["sample"] for one in two] == [0, 1] and two[0]["text"] != two[1]["text"]


def test_answers_are_gone_on_with_only_where_the_pictures_are_the_same(checkpoint, files, capsys, monkeypatch):
    asked, out, picture = files / "begun.jsonl", files / "begun.out", files / "begun.png"
    asked.write_text('{"prompt": "<image>?", "images": ["begun.png"]}\n' * 2)
    picture.write_bytes((files / "a.png").read_bytes())
    flags = f"--checkpoint={checkpoint}", f"--prompts={asked}", f"--out={out}", "--batch=1"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prompt_answers.Progress, "show", interrupted)
        assert command(capsys, *flags)[0] == 130
    picture.write_bytes((files / "b.png").read_bytes())
    code, _, err = command(capsys, *flags)
    assert code == 2 and re.search(r"begun.out.partial: holds answers of images=.*; remove it to begin anew", err)
    picture.write_bytes((files / "a.png").read_bytes())
    code, _, err = command(capsys, *flags)
    assert code == 0 and "step 2/2" in err and "step 1/2" not in err


def test_thoughts_of_lines_with_pictures_have_no_budget(checkpoint, files, capsys):
    asked = files / "thoughts.jsonl"
    asked.write_text('{"prompt": "x"}\n{"prompt": "<image>?", "images": ["a.png"]}\n')
    flags = f"--checkpoint={checkpoint}", f"--prompts={asked}", f"--out={files / 'no'}", "--thinking-tokens=5"
    code, _, err = command(capsys, *flags)
    assert code == 2 and err.count("\n") == 1
    assert (
        "--thinking-tokens: got 5; allowed: a flag of conversations whose template knows <think>, not of a file whose"
        in err
    )
    assert "line 2 has images" in err


WRONG = {
    "an image that is cut off": (
        ("--image=cut.png", "--prompt=<image>?"),
        "cut.png: .*the file is truncated or damaged",
    ),
    "no such file": (("--image=none.png", "--prompt=<image>?"), "none.png: No such file or directory"),
    "more marks than images": (
        ("--image=a.png", "--prompt=<image><image>?"),
        "2 <image> marks in the text and 1 images; allowed is one mark an image",
    ),
    "no mark": (("--image=a.png", "--prompt=?"), "0 <image> marks in the text and 1 images"),
    "images without a prompt": (("--image=a.png", "--chat"), "--image: got 'a.png'; allowed: a flag of --prompt"),
    "an image beyond the context": (
        (*["--image=a.png"] * 12, "--prompt=" + "<image>" * 12),
        "a.png: takes 10 tokens and ends at token 136 of its prompt; allowed: before 128, the context",
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
        "few.jsonl line 1: 1 <image> marks in the text and 2 images",
    ),
}


@pytest.fixture(scope="module")
def wrong(files):
    (files / "cut.png").write_bytes((files / "a.png").read_bytes()[:300])
    (files.parent / "elsewhere.png").write_bytes((files / "a.png").read_bytes())
    lines = {
        "long": {"prompt": "<image>" * 12, "images": ["a.png"] * 12},
        "outside": {"prompt": "<image>", "images": ["../elsewhere.png"]},
        "text": {"prompt": "<image>", "images": "a.png"},
        "few": {"prompt": "<image>", "images": ["a.png", "b.png"]},
    }
    for name, line in lines.items():
        (files / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    return files


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_in_one_line_before_any_compute(what, checkpoint, wrong, capsys, monkeypatch):
    monkeypatch.chdir(wrong)
    monkeypatch.setattr(fitting, "Engine", lambda *_, **__: pytest.fail("something was computed"))
    arguments, message = WRONG[what]
    code, out, err = command(capsys, f"--checkpoint={checkpoint}", *arguments)
    assert code in (2, 3) and not out and err.count("\n") == 1, err
    assert re.search(message, err), err


def test_images_for_a_model_of_text_are_refused_by_name(tmp_path, files, capsys):
    config = small.config(small.write_text(tmp_path / "text"))
    with small.one_device(), Checkpoints(tmp_path / "run") as checkpoints:
        model = multimodal.build(config, rngs=nnx.Rngs(params=0))
        checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    image = files / "a.png"
    code, _, err = command(capsys, f"--checkpoint={tmp_path / 'run'}", f"--image={image}", "--prompt=<image>")
    assert code == 2 and "allowed: a checkpoint with vision; nearest: --checkpoint=runs/vl/stage2" in err
