"""What an installed package has and can do."""

import shutil
import sys
import zipfile

import pytest

from tests.house import installed
from tests.house.checkout import ROOT, modules

PYTHONS = [python for python in ("python3.12", "python3.13") if shutil.which(python)] or [sys.executable]


@pytest.mark.slow
def test_a_wheel_has_every_module_of_the_library_and_its_configs_and_nothing_beside(tmp_path):
    names = zipfile.ZipFile(installed.build(tmp_path, sys.executable)).namelist()
    found = {name for name in names if not name.startswith("mm01_jax-")}
    ours = {path.relative_to(ROOT).as_posix() for path in modules().values()}
    wanted = {name for name in ours if name.startswith(("mm01_jax/", "pallas_kernels/"))}
    wanted |= {f"mm01_jax/{name}" for name in ours if name.startswith("configs/")}
    assert found == wanted | {"mm01_jax/__init__.pyi", "mm01_jax/py.typed"}


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_every_command_does_its_job_from_a_wheel_in_another_folder(python, tmp_path):
    programs = installed.install(tmp_path, python, installed.build(tmp_path, python))
    assert len(list(installed.run(programs, tmp_path / "elsewhere"))) == 1 + len(installed.STEPS)
