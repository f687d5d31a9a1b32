"""A trace of some steps of a run, and the parts of the model that they spent their time in (`train.profile`)."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from mm01_jax import files, scopes


class StepProfile:
    """Traces `steps` of a run into `folder`; the first process's devices alone.

    It waits for the device where the trace begins and where it ends.
    """

    def __init__(self, steps: range, folder: pathlib.Path, log: Callable[[str], None]):
        self.steps = steps if jax.process_index() == 0 else range(0)
        self.folder, self.log = folder, log
        self._trace = contextlib.ExitStack()
        if self.steps:
            files.Door(ValueError).refuse_link(folder)
            # A program from the compile cache would have the scopes of whatever version put it there.
            jax.config.update("jax_compilation_cache_include_metadata_in_key", True)

    def before(self, step: int, state: Any) -> None:
        """Called before `step` is dispatched on `state`."""
        if self.steps and step == self.steps[0]:
            jax.block_until_ready(state)
            self._trace.enter_context(scopes.traced(self.folder))

    def after(self, step: int, state: Any, program: Callable[[], jax.stages.Compiled]) -> None:
        """Called after `step` was dispatched; `program` gives the compiled step."""
        if not self.steps or step != self.steps[-1]:
            return
        jax.block_until_ready(state)
        self._trace.close()
        scopes.save_program(self.folder, program())
        self.log(f"steps {self.steps[0]} to {step} by scope: share, device time, launches (trace: {self.folder})")
        for line in scopes.table(scopes.read(self.folder)):
            self.log(f"  {line}")

    def close(self) -> None:
        """Ends a trace that a run has left in the middle."""
        self._trace.close()
