"""`images=` of `generate`: what is no list of pictures for each prompt is refused by its place, with what is near."""

import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference import pictures
from mm01_jax.inference.given_pictures import check_form

EACH = "allowed: a list for each prompt, of its pictures; nearest: "
ONE = "allowed: the path of a picture, the bytes of its file, or a PIL.Image.Image; nearest: "
WRONG = {
    "a text": ("a.png", 1, f"images: got 'a.png'; {EACH}images=[[\"a.png\"]]"),
    "a path": (pathlib.Path("a.png"), 1, f'images: got a PosixPath; {EACH}images=[["a.png"]]'),
    "bytes": (b"x", 1, f"images: got a bytes; {EACH}images=[[picture]]"),
    "an open image": (Image.new("RGB", (2, 2)), 1, f"images: got a Image; {EACH}images=[[picture]]"),
    "a number": (3, 1, f'images: got 3; {EACH}images=[["a.png"]]'),
    "what can be read once": (iter([["a.png"]]), 1, f'images: got a list_iterator; {EACH}images=[["a.png"]]'),
    "pictures of one prompt": (["a.png", "b.png"], 1, f'images[0]: got \'a.png\'; {EACH}images=[["a.png", "b.png"]]'),
    "a picture of each prompt": (
        ["a.png", "b.png", "c.png"],
        3,
        f'images[0]: got \'a.png\'; {EACH}images=[["a.png"], ["b.png"], ...]',
    ),
    "None of a prompt": (
        [["a.png"], None],
        2,
        'images[1]: got None; allowed: a list of the pictures of a prompt, [] where it has none; nearest: ["a.png"]',
    ),
    "None of a picture": ([["a.png", None]], 1, f'images[0][1]: got None; {ONE}"a.png"'),
    "a name that is empty": ([[""]], 1, f"images[0][0]: got ''; {ONE}\"a.png\""),
    "a file's number": ([[7]], 1, f'images[0][0]: got 7; {ONE}"a.png"'),
    "pixels": ([[np.zeros((2, 2, 3))]], 1, f"images[0][0]: got a ndarray; {ONE}PIL.Image.fromarray(array)"),
    "an open file": ([[io.BytesIO(b"x")]], 1, f"images[0][0]: got a BytesIO; {ONE}file.read()"),
    "bytes that change": ([[bytearray(b"x")]], 1, f"images[0][0]: got a bytearray; {ONE}bytes(...)"),
    "a list too many": (
        [["a.png"], []],
        1,
        "images: got 2 lists for 1 prompt; allowed: a list for each prompt; nearest: [] for a prompt without a picture",
    ),
    "a list too few": (
        [["a.png"]],
        2,
        "images: got 1 list for 2 prompts; allowed: a list for each prompt;",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_pictures_of_another_form_are_refused_by_their_place(what):
    images, prompts, message = WRONG[what]
    with pytest.raises(ValueError, match=re.escape(message)):
        check_form(images, prompts)


def test_paths_bytes_open_images_and_no_picture_are_taken():
    check_form(([], ("a.png", pathlib.Path("b.png")), [b"bytes", Image.new("L", (2, 2))]), 3)


def test_marks_are_counted_before_a_file_is_opened(monkeypatch):
    monkeypatch.setattr(pictures, "open_image", None)
    said = [{"role": "user", "content": "<image>what?"}]
    with pytest.raises(ValueError, match="1 <image> mark in the text and 1,000,000 images; "):
        pictures.ask(said, ["a.png"] * 1_000_000, BytesTokenizer(), None)
