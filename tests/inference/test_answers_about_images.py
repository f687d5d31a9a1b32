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
from mm01_jax.inference import decoding, pictures
from mm01_jax.inference.sampling import Sampling
from mm01_jax.inference.text import generate
from mm01_jax.loading import load
from mm01_jax.model import multimodal
from tests import small
from tests.data import conversation_data as data

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
    shown = pictures.show([asked], data.VISION)
    blocks = decoding.generate(
        loaded.model, [asked.ids], images=shown, max_tokens=TOKENS, sampling=GREEDY, vocab_size=257
    )
    chosen = np.concatenate(list(blocks), axis=1)[0]
    ids, index = (np.concatenate([x, y]) for x, y in ((asked.ids, chosen), (shown.index[0], np.full(TOKENS, -1))))
    positions, segments = np.arange(len(ids), dtype=np.int32)[None], np.zeros((1, len(ids)), np.int32)
    with small.one_device():
        whole = loaded.model(ids[None].astype(np.int32), positions, segments, shown.tiles, index[None].astype(np.int32))
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


def test_ten_thousand_prompts_with_random_images_have_at_most_eight_shapes_of_tiles():
    from mm01_jax.config import VisionConfig
    from mm01_jax.data.image_grid import bucket, lay_out

    vision = VisionConfig(embed_dim=8, num_layers=1, num_heads=1, mlp_dim=8, image_size=336, patch_size=14)
    sizes = np.random.default_rng(0).integers(1, 4097, size=(10_000, 2)).tolist()
    tiles = [lay_out(tuple(size), vision.grids, 336, 14).num_tiles for size in sizes]
    counts = np.random.default_rng(1).integers(1, 5, size=10_000).tolist()  # images of a prompt
    shapes = {bucket(sum(tiles[at : at + count])) for at, count in enumerate(counts)}
    assert len(shapes) <= 8, shapes


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
    monkeypatch.setattr(decoding, "generate", lambda *_, **__: pytest.fail("something was computed"))
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
