"""python -m mm01_jax.data inspect: counts, lengths, samples, what was skipped; damage by name."""

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest

from mm01_jax.data import inspection
from mm01_jax.data.__main__ import main
from mm01_jax.data.text import DataError
from tests.data.text_folder import tokenized, write_texts, write_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a source that has a bad line, and its tokens."""
    folder = tmp_path_factory.mktemp("inspected")
    source = write_texts(folder / "source")
    with open(source / "c.jsonl", "a") as file:
        file.write('{"text": 7}\n')
    tokenized(source, write_tokenizer(folder / "words"), folder / "tokens", max_bad_records=1)
    return folder


def said(capsys, *flags):
    assert main(["inspect", *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tokens", "source"])
def test_a_source_is_counted_shown_and_what_was_skipped_is_named(place, capsys, kind):
    out = said(capsys, f"--source={place / kind}")
    assert re.search(r"documents +125 of 7 files", out)
    assert len(re.findall(r"^sample .*(tale|cities|line)", out, re.MULTILINE)) == 3
    assert re.search(r"skipped +1: c.jsonl line \d+.*data.text_field='text' has no text", out)
    bars = [int(count) for count in re.findall(r"#+ *(\d+)$", out, re.MULTILINE)]
    assert sum(bars) == 125 and len(bars) > 2


def test_a_sample_is_the_beginning_of_a_document_of_the_source(place):
    found = inspection.inspect(str(place / "tokens"), samples=125, verify=True)
    texts = [(place / "source" / "b1.txt").read_text()]
    assert [text for label, text in found.samples if label == "b1.txt at 0"] == [texts[0][:160]]
    assert len(found.samples) == 125


def test_lengths_are_counted_by_powers_of_two():
    least, counts = inspection.bins(np.array([4, 5, 7, 8, 15, 16, 64]))
    assert least.tolist() == [4, 8, 16, 32, 64] and counts.tolist() == [3, 2, 1, 0, 1]


def test_a_picture_is_drawn(place, tmp_path, capsys):
    out = said(capsys, f"--source={place / 'tokens'}", f"--picture={tmp_path / 'lengths.svg'}")
    assert "wrote" in out and "tokens of a document" in (tmp_path / "lengths.svg").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.svg"]


def test_verify_names_every_damaged_shard(place, tmp_path, capsys):
    tokenized(place / "source", str(place / "words" / "tokenizer.json"), tmp_path / "tokens", max_bad_records=1)
    for number in (1, 3):
        victim = tmp_path / "tokens" / f"tokens-0000{number}.arrayrecord"
        raw = bytearray(victim.read_bytes())
        raw[-1] ^= 1
        victim.write_bytes(raw)
    assert main(["inspect", f"--source={tmp_path / 'tokens'}", "--verify"]) == 3
    complained = capsys.readouterr().err
    assert "2 of" in complained and "tokens-00001" in complained and "tokens-00003" in complained
    assert "every byte verified" in said(capsys, f"--source={place / 'tokens'}", "--verify")


def test_verify_reads_records_whose_digests_were_made_to_fit(place, tmp_path, capsys):
    folder = tmp_path / "tokens"
    shutil.copytree(place / "tokens", folder)
    victim = max(folder.glob("*.arrayrecord"), key=lambda path: path.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    before, after = (hashlib.sha256(content).hexdigest() for content in (victim.read_bytes(), raw))
    victim.write_bytes(raw)
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace(before, after))
    assert main(["inspect", f"--source={folder}", "--verify"]) == 3
    assert "documents cannot be read: " in capsys.readouterr().err


def test_tokens_that_are_mostly_holes_are_refused_by_name_and_not_hashed(place, tmp_path, capsys):
    folder, size = tmp_path / "tokens", 2**40
    shutil.copytree(place / "tokens", folder)
    manifest = json.loads((folder / "tokens.json").read_text())
    manifest["shards"][0][2] = size
    (folder / "tokens.json").write_text(json.dumps(manifest))
    summary = json.loads((folder / "tokens-00000.json").read_text())
    os.truncate(folder / "tokens-00000.arrayrecord", size)
    assert main(["inspect", f"--source={folder}", "--verify"]) == 3
    assert (
        f"tokens-00000.json: tokens_bytes is {summary['tokens_bytes']}, tokens.json has {size}"
        in capsys.readouterr().err
    )
    (folder / "tokens-00000.json").write_text(json.dumps(summary | {"tokens_bytes": size}))
    assert main(["inspect", f"--source={folder}", "--verify"]) == 3
    assert "tokens-00000.arrayrecord: is mostly holes: " in capsys.readouterr().err


def test_how_far_the_bytes_are_verified_is_said_on_the_way(place, monkeypatch):
    lines = []
    monkeypatch.setattr(inspection, "PROGRESS_SECONDS", 0)
    inspection.inspect(str(place / "tokens"), samples=0, verify=True, log=lines.append)
    total = sum(path.stat().st_size for path in (place / "tokens").glob("*.arrayrecord"))
    assert f"verified {total:,} of {total:,} bytes, 0 s left" in lines
    assert "verified 125 of 125 documents, 0 s left" in lines


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--picture=a.txt"], "--picture"),
        (["--picture=no/folder/a.svg"], "--picture"),
        (["--samples=-1"], "--samples"),
        (["--veriy"], "--verify"),
    ],
)
def test_what_is_typed_wrong_is_refused_in_one_line(place, capsys, flags, words):
    assert main(["inspect", f"--source={place / 'tokens'}", *flags]) == 2
    complained = capsys.readouterr().err
    assert words in complained and complained.count("\n") == 1


def test_what_is_almost_all_bad_is_refused_and_not_counted_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "_MOST_BAD", 20)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "\n" * 1000)
    with pytest.raises(DataError, match="21 bad records, more than data.max_bad_records=20 allows: .*a.jsonl line"):
        inspection.inspect(str(tmp_path), samples=1, verify=False)


def test_the_tokenizer_of_a_folder_of_tokens_is_in_it(place, tmp_path, capsys):
    folder = shutil.copytree(place / "tokens", tmp_path / "tokens")
    shutil.move(folder / "tokenizer.json", tmp_path / "mine.json")
    for put, what in ((lambda path: None, "missing"), (lambda path: path.symlink_to("../mine.json"), "a link out of")):
        put(folder / "tokenizer.json")
        assert main(["inspect", f"--source={folder}"]) == 3
        assert f"{folder}/tokenizer.json: {what}" in capsys.readouterr().err
