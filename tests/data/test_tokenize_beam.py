"""mm01-tokenize as a Beam pipeline: the bytes of the local work, and its errors in one line."""

import pytest

from mm01_jax.data.tokenize.__main__ import main
from tests.data.text_folder import SHARD_BYTES, contents, tokenized, write_texts, write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
beam = pytest.importorskip("apache_beam", reason="the `beam` extra is not installed")


def flags(folder, out):
    words = folder / "words" / "tokenizer.json"
    given = [f"--source={folder / 'source'}", f"--tokenizer={words}", f"--out={out}", f"--shard-bytes={SHARD_BYTES}"]
    return [*given, "--beam=--runner=DirectRunner --direct_num_workers=2"]


@pytest.fixture
def place(tmp_path):
    write_texts(tmp_path / "source")
    write_tokenizer(tmp_path / "words")
    return tmp_path


def test_a_pipeline_gives_the_bytes_of_the_local_work_and_goes_on(place, capsys):
    tokenized(place / "source", str(place / "words" / "tokenizer.json"), place / "near")
    assert main(flags(place, place / "far")) == 0
    assert contents(place / "far") == contents(place / "near")
    (place / "far" / "tokens-00001.arrayrecord").unlink()
    assert main(flags(place, place / "far")) == 0
    assert contents(place / "far") == contents(place / "near")


def test_a_bad_record_ends_a_pipeline_in_one_line(place, capsys):
    (place / "source" / "b1.txt").write_bytes(b"\xff\xfe")
    assert main(flags(place, place / "far")) == 3
    complained = capsys.readouterr().err
    assert "b1.txt" in complained and "Traceback" not in complained


def test_work_is_shared_by_beam_or_by_hand(place, capsys):
    assert main([*flags(place, place / "far"), "--workers=2"]) == 2
    assert "--workers" in capsys.readouterr().err
