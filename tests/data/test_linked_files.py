"""Links in a folder of data that somebody has made to be followed without end."""

import pytest

from mm01_jax.data import globs
from mm01_jax.data.sources import find_shards
from mm01_jax.data.text import FILES, DataError


def test_a_chain_of_links_is_followed_as_far_as_the_system_does(tmp_path):
    (tmp_path / "0.txt").write_text("text")
    for number in range(1, 60):
        (tmp_path / f"{number}.txt").symlink_to(f"{number - 1}.txt")
    with FILES.open(tmp_path / "9.txt", root=tmp_path) as file:
        assert file.read() == b"text"
    with pytest.raises(DataError, match=r"59\.txt: missing .*over very many others"):
        FILES.open(tmp_path / "59.txt", root=tmp_path)


def test_files_of_a_folder_that_links_reach_in_very_many_ways_are_found_once(tmp_path, monkeypatch):
    monkeypatch.setattr(globs, "MOST_OTHERS", 500)
    for number in range(12):
        folder = tmp_path / f".{number}"
        folder.mkdir()
        (folder / "f.txt").write_text("text")
        for name in ("x", "y") if number < 11 else ():
            (folder / name).symlink_to(f"../.{number + 1}")
    (tmp_path / "go").symlink_to(".0")
    with pytest.raises(DataError, match="names and found 12 of data; name a folder, or fewer by the glob"):
        find_shards(f"{tmp_path}/go/**/*.txt", "text")
