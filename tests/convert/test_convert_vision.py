"""`logits` and `certify` of VL checkpoints with images: the original's numbers, every vision mistake by name."""

import contextlib
import functools
import io
import re

import numpy as np
import pytest

from mm01_jax.convert.__main__ import main
from mm01_jax.convert.certify import judge, vision_mistakes
from mm01_jax.convert.certify.images import Images
from mm01_jax.convert.from_torch import from_torch
from mm01_jax.convert.sources import open_source
from tests.convert import samples
from tests.reference import vision, vision_fixture
from tests.reference import vision_mistakes as reference
from tests.reference.mistakes import MISTAKES as TEXT_MISTAKES
from tests.reference.test_reference_fixture import BOUND, relative_error
from tests.reference.test_vision_reference import pixels
from tests.slow import slow_but

QUIET = {"log": lambda line: None}
CONFIG, WEIGHTS = vision_fixture.config(), vision_fixture.weights()
# An image cut above and below, and one of a whole tile: every mistake moves a feature or a number of them.
CASE, SHOWN = "adjacent", [1, 2]
IDS = vision_fixture.load()[f"{CASE}:expanded"][None]
# The reference's names of what a model can do to the right pixels, in the order of ours.
IN_MODEL = [*reference.IN_THE_TOWER, *(name for name in reference.IN_PACKING if name != "unpad on the wrong axis")]
NAMES = dict(zip(IN_MODEL, vision_mistakes.MISTAKES, strict=True))


def images(shown=tuple(SHOWN)) -> Images:
    tiles = np.concatenate([pixels(i) for i in shown]).astype(np.float32)
    return Images(tiles, np.array([vision_fixture.size(i)[::-1] for i in shown]))


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The fixture's model as released files and as our checkpoint, and its inputs."""
    room = tmp_path_factory.mktemp("vision")
    samples.write(room / "in", vision_fixture.plain() | {"torch_dtype": "float32"}, WEIGHTS)
    from_torch(room / "in", room / "ours", **QUIET)
    np.save(room / "ids.npy", IDS)
    np.save(room / "pixels.npy", images().pixels)
    np.save(room / "sizes.npy", images().sizes)
    return room


def run(*argv: str) -> tuple[int, str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main(argv)
    return code, text.getvalue()


def inputs(room, **changed: str) -> list[str]:
    paths = {"ids": "ids.npy", "pixels": "pixels.npy", "image-sizes": "sizes.npy"} | changed
    return [f"--{name}={room / path}" for name, path in paths.items() if path]


@pytest.mark.parametrize("directory", ["in", "ours"])
def test_logits_of_a_text_with_images_are_the_original_s(directory, room):
    code, text = run("logits", f"--source={room / directory}", *inputs(room), f"--out={room / 'out.npz'}")
    assert code == 0, text
    found, golden = np.load(room / "out.npz"), vision_fixture.load()
    assert relative_error(found["logits"][0], golden[f"{CASE}:logits"]) < BOUND
    for layer in range(7):
        assert relative_error(found[f"state_{layer}"][0], golden[f"{CASE}:state{layer}"]) < BOUND
    packed = np.concatenate([golden[f"packed{i}"] for i in SHOWN])
    assert relative_error(found["packed"], packed) < BOUND


@functools.cache
def numbers(name: str, case: str, shown: tuple[int, ...]) -> dict:
    """What an implementation with this mistake would save, and was given."""
    images_of = images(shown)
    sizes = [tuple(size[::-1]) for size in images_of.sizes.tolist()]
    counts = [len(pixels(i)) for i in shown]
    tiles = np.split(images_of.pixels.astype(np.float64), np.cumsum(counts)[:-1])
    ids = vision_fixture.load()[f"{case}:expanded"]
    with contextlib.ExitStack() as stack:
        if name in reference.MISTAKES:
            mistake = reference.MISTAKES[name]
            if name == "post_layernorm applied":  # a class that finds no weights for the norm
                unit = lambda config, w, hidden: vision.layer_norm(hidden[-1], 1.0, 0.0, config.layer_norm_eps)  # noqa: E731
                mistake = mistake._replace(wrong={"last_hidden": unit})
            stack.enter_context(reference.made(mistake))
        packed = [vision.image_tokens(CONFIG, WEIGHTS, *image) for image in zip(tiles, sizes, strict=True)]
        ids = expanded(ids, [len(vision_fixture.load()[f"packed{i}"]) for i in shown], list(map(len, packed)))
        result = vision.vl_forward(CONFIG, WEIGHTS, ids, packed)
    noisy = lambda x: (x * (1 + 2e-7 * np.random.default_rng(0).standard_normal(x.shape))).astype(np.float32)  # noqa: E731
    states = {f"state_{layer}": noisy(state) for layer, state in enumerate(result.states)}
    seen = {"ids": ids[None], "pixels": images_of.pixels, "image_sizes": images_of.sizes}
    return seen | {"packed": noisy(np.concatenate(packed)), "logits": noisy(result.logits_BSV), **states}


def expanded(ids, counts: list[int], new_counts: list[int]) -> np.ndarray:
    """The ids with another number of tokens for each image."""
    out, at, each = [], 0, iter(zip(counts, new_counts, strict=True))
    while at < len(ids):
        step, new = next(each) if ids[at] == CONFIG.image_token_index else (1, 1)
        out, at = out + [ids[at]] * new, at + step
    return np.array(out)


def verdict(room, arrays: dict) -> judge.Verdict:
    images_of = Images(arrays["pixels"], arrays["image_sizes"])
    return judge.judge(open_source(room / "in"), {"": arrays}, arrays["ids"], images_of)[""]


def test_names_of_vision_mistakes_are_paired():
    assert list(NAMES) == IN_MODEL and len(NAMES) == 26


BY_DEFAULT = ("vision tanh gelu", "no newline", "images reversed")


@pytest.mark.parametrize("name", slow_but(BY_DEFAULT, [name for name in IN_MODEL if name != "unpad rounded up"]))
def test_a_vision_mistake_is_named(name, room):
    """In a text of two images that differ in everything."""
    found = verdict(room, numbers(name, "two", (3, 0)))
    assert found.named == NAMES[name], found.candidates
    assert not found.agrees


def test_two_mistakes_that_coincide_on_an_image_are_named_together(room):
    """Of the wide image, unpadded by rounding up, no row is cut at all."""
    found = verdict(room, numbers("unpad rounded up", CASE, tuple(SHOWN)))
    assert {*found.candidates} == {NAMES["unpad rounded up"], NAMES["no unpad"]} and not found.agrees


def test_no_mistake_agrees_and_a_mistake_of_the_text_model_is_named_beside_images(room):
    right = numbers("none", CASE, tuple(SHOWN))
    assert verdict(room, right).agrees
    name = "residual before norm"
    mistake = TEXT_MISTAKES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mistake.module, mistake.name, mistake.wrong)
        packed = [vision_fixture.load()[f"packed{i}"] for i in SHOWN]
        result = vision.vl_forward(CONFIG, WEIGHTS, IDS[0], packed)
    wrong = right | {"logits": result.logits_BSV}
    wrong |= {f"state_{layer}": state for layer, state in enumerate(result.states)}
    assert verdict(room, wrong).named == "residual from before the norm"


@pytest.mark.parametrize("name", slow_but(["newline zero"], ["newline zero", "vision tanh gelu", "no unpad"]))
def test_without_packed_features_logits_name_it_where_the_number_of_tokens_is_right(name, room):
    arrays = {key: array for key, array in numbers(name, "two", (3, 0)).items() if key != "packed"}
    if name == "no unpad":
        with pytest.raises(Exception, match="image tokens; the images take 128 \\+ 70 = 198; with `packed` a mistake"):
            verdict(room, arrays)
    else:
        assert verdict(room, arrays).named == NAMES[name]


def test_certify_compares_two_directories_with_images(room):
    code, text = run("certify", f"--source={room / 'in'}", f"--against={room / 'ours'}", *inputs(room))
    assert code == 0 and "packed: 0.0e+00 from this model" in text, text


WRONG = {
    "one of the two flags": ({"image-sizes": ""}, 2, "--image-sizes is missing"),
    "a path": ({"pixels": "none.npy"}, 2, "allowed: a file that exists"),
    "another dtype": ({"pixels": "float64.npy"}, 3, r"float64.npy: got float64\[6, 3, 56, 56\]; allowed: float32 \[t"),
    "another number of tiles": ({"pixels": "fewer.npy"}, 3, "fewer.npy: 5 tiles; the 2 images of these sizes have 6"),
    "sizes of one image": ({"image-sizes": "flat.npy"}, 3, r"flat.npy: got int64\[2\]; allowed: whole numbers"),
    "too few image tokens": ({"ids": "short.npy"}, 3, r"the ids have 77 image tokens; the images take 36 \+ 42 = 78"),
    "two texts": ({"ids": "rows.npy"}, 3, r"rows.npy: 2 rows; with pixels one text is allowed, \(1, time\)"),
    "ids that are none": ({"ids": "beyond.npy"}, 3, r"beyond.npy: got 0 to 1000000; allowed: 0 to \d+$"),
    "no array": ({"pixels": "text.npy"}, 3, "not an .npy or .npz of plain arrays"),
}


@pytest.mark.parametrize("what", WRONG)
def test_images_that_do_not_fit_are_refused_in_one_line_by_name(what, room):
    np.save(room / "float64.npy", images().pixels.astype(np.float64))
    np.save(room / "fewer.npy", images().pixels[:-1])
    np.save(room / "flat.npy", images().sizes[0])
    np.save(room / "short.npy", IDS[:, 1:])
    np.save(room / "rows.npy", np.concatenate([IDS, IDS]))
    np.save(room / "beyond.npy", np.array([[0, 10**6]]))
    (room / "text.npy").write_text("no")
    changed, wanted, words = WRONG[what]
    code, text = run("logits", f"--source={room / 'in'}", *inputs(room, **changed), f"--out={room / 'no.npz'}")
    assert code == wanted and "Traceback" not in text
    assert len(text.strip().splitlines()) == 1, text

    assert re.search(words, text), text


def test_a_checkpoint_of_text_alone_refuses_pixels(room, tmp_path):
    source = samples.make(tmp_path / "text", "original")
    np.save(tmp_path / "ids.npy", np.zeros((1, 3), np.int64))
    code, text = run(
        "logits", f"--source={source}", *inputs(room, ids=str(tmp_path / "ids.npy")), f"--out={tmp_path / 'o.npz'}"
    )
    assert code == 2 and "this checkpoint has no vision weights" in text
