"""Every --image of a command line is taken, however it is written; one that is no picture is one line."""

import pytest

from mm01_jax.inference import __main__ as generate


@pytest.mark.parametrize("third", [["--image=c.png"], ["--image", "c.png"], ["-image", "c.png"]])
def test_pictures_are_taken_in_order_with_and_without_an_equals_sign(third):
    argv = ["--image", "a.png", "--prompt", "<image>", "--image=b.png", *third]
    assert generate._apart(argv) == (["a.png", "b.png", "c.png"], ["--prompt", "<image>"])


@pytest.mark.parametrize(
    ("typed", "said", "code"),
    [
        (["--image", "gone.png"], "gone.png: No such file", 3),
        (["--image=a\nb.png"], "a\\nb.png: No such file", 3),
        (["--image"], "--image: got 'no value'", 2),
        (["--image="], "--image: got 'no value'", 2),
        (["--image", "--seed=1"], "--image: got 'no value'", 2),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(typed, said, code, capsys):
    assert generate.main(["--checkpoint=.", "--prompt=<image>", *typed]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
