"""What the laws of a run share: a text, a step that costs nothing, and an uninterrupted run of it."""

import pytest

from tests import small
from tests.train import cheap_run


@pytest.fixture
def cheap(monkeypatch):
    """The cheap step in the place of the real one."""
    cheap_run.use(monkeypatch)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return small.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory, text):
    """An uninterrupted run of six cheap steps: its folder, what it said, its losses, its last digest."""
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        workdir = tmp_path_factory.mktemp("whole")
        return workdir, *cheap_run.run(workdir, small.config(text))
