"""A folder that is one thing, as a run, weights or tokens, becomes no other, and nothing else is written in it."""

import os
import pathlib

import pytest

from mm01_jax import taken, values
from mm01_jax.checkpoint.writer import check_target
from mm01_jax.config import ConfigError
from mm01_jax.data.tokenize.plan import Asked, _check_apart
from mm01_jax.train import folder

WHOLE = {
    "a run": ("checkpoints/00000004/state/manifest.json", "run.lock", "config.json", "metrics.jsonl"),
    "a checkpoint": ("state/manifest.json",),
    "PyTorch weights": ("config.json", "model-00001-of-00002.safetensors"),
    "tokens": ("tokens_plan.json",),
}


@pytest.fixture(params=WHOLE)
def whole(request, tmp_path) -> tuple[str, pathlib.Path]:
    """What it is, and the folder."""
    place = tmp_path / "it"
    for name in WHOLE[request.param]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    (tmp_path / "linked").symlink_to(place)
    return request.param, place


def test_what_a_folder_is_is_seen_in_it_and_below_it_through_links(whole):
    what, place = whole
    assert taken.holds(place) == what and taken.above(place) is None
    for below in (place / "new", place / "a" / "b" / "c", place.with_name("linked") / "new"):
        assert taken.above(below) == (str(place), what)
    assert taken.at(place, but=what) is None and taken.at(place) == (str(place), what)


def test_ordinary_folders_are_free(tmp_path):
    for name in ("checkpoints/mine/x", "state/x", "config.json", "weights/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert taken.at(tmp_path / "runs" / "tiny") is None and taken.holds(tmp_path / "checkpoints") is None


def test_no_run_conversion_or_folder_of_tokens_is_made_in_it(whole, tmp_path):
    what, place = whole
    for workdir in (place, place / "sub", tmp_path / "linked" / "sub" / "deep"):
        if (workdir, what) == (place, "a run"):
            folder.check(str(workdir))
            continue
        for refuses in (folder.check, folder.make):
            with pytest.raises(ConfigError, match=f"^refused: --workdir: got .*{place} (is|holds) {what}"):
                refuses(str(workdir))
    with pytest.raises(ValueError, match=f"--target={place}/sub: {place} (is|holds) {what}; allowed: a dir"):
        check_target(place / "sub")
    for out in {place / "sub", place} - ({place} if what == "tokens" else set()):
        with pytest.raises(ValueError, match=f"--out={out}: {place} (is|holds) {what}"):
            _check_apart(Asked("stdlib", "bytes", str(out), 1))
    assert sorted(os.listdir(tmp_path)) == ["it", "linked"]


def test_a_file_is_written_beside_its_parts_and_replaces_none(whole):
    what, place = whole
    assert values.allowed_instead(str(place / "report.json"), writes=True) is None
    for name in ("config.json", "metrics.jsonl", "model.safetensors", "state/x.json", "tokens.json"):
        (place / name).parent.mkdir(exist_ok=True)
        allowed = values.allowed_instead(str(place / name), writes=True)
        assert allowed and allowed.startswith("a file elsewhere, or of another name: ") and what in allowed, name
