"""Laws of a conversation on disk: another engine goes on from it with the same bits; what does not fit is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.inference import engine_saved
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.engine_saved import load, save
from mm01_jax.inference.sampling import Sampling
from tests.inference.engine import engines

PROMPT = np.arange(30) * 5 % engines.VOCAB


def answer(engine, prompt):
    id = engine.submit(Request(prompt=prompt, max_tokens=9, sampling=Sampling(temperature=0.0)))
    engine.run()
    return engine.forget(id)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(the directory, the conversation's tokens, what is answered next)."""
    folder, engine = tmp_path_factory.mktemp("saved") / "talk", engines.engine(prefix_bytes=10**8)
    talk = np.concatenate([PROMPT, answer(engine, PROMPT).tokens])
    assert save(engine, talk, folder) == 32
    return folder, talk, answer(engine, np.append(talk, 7))


@pytest.fixture(scope="module")
def other():
    return engines.engine(prefix_bytes=10**8)


def test_another_engine_goes_on_from_a_saved_conversation_with_the_same_bits(saved, other):
    folder, talk, expected = saved
    assert answer(other, np.append(talk, 7)).cached == 0
    other.memory.prefix.clear("cleared")
    assert load(other, folder) == 32
    found = answer(other, np.append(talk, 7))
    assert (found.cached, found.tokens) == (32, expected.tokens)
    assert [x.tobytes() for x in found.logits] == [x.tobytes() for x in expected.logits]


def test_what_was_saved_and_is_damaged_is_refused(saved, other, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "damaged")
    data = max(
        (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"),
        key=lambda path: path.stat().st_size,
    )
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 4
    data.write_bytes(raw)
    with pytest.raises(CheckpointError):
        load(other, folder)


def test_a_state_that_is_not_finite_is_refused(saved, other, tmp_path, monkeypatch):
    load(other, saved[0])
    tree = engine_saved._tree

    def spoilt(pages, *others):
        return tree(jax.tree.map(lambda x: x * np.nan, pages), *others)

    with monkeypatch.context() as patch:
        patch.setattr(engine_saved, "_tree", spoilt)
        save(other, saved[1], tmp_path / "bad")
    with pytest.raises(CheckpointError, match="bad: states that are not finite: pages/00000000"):
        load(other, tmp_path / "bad")


def test_another_models_is_refused(saved, other, monkeypatch):
    monkeypatch.setattr(other.devices, "model", jax.tree.map(lambda x: x * 2, other.devices.model))
    with pytest.raises(CheckpointError, match="saved with weights '[0-9a-f]{64}', here it is '[0-9a-f]{64}'"):
        load(other, saved[0])
    louder = engines.engine(engines.VARIANT.replace(softmax_alpha=2.5), prefix_bytes=10**8)
    with pytest.raises(CheckpointError, match="another model config"):
        load(louder, saved[0])
    coarse = engines.engine(prefix_bytes=10**8, grid=16)
    with pytest.raises(CheckpointError, match="saved with grid 8, here it is 16"):
        load(coarse, saved[0])
    monkeypatch.undo()
    monkeypatch.setattr(other, "sizes", dataclasses.replace(other.sizes, wide=2))
    with pytest.raises(CheckpointError, match="saved with wide 1, here it is 2"):
        load(other, saved[0])


def test_what_cannot_be_saved_is_refused(saved, other, tmp_path):
    with pytest.raises(ValueError, match="holds something"):
        save(other, PROMPT, saved[0])
    with pytest.raises(ValueError, match="nothing of these 12 is remembered"):
        save(other, np.full(12, 250), tmp_path / "new")
    with pytest.raises(ValueError, match="tokens: got a str; allowed: a list, tuple or array of token ids"):
        save(other, "hello", tmp_path / "new")
    with pytest.raises(ValueError, match="prefix_bytes=0"):
        save(engines.alone(), PROMPT, tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="directory: got .*file, which is a file; allowed: a new or empty one"):
        save(other, PROMPT, tmp_path / "file")
    with pytest.raises(ValueError, match="content: got 'x'; allowed: bytes"):
        save(other, PROMPT, tmp_path / "new", content="x")
    with pytest.raises(ValueError, match="shows: got a str; allowed: Shown or None"):
        save(other, PROMPT, tmp_path / "new", shows="a.png")
    with pytest.raises(ValueError, match="engine: got a NoneType; allowed: Engine"):
        save(None, PROMPT, tmp_path / "new")
    for call in (lambda: save(other, PROMPT, None), lambda: load(other, None)):
        with pytest.raises(ValueError, match="directory: got a NoneType; allowed: str or PathLike"):
            call()
    assert not (tmp_path / "new").exists()
