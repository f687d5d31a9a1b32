"""Bad input is refused with exit code 3, the file or tensor named, nothing written that looks finished."""

import contextlib
import io
import pathlib
import random
import sys
import time

import pytest

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.convert.__main__ import main
from mm01_jax.convert.check import check
from tests.convert import samples
from tests.faults import convert_spoil as spoil
from tests.faults.convert_bad_inputs import export, is_refused
from tests.faults.convert_cases import CASES, PATHS, make
from tests.faults.convert_mutations import MUTATIONS, flip_header, flip_small_file

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple) -> None:
    if _opened is not None and event in ("open", "os.open"):
        _opened.append(str(arguments[0]))


sys.addaudithook(_hook)  # cannot be taken off again; idle unless a test listens


@contextlib.contextmanager
def opened():
    """Collects every path that is opened."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


def run(*arguments: str) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    return code, said.getvalue()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title[:40])
def test_bad_input_is_refused_by_name_and_leaves_nothing_finished(case, tmp_path):
    source = make(tmp_path / "in", case)
    before = sorted(tmp_path.iterdir())
    start = time.process_time()
    with opened() as paths:
        code, said = run("from-torch", f"--source={source}", f"--target={tmp_path / 'out'}", *case.flags)
    assert code == 3, said
    assert all(words in said for words in case.says), said
    assert time.process_time() - start < 10
    assert set(tmp_path.iterdir()) - set(before) <= {tmp_path / "out.partial"}
    if case in PATHS:
        assert not [path for path in paths if "outside" in path or path in ("/etc/passwd", "/dev/zero")]


def test_header_as_long_as_is_read_is_refused_within_ten_seconds(tmp_path):
    samples.make(tmp_path / "in")
    path, text = tmp_path / "in" / spoil.SHARD, b'{"a":[' + b"0," * 7_999_000 + b"0]}"
    path.write_bytes(spoil.with_header(text, b""))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="values would take .* too many"):
        check(tmp_path / "in", log=lambda line: None)
    assert time.process_time() - start < 10


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> pathlib.Path:
    """A directory that our export wrote, with its list of SHA-256, and the checkpoint it came from."""
    return export(tmp_path_factory.mktemp("exported"))


def assert_refused(exported, tmp_path, seeds, **options):
    accepted = []
    for seed in seeds:
        mutation = MUTATIONS[seed % len(MUTATIONS)]
        if not is_refused(exported, tmp_path / "mutated", mutation, random.Random(seed), **options):
            accepted.append(f"{mutation.__name__} {seed}")
    assert not accepted


def test_mutations_of_a_directory_with_digests_are_refused(exported, tmp_path):
    assert_refused(exported, tmp_path, range(len(MUTATIONS) * 2))


def test_mutations_are_refused_against_the_manifest_of_a_conversion(exported, tmp_path):
    # Metadata of headers and of the index are no tensors: a manifest of ours does not know them.
    strict = [i for i, m in enumerate(MUTATIONS) if m not in (flip_header, flip_small_file)]
    assert_refused(exported, tmp_path, strict, against=exported / "ours")


@pytest.mark.slow
def test_six_hundred_and_fifty_mutations_are_refused(exported, tmp_path):
    assert_refused(exported, tmp_path, range(1000, 1000 + 50 * len(MUTATIONS)))
