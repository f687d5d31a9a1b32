"""`images=` of `generate`: what is no list of pictures for each prompt is refused by its place, with what is near."""

import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference import marks, pictures
from mm01_jax.inference.asked import Asked
from mm01_jax.inference.given_pictures import check_form
from tests.data import image_samples

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
    "bytes of nothing": ([[b""]], 1, f'images[0][0]: got 0 bytes; {ONE}"a.png"'),
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


SAYS = [{"role": "user", "content": "<image>?"}]
ASKED = {"conversation": SAYS, "files": ["a.png"], "tokenizer": BytesTokenizer(), "vision": image_samples.VISION}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"conversation": "what?"}, "messages: got 'what?'; allowed: a list of at least one message"),
        ({"conversation": None}, "messages: got None; allowed: a list"),
        ({"conversation": [{"role": "x", "content": "<image>"}]}, "message 0 has role 'x'; allowed are system, user"),
        ({"files": "a.png"}, "files: got 'a.png'; allowed: a list of the pictures of a prompt"),
        ({"files": None}, "files: got None; allowed: a list"),
        ({"files": [None]}, f'files[0]: got None; {ONE}"a.png"'),
        ({"files": [""]}, f"files[0]: got ''; {ONE}"),
        ({"tokenizer": None}, "tokenizer: got a NoneType, which has no decode; allowed: a Tokenizer"),
        ({"vision": None}, "vision: got a NoneType; allowed: VisionConfig"),
        ({"context": "8"}, "context: got '8'; allowed: a whole number at least 1"),
        ({"tools": "look"}, "tools: got 'look'; allowed: a list of functions"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name_before_a_file_is_opened(other, message, monkeypatch):
    monkeypatch.setattr(pictures, "open_image", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        pictures.ask(**ASKED | other)


def test_what_is_nothing_asked_shows_nothing():
    for function in (pictures.show, pictures.num_tiles):
        with pytest.raises(ValueError, match="asked: got a NoneType; allowed: Asked"):
            function(None, image_samples.VISION)
        with pytest.raises(ValueError, match="vision: got a str; allowed: VisionConfig"):
            function(Asked(np.zeros(1, np.int32)), "vl_01")
    with pytest.raises(ValueError, match="files: got None; allowed: a list"):
        pictures.check_sound(None)


def test_a_part_that_is_an_image_is_not_to_be_given_pictures_where_no_model_sees_them():
    messages = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(ValueError, match=r"messages\[0\]: got a part that is an image; allowed: text") as caught:
        marks.check_conversation(messages, None, "pictures")
    assert "pictures" not in str(caught.value)
    with pytest.raises(ValueError, match="and no picture; .* nearest: pictures"):
        marks.check_conversation(messages, image_samples.VISION, "pictures")
