"""Very many links in a folder of data cost little more than as many files."""

import os
import pathlib
import time

import pytest

from mm01_jax.data.sources import find_shards
from mm01_jax.files import Door
from mm01_jax.links import Links


def test_where_a_path_leads_is_what_the_system_says(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_text("text")
    targets = ["a/b/f", "./a/./b//f", "a/b/../b/f", f"{tmp_path}/a/b/f", "fold/f", "0", "fold/../b/f", "6"]
    (tmp_path / "fold").symlink_to("a/b")
    for number, target in enumerate(targets):
        (tmp_path / f"{number}").symlink_to(target)
    links = Links(tmp_path)
    for path in (*(tmp_path / f"{number}" for number in range(len(targets))), tmp_path / "fold/f", tmp_path / "fold"):
        assert links.real(path) == links.real(path) == os.path.realpath(path, strict=True)


def test_of_chains_the_system_s_forty_links_are_followed_in_whatever_order(tmp_path):
    (tmp_path / "0").write_text("text")
    for number in range(1, 5000):
        (tmp_path / f"{number}").symlink_to(f"{number - 1}")
    (tmp_path / "self").symlink_to("self")
    links, door = Links(tmp_path), Door()
    for number in (4999, 41, 40, 3, 40):
        if number > 40:
            with pytest.raises(OSError, match="Too many levels"):
                links.real(tmp_path / f"{number}")
            with pytest.raises(door.error, match="over very many others"):
                door.check(tmp_path / f"{number}", root=links)
        else:
            assert links.real(tmp_path / f"{number}") == f"{tmp_path}/0"
    with pytest.raises(OSError, match="Too many levels"):
        links.real(tmp_path / "self")


def test_very_many_links_are_looked_at_once_however_deep_or_long_they_are(tmp_path):
    deep = pathlib.Path(tmp_path, *["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "0.txt").write_text("text")
    for chain in range(50):
        last = "0.txt"
        for number in range(38):
            os.symlink("./" * 300 + last, deep / f"{chain}_{number}.txt")
            last = f"{chain}_{number}.txt"
    began = time.process_time()
    (shard,) = find_shards(str(tmp_path), "text")
    assert time.process_time() - began < 2  # 1,900 links; looked at one by one they took 20
    assert shard.name.endswith(".txt")
