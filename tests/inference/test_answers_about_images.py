"""Answers about image files: by the command, by `generate`, by lines of a file; what is refused, before any compute."""

import json
import re
import types

import numpy as np
import pytest
from PIL import Image

from mm01_jax.inference import __main__ as inference
from mm01_jax.inference import engine_devices, pictures, prompt_answers
from mm01_jax.inference.asked import Settings
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import answers, generate
from mm01_jax.loading import load
from tests import small
from tests.data import conversation_data as data
from tests.inference import answering

TOKENS = 6
SIZES = {"a.png": (20, 20), "b.png": (10, 30), "c.png": (40, 15)}
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def loaded(vl_run):
    with small.one_device():
        return load(str(vl_run))


def answer(loaded, prompts, images) -> list[str]:
    return generate(loaded.model, loaded.tokenizer, prompts, max_tokens=TOKENS, sampling=GREEDY, images=images)


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    fixed = (f"--max_tokens={TOKENS}", "--temperature=0")
    return inference.main((*arguments, *fixed)), *capsys.readouterr()


def test_decoding_after_images_chooses_what_whole_rows_say(loaded, picture_files):
    said = [{"role": "user", "content": "<image>and <image>: which?"}]
    asked = pictures.ask(said, [picture_files / "b.png", picture_files / "a.png"], loaded.tokenizer, data.VISION)
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


def test_the_command_answers_as_generate_does_and_the_order_of_images_counts(vl_run, loaded, picture_files, capsys):
    prompt, names = "<image>or <image>?", ["a.png", "b.png"]
    flags = [f"--image={picture_files / name}" for name in names]
    code, out, err = command(capsys, f"--checkpoint={vl_run}", *flags, f"--prompt={prompt}")
    assert (code, err) == (0, "")
    there, back = answer(
        loaded, [prompt] * 2, [[picture_files / name for name in order] for order in (names, names[::-1])]
    )
    assert out == there + "\n" and there != back


def test_lines_with_pictures_are_answered_as_each_alone_beside_lines_of_text(vl_run, loaded, picture_files, capsys):
    said = [{"role": "user", "content": "<image>then <image>"}]
    lines = [
        {"prompt": "<image>?", "images": ["c.png"], "id": 7},
        {"prompt": "def "},
        {"messages": said, "images": ["a.png", "c.png"]},
        {"prompt": "<image>?", "images": ["b.png"]},
    ]
    asked, answered = picture_files / "asked.jsonl", picture_files / "answered.jsonl"
    asked.write_text("\n".join(map(json.dumps, lines)) + "\n")
    code, _, _ = command(capsys, f"--checkpoint={vl_run}", f"--prompts={asked}", f"--out={answered}", "--batch=4")
    assert code == 0
    got = [json.loads(line) for line in answered.read_text().splitlines()]
    assert [{name: one[name] for name in line} for one, line in zip(got, lines, strict=True)] == lines
    prompts = ["<image>?", "<image>then <image>", "<image>?"]
    alone = [
        answer(loaded, [prompt], [[picture_files / name for name in lines[at]["images"]]])[0]
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


def jobs(vl_run, loaded, picture_files, lines):
    given = types.SimpleNamespace(checkpoint=vl_run, prompts=picture_files / "mixed.jsonl", template="minimax-01")
    settings = Settings(TOKENS, GREEDY, 5)
    return prompt_answers._jobs(given, loaded, settings, prompt_answers._prompts(given, loaded, lines))


def test_what_a_line_asks_follows_from_that_line_alone_but_for_its_seed(vl_run, loaded, picture_files):
    beside = jobs(vl_run, loaded, picture_files, MIXED)
    assert [job.stop for job in beside] == [None, 254, 254, 254, None]
    for number, line in enumerate(MIXED):
        (alone,) = jobs(vl_run, loaded, picture_files, [line])
        assert alone.settings._replace(seed=5 + number) == beside[number].settings
        np.testing.assert_array_equal(alone.prompt, beside[number].prompt)
        assert (alone.stop, alone.tiles, alone.samples) == beside[number][-1:] + beside[number][4:1:-2]


def test_a_plain_line_does_not_end_where_a_turn_would_beside_conversations_and_pictures(
    vl_run, picture_files, capsys, monkeypatch
):
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)
    asked, out = picture_files / "mixed.jsonl", picture_files / "mixed.out"
    asked.write_text("\n".join(map(json.dumps, MIXED[:4])) + "\n")
    flags = f"--prompts={asked}", f"--out={out}", "--template=minimax-01"
    code, said, err = command(capsys, f"--checkpoint={vl_run}", *flags)
    assert (code, said) == (0, f"{out}: 4 answers\n"), err
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["text"], first["finish"]) == ("\ufffd" * TOKENS, "length")


def test_a_prompt_without_a_picture_is_what_a_user_says_too_beside_others(loaded, picture_files):
    said = answer(
        loaded,
        ["why?", "<image>?", "<image>?"],
        [[], [picture_files / "a.png"], (Image.open(picture_files / "a.png"),)],
    )
    assert said[1] == said[2]
    chat = pictures.ask([{"role": "user", "content": "why?"}], [], loaded.tokenizer, data.VISION)
    (alone,) = answers(loaded.model, loaded.tokenizer, [chat.ids], Settings(TOKENS, GREEDY, 0), chat.stop)
    assert said[0] == alone.text and chat.files == ()


def test_lines_with_pictures_have_options_like_others(vl_run, loaded, picture_files, capsys):
    lines = [
        {"prompt": "<image>?", "images": ["c.png"], "options": {"max_tokens": 3}},
        {"prompt": "<image>?", "images": ["c.png"], "options": {"n": 2, "temperature": 1}},
    ]
    asked, answered = picture_files / "options.jsonl", picture_files / "optional.jsonl"
    asked.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert command(capsys, f"--checkpoint={vl_run}", f"--prompts={asked}", f"--out={answered}")[0] == 0
    short, *two = (json.loads(line) for line in answered.read_text().splitlines())
    (whole,) = answer(loaded, ["<image>?"], [[picture_files / "c.png"]])
    assert whole.startswith(short["text"]) and short["text"] != whole
    assert [one["sample"] for one in two] == [0, 1] and two[0]["text"] != two[1]["text"]


def test_answers_are_gone_on_with_only_where_the_pictures_are_the_same(vl_run, picture_files, capsys, monkeypatch):
    asked, out, picture = picture_files / "begun.jsonl", picture_files / "begun.out", picture_files / "begun.png"
    asked.write_text('{"prompt": "<image>?", "images": ["begun.png"]}\n' * 2)
    picture.write_bytes((picture_files / "a.png").read_bytes())
    flags = f"--checkpoint={vl_run}", f"--prompts={asked}", f"--out={out}", "--batch=1"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prompt_answers.Progress, "show", interrupted)
        assert command(capsys, *flags)[0] == 130
    picture.write_bytes((picture_files / "b.png").read_bytes())
    code, _, err = command(capsys, *flags)
    assert code == 2 and re.search(r"begun.out.partial: holds answers of images=.*; remove it to begin anew", err)
    picture.write_bytes((picture_files / "a.png").read_bytes())
    code, _, err = command(capsys, *flags)
    assert code == 0 and "step 2/2" in err and "step 1/2" not in err


def test_thoughts_of_lines_with_pictures_have_no_budget(vl_run, picture_files, capsys):
    asked = picture_files / "thoughts.jsonl"
    asked.write_text('{"prompt": "x"}\n{"prompt": "<image>?", "images": ["a.png"]}\n')
    flags = f"--checkpoint={vl_run}", f"--prompts={asked}", f"--out={picture_files / 'no'}", "--thinking-tokens=5"
    code, _, err = command(capsys, *flags)
    assert code == 2 and err.count("\n") == 1
    assert (
        "--thinking-tokens: got 5; allowed: a flag of conversations whose template knows <think>, not of a file whose"
        in err
    )
    assert "line 2 has images" in err
