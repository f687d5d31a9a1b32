"""The checkpoints of a run: saved behind the training, kept N at a time, restored only when they verify.

Orbax makes the step directories (`step_directories`): it writes into a temporary directory, waits for all processes,
and renames. What is in them is ours (`snapshot`, `reader`). Retired steps are renamed out of sight before they are
deleted, so no listed step is ever half there.
"""

import contextlib
import itertools
import os
import pathlib
import shutil
import threading
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mm01_jax import files
from mm01_jax.checkpoint import manifest, processes
from mm01_jax.checkpoint.errors import FILES, CheckpointError, NoValidCheckpoint, OtherVersion, SaveFailed
from mm01_jax.checkpoint.lock import Locked, RunLock
from mm01_jax.checkpoint.reader import CHECKPOINTS, STATE, Checkpoint, list_steps, newest_steps, step_name
from mm01_jax.checkpoint.snapshot import Snapshot
from mm01_jax.messages import counted, listing, say

_RETIRED = "retired"  # steps on their way out
_DAMAGED = "damaged"  # steps that did not verify, kept for a look
_TEMPORARY = "*.orbax-checkpoint-tmp*"
_MOST_DELETED = 1000  # folders at a time: a killed run leaves one or two


class Restored(NamedTuple):
    """What a checkpoint gave back. `meta` is what was saved with it, `meta["config"]` included."""

    state: Any
    meta: dict
    step: int


class Checkpoints:
    """Writes and restores the steps under `workdir`/checkpoints; holds the run lock until `close`.

    Args:
      keep: how many steps stay.
      log: where messages about skipped steps go.

    Raises:
      ValueError: `keep` is less than 1.
      Locked: another process writes here.
    """

    def __init__(
        self,
        workdir,
        *,
        keep: int = 3,
        log: Callable[[str], None] = say,
    ):
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        self.directory = pathlib.Path(workdir).absolute() / CHECKPOINTS
        from mm01_jax.checkpoint import step_directories  # late: who only reads does not wait for Orbax

        self._keep, self._log, self._begin = keep, log, step_directories.begin
        self._lock = RunLock(workdir) if jax.process_index() == 0 else None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._kept: set[pathlib.Path] = set()  # what could not be retired or deleted, as was said
        try:
            FILES.folder(self.directory)
            for name in (_RETIRED, _DAMAGED):
                FILES.refuse_link(self.directory / name)
                if (self.directory / name).exists():  # as a folder, or it is said before anything is trained
                    FILES.folder(self.directory / name)
            self._purge()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def save(self, step: int, state, meta: dict) -> None:
        """Starts saving; when this returns, `state` may be donated.

        Args:
          meta: a JSON object; `meta["config"]` becomes config.json, the rest (mesh, data position) joins the manifest.

        Raises:
          SaveFailed: the previous save failed, there is no room for this one, or its name is taken.
        """
        self.wait()
        processes.agree(self._obstacle(step, state), SaveFailed)
        snapshot = Snapshot(step, state, meta)
        response = self._begin(self.directory / step_name(step), snapshot)
        self._thread = threading.Thread(target=self._finish, args=(step, response), name=f"save {step}", daemon=True)
        self._thread.start()

    def _obstacle(self, step: int, state) -> Exception | None:
        """Why this save need not be tried: another writer took over, its name is taken, or there is no room."""
        try:
            if self._lock:
                self._lock.check()
        except Locked as error:
            return error
        if os.path.lexists(place := self.directory / step_name(step)):  # put there since the run began
            return SaveFailed(f"step {step}: {place} is there already, and this run did not save it: move it elsewhere")
        needed = sum(x.nbytes for x in jax.tree.leaves(state))
        try:
            free = shutil.disk_usage(self.directory).free
        except OSError as error:  # somebody removed the work directory
            return SaveFailed(f"step {step}: {self.directory}: {error.strerror}")
        if needed > free:
            return SaveFailed(f"step {step} needs {needed:,} bytes, {self.directory} has {free:,} free")
        return None

    def check(self) -> None:
        """Raises SaveFailed if the save in the background has failed; never waits. Call it every step."""
        error, self._error = self._error, None
        if error is not None:
            raise SaveFailed(f"{self.directory}: {error}") from error

    def wait(self) -> None:
        """Waits for the save in the background; raises SaveFailed if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Waits for the save in the background and frees the lock."""
        try:
            self.wait()
        finally:
            if self._lock:
                self._lock.close()

    def latest_meta(self) -> dict | None:
        """`meta` of the newest step whose manifest is sound, with `config` and the `config_file` that it lies in.

        None where there is no step: it is for comparing configurations before restoring.

        Raises:
          OtherVersion: a version wrote the run whose checkpoints are not read any more.
        """
        for _, path in newest_steps(self.directory):
            try:
                newest = Checkpoint(path, root=self.directory.parent)
                return _meta(newest) | {"config_file": str(newest.directory / manifest.CONFIG)}
            except OtherVersion:
                raise
            except CheckpointError as error:
                self._log(f"skipped: {error}")
        return None

    def manifest_of(self, step: int) -> pathlib.Path:
        """The file that says what a step holds."""
        return self.directory / step_name(step) / STATE / manifest.NAME

    def restore_latest(
        self, abstract_state, judge: Callable[[Restored], None] = lambda restored: None
    ) -> Restored | None:
        """The newest step that verifies, on the mesh that `abstract_state` names; None if nothing was ever saved.

        Steps that do not verify, or hold other leaves, are reported, and moved aside once an older one does.

        Args:
          judge: raises CheckpointError for a step that is as it was saved and still no state to go on from.

        Raises:
          OtherVersion: a version wrote the run whose checkpoints are not read any more.
          NoValidCheckpoint: there are steps and none verifies.
        """
        self.wait()
        problems, restored = [], None
        for step, path in newest_steps(self.directory):
            try:
                checkpoint = Checkpoint(path, root=self.directory.parent)
                if checkpoint.manifest.step != step:
                    raise CheckpointError(f"{path}: the manifest is of step {checkpoint.manifest.step}")
                restored = Restored(checkpoint.restore(abstract_state), _meta(checkpoint), step)
                judge(restored)
            except OtherVersion:
                raise
            except CheckpointError as error:
                self._log(f"step {step} is skipped: {error}")
                problems.append((path, str(error)))
                restored = None  # what `judge` refused makes room for an older state
                continue
            self._set_aside([path for path, _ in problems])
            return restored
        if problems:
            texts = listing([text for _, text in problems])
            raise NoValidCheckpoint(f"none of the {len(problems)} steps in {self.directory} verifies: {texts}")
        return None

    def _finish(self, step, response):
        try:
            response.result()
            if jax.process_index() == 0:
                self._retire()
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to: `check` does
            try:
                self._purge()  # first: who hears of the failure finds nothing left of it
            finally:
                self._error = error

    def _retire(self):
        steps = [path for _, path in list_steps(self.directory)]
        whole = [path for path in steps if (path / STATE / manifest.NAME).is_file()]  # a folder without one is no step
        failed = {}
        for path in steps[: steps.index(whole[-self._keep])] if len(whole) >= self._keep else []:
            retired = self.directory / _RETIRED / path.name
            try:
                FILES.folder(retired.parent)
                path.rename(retired)
            except OSError as error:
                failed[path] = error
        self._say_kept("retired", failed)
        files.sync_directory(self.directory)
        self._purge()

    def _purge(self):
        """Deletes what is not a step: retired steps and saves that did not finish."""
        if jax.process_index() == 0:
            failed = {}
            found = itertools.chain(self.directory.glob(f"{_RETIRED}/*"), self.directory.glob(_TEMPORARY))
            for path in list(itertools.islice((path for path in found if path not in self._kept), _MOST_DELETED)):
                try:
                    files.remove(path, path.parent)
                except OSError as error:
                    failed[path] = error
            self._say_kept("deleted", failed)

    def _say_kept(self, what: str, failed: dict[pathlib.Path, OSError]) -> None:
        """One line for all, the first time: they cost room, not correctness, and the run goes on."""
        if new := sorted(failed.keys() - self._kept):
            first = f"{files.shown(new[0])}: {files.why(failed[new[0]])}"
            self._log(f"{counted(len(new), 'folder')} could not be {what}, the first {first}")
        self._kept.update(new)

    def _set_aside(self, paths: list[pathlib.Path]):
        """Frees the names of damaged steps, which the run will reach again."""
        for path in paths if jax.process_index() == 0 else []:
            damaged = FILES.folder(self.directory / _DAMAGED)
            aside = damaged / path.name
            with contextlib.suppress(OSError):
                files.remove(aside, damaged)
            if os.path.lexists(aside):  # folders that are too deep to be deleted
                aside = damaged / f"{path.name}.{uuid.uuid4().hex}"
            path.rename(aside)


def _meta(checkpoint: Checkpoint) -> dict:
    return checkpoint.manifest.meta | {"config": checkpoint.config_object}
