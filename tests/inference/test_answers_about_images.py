"""Answers about image files: by the command, by `generate`, by lines of a file; what is refused, before any compute."""

import json
import re
import types

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mm01_jax.checkpoint import Checkpoints
from mm01_jax.config import saved
from mm01_jax.inference import __main__ as inference
from mm01_jax.inference import engine_devices, fitting, pictures, prompt_answers
from mm01_jax.inference.asked import Settings
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import answers, generate
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


MIXED = [
    {"prompt": "def ", "options": {"logit_bias": {"254": 100}}},  # says the byte that ends a turn, again and again
    {"prompt": "<image>?", "images": ["c.png"], "tools": [{"name": "look"}]},
    {"messages": [{"role": "user", "content": "why?"}], "tools": [{"name": "look"}], "options": {"stop": ["x", 9]}},
    {"messages": [{"role": "user", "content": "<image>"}], "images": ["a.png"], "tools": [{"name": "look"}]},
    {"prompt": "x", "images": []},
]


def jobs(checkpoint, loaded, files, lines):
    given = types.SimpleNamespace(checkpoint=checkpoint, prompts=files / "mixed.jsonl", template="minimax-01")
    settings = Settings(TOKENS, GREEDY, 5)
    return prompt_answers._jobs(given, loaded, settings, prompt_answers._prompts(given, loaded, lines))


def test_what_a_line_asks_follows_from_that_line_alone_but_for_its_seed(checkpoint, loaded, files):
    beside = jobs(checkpoint, loaded, files, MIXED)
    assert [job.stop for job in beside] == [None, 254, 254, 254, None]
    for number, line in enumerate(MIXED):
        (alone,) = jobs(checkpoint, loaded, files, [line])
        assert alone.settings._replace(seed=5 + number) == beside[number].settings
        np.testing.assert_array_equal(alone.prompt, beside[number].prompt)
        assert (alone.stop, alone.tiles, alone.samples) == beside[number][-1:] + beside[number][4:1:-2]


def test_a_plain_line_does_not_end_where_a_turn_would_beside_conversations_and_pictures(
    checkpoint, files, capsys, monkeypatch
):
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)
    asked, out = files / "mixed.jsonl", files / "mixed.out"
    asked.write_text("\n".join(map(json.dumps, MIXED[:4])) + "\n")
    flags = f"--prompts={asked}", f"--out={out}", "--template=minimax-01"
    code, said, err = command(capsys, f"--checkpoint={checkpoint}", *flags)
    assert (code, said) == (0, f"{out}: 4 answers\n"), err
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["text"], first["finish"]) == ("\ufffd" * TOKENS, "length")


def test_a_prompt_without_a_picture_is_what_a_user_says_too_beside_others(loaded, files):
    said = answer(loaded, ["why?", "<image>?", "<image>?"], [[], [files / "a.png"], (Image.open(files / "a.png"),)])
    assert said[1] == said[2]
    chat = pictures.ask([{"role": "user", "content": "why?"}], [], loaded.tokenizer, data.VISION)
    (alone,) = answers(loaded.model, loaded.tokenizer, [chat.ids], Settings(TOKENS, GREEDY, 0), chat.stop)
    assert said[0] == alone.text and chat.files == ()


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
        ("--prompts=said.jsonl", "--out=out.jsonl", "--template=minimax-m1"),
        r"said.jsonl line 1: messages\[0\]: got 1 <image> mark and no picture",
    ),
    "a part of a message that is an image, without one": (
        ("--prompts=part.jsonl", "--out=out.jsonl", "--template=minimax-m1"),
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
        "biased.jsonl line 2: logit_bias: got the id 99999; allowed: 0 to 256",
    ),
    "a stop id that no token has": (
        ("--prompts=stopped.jsonl", "--out=out.jsonl"),
        "stopped.jsonl line 1: stop: got the id 99999; allowed: 0 to 256",
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
def wrong(files):
    (files / "cut.png").write_bytes((files / "a.png").read_bytes()[:300])
    (files.parent / "elsewhere.png").write_bytes((files / "a.png").read_bytes())
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
        "stopped": {"prompt": "x", "options": {"stop": [99999]}},
    }
    for name, line in lines.items():
        first = '{"prompt": "x"}\n' if name == "biased" else ""
        (files / f"{name}.jsonl").write_text(first + json.dumps(line) + "\n")
    return files


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_in_one_line_before_any_compute(what, checkpoint, wrong, capsys, monkeypatch):
    monkeypatch.chdir(wrong)
    monkeypatch.setattr(fitting, "Engine", lambda *_, **__: pytest.fail("something was computed"))
    arguments, message = WRONG[what]
    code, out, err = command(capsys, f"--checkpoint={checkpoint}", *arguments)
    data_is_wrong = re.search(r"truncated|No such file|ends at token|outside", message) is not None
    assert code == (3 if data_is_wrong else 2) and not out and err.count("\n") == 1, err
    assert re.search(message, err), err


def test_images_for_a_model_of_text_are_refused_by_name(tmp_path, files, capsys):
    config = small.config(small.write_text(tmp_path / "text"))
    with small.one_device(), Checkpoints(tmp_path / "run") as checkpoints:
        model = multimodal.build(config, rngs=nnx.Rngs(params=0))
        checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    image = files / "a.png"
    code, _, err = command(capsys, f"--checkpoint={tmp_path / 'run'}", f"--image={image}", "--prompt=<image>")
    assert code == 2 and "allowed: a checkpoint with vision; nearest: --checkpoint=runs/vl/stage2" in err
