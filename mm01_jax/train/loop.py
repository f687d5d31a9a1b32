"""A run from start to end: open the data, restore or initialise, step, evaluate, save, report.

The effects of training live here: files, clocks, messages. The device never waits for the host: the metrics of step
n-1 are fetched after step n was dispatched, and saving copies the state and goes on behind.
"""

import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mm01_jax import checkpoint, files, sharding
from mm01_jax.chips import peak_flops
from mm01_jax.config import Config, ConfigError, rules, saved
from mm01_jax.config.mesh import mesh_problems
from mm01_jax.data import pipeline
from mm01_jax.data.batch import Batch
from mm01_jax.data.dataset import Dataset, open_dataset
from mm01_jax.data.entropy import entropy
from mm01_jax.data.tokenizer import save_beside
from mm01_jax.inference import scoring
from mm01_jax.kept_programs import kept_step
from mm01_jax.messages import say
from mm01_jax.model.flops import mfu, train_flops_per_token
from mm01_jax.model.remat import with_remat_settled
from mm01_jax.parallel import sequence_layout
from mm01_jax.parallel.overlap import compiler_options
from mm01_jax.progress import Progress
from mm01_jax.train import folder, refusal, report, step
from mm01_jax.train.metrics import MetricsLog
from mm01_jax.train.preemption import Preempted, Preemption
from mm01_jax.train.profiling import StepProfile
from mm01_jax.train.start import Start, begin, check_memory, check_resumable, with_exchange_settled


class NonFinite(Exception):
    """Too many steps in a row were refused, or the last one was."""

    exit_code = 4


def run(
    config: Config,
    workdir: str,
    init_from: str | None = None,
    log: Callable[[str], None] = say,
    *,
    allow_nonfinite: bool = False,
    save_on: Sequence[signal.Signals] = (),
    keeps_program: bool = False,
) -> None:
    """Trains `config` in `workdir`, or goes on with the run that is there.

    Args:
      init_from: a run or checkpoint whose weights a new run starts from.
      allow_nonfinite: those, and the run's own steps, may have NaN and infinity: in parts that are frozen.
      save_on: further signals that save and end the run, as SIGTERM does.
      keeps_program: the traced step may come from an earlier start and stay for the next (`kept_programs.py`).

    Raises:
      ConfigError: the config cannot be trained, or fits not the devices or the run in `workdir`; that is no folder.
      DataError, CheckpointError: the data, or every checkpoint of the run, is bad.
      SaveFailed: the last step could not be saved.
      NonFinite, Preempted: see there.
    """
    problems = [*rules.training_problems(config), *mesh_problems(config, jax.device_count())]
    if problems:
        raise ConfigError(problems)
    root = folder.make(workdir)
    mesh = sharding.make_mesh(config.mesh)
    with checkpoint.Checkpoints(root, keep=config.train.keep_checkpoints, log=log) as checkpoints, jax.set_mesh(mesh):
        if jax.process_count() == 1:
            files.remove_unfinished(root)
        before = checkpoints.latest_meta()
        check_resumable(config, before, init_from, log)
        abstract = step.abstract_state(config, mesh)
        check_memory(abstract, mesh)
        train = config.train
        sizes = train.sequence_length, config.model.vocab_size
        dataset = open_dataset(config.data, *sizes, vision=config.vision, cache=root, log=log)
        log(dataset.describe())
        settled = with_remat_settled(with_exchange_settled(config, log), abstract, log)
        start = begin(settled, mesh, checkpoints, dataset, init_from, log, allow_nonfinite=allow_nonfinite)
        if (at := int(start.state.step)) >= train.steps:
            left = f"nothing is left to do: train.steps={train.steps}, and {root} is at step {at}"
            if before and before.get("refused"):  # it ended so the first time, too
                raise NonFinite(f"{left}, which was refused. {refusal.advice(None, config.compute)}")
            log(left)
            return
        if jax.process_index() == 0:
            folder.write(root / "config.json", saved.to_json(config))
            save_beside(dataset.tokenizer, root)
        described = saved.to_json(config) + saved.to_json(settled) if keeps_program else None
        _Loop(config, root, checkpoints, dataset, start, log, described=described).train(Preemption(save_on))


class _Loop:
    """Where a run is: the one mutable object of training."""

    def __init__(self, config: Config, root, checkpoints, dataset: Dataset, start: Start, log, *, described):
        self.config, self.root, self.checkpoints, self.dataset = config, root, checkpoints, dataset
        self.log, self.metrics_log = log, None
        self.state, self.row = start
        self.step = int(self.state.step)
        self.saved = self.step or None  # the last step that was
        self.refused_in_a_row, self.advice = 0, ""  # what may help against refusals
        self.unsaved = False  # whether a step was accepted since
        self.save_due = False  # whether a step was to be saved and was refused
        self.held_out_loss: float | None = None  # of the last evaluation
        self.last_fetch = time.monotonic()
        mesh = jax.sharding.get_mesh()
        self.placed = sharding.named(mesh, config.mesh.rules, "batch", "seq")
        self.order = sequence_layout.order(config.train.sequence_length, config.mesh, config.compute.sequence_layout)
        state_placed = jax.tree.map(lambda x: x.sharding, self.state)
        self.train_step = kept_step(
            functools.partial(step.train_step, config=config),
            None if config.train.profile_steps else described,  # a profile asks the program itself for its scopes
            log,
            out_shardings=(state_placed, None),
            compiler_options=compiler_options(mesh.devices.flat[0].platform, config.compute.collectives),
        )
        self.score = jax.jit(functools.partial(scoring.score, chunk=config.train.loss_chunk))
        self.peak = peak_flops(mesh.devices.flat[0].device_kind)
        self.progress = Progress(self.step, config.train.steps)
        self.profile = StepProfile(config.train.profile_steps, root / "profile", self.progress.log)
        if jax.process_index() == 0:
            self.metrics_log = MetricsLog(root, self.step, tensorboard=config.train.tensorboard, log=log)

    def train(self, preemption: Preemption) -> None:
        """Everything from the first step to the last message."""
        self.log(report.describe(self.config.name, self.state.model))
        held_out = self._held_out()
        with preemption:
            try:
                self._steps(held_out, preemption)
            finally:
                self.profile.close()
                if self.metrics_log:
                    self.metrics_log.close()
        if jax.process_index() == 0:
            report.end(self.config, self.root, self._summary(held_out), self.log)

    def _steps(self, held_out: list[Batch], preemption: Preemption) -> None:
        train = self.config.train
        waiting = None  # the step whose metrics have not been fetched
        for row, batch in self._batches() if self.step < train.steps else ():
            batch = self._on_devices(batch, self.step)
            self.profile.before(self.step + 1, self.state)
            self.state, metrics = self.train_step(self.state, batch)
            self.step, self.row = self.step + 1, row
            self.profile.after(self.step, self.state, lambda: self.train_step.lower(self.state, batch).compile())  # noqa: B023
            if waiting:
                self._record(*waiting)
            waiting = (self.step, metrics)
            stop = preemption.requested(self.step)
            last = self.step == train.steps
            evaluate = bool(held_out) and (last or self.step % train.eval_every == 0)
            save = stop or last or self.save_due or self.step % train.checkpoint_every == 0
            if save or evaluate:
                self._record(*waiting, held_out=held_out if evaluate else None)
                waiting = None
            if save:
                self._save(must=stop or last)
            else:
                self._report_failed(self.checkpoints.check)
            if last and self.refused_in_a_row:
                raise NonFinite(f"the last step, {self.step}, was refused; {self._left()}. {self.advice}")
            if stop:
                raise Preempted(f"{self._left()}; the same command goes on from there")
            if last:
                return

    def _left(self) -> str:
        """What a run that ends here leaves."""
        return f"step {self.saved} is saved" if self.saved else "nothing is saved: no step was accepted"

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        train = self.config.train
        share = pipeline.process_share(self.placed, train.batch_size, train.sequence_length)
        return pipeline.batches(
            self.dataset.train,
            self.row,
            train.batch_size_at,
            *share,
            vocab_size=self.config.model.vocab_size,
            start_step=self.step,
            prefetch=self.config.data.prefetch,
        )

    def _on_devices(self, batch: Batch, at: int) -> Batch:
        return pipeline.to_global(batch, self.placed, self.config.train.batch_size_at(at), self.order)

    def _held_out(self) -> list[Batch]:
        """The rows that every evaluation of this run scores: whole batches, the same in every process."""
        train, rows = self.config.train, self.dataset.held_out
        if rows is None:
            return []
        batches = pipeline.batches(rows, 0, lambda _: train.batch_size, vocab_size=self.config.model.vocab_size)
        return [batch for _, (_, batch) in zip(range(train.eval_batches), batches, strict=False)]

    def _evaluate(self, held_out: list[Batch]) -> float:
        """Mean cross-entropy of the held-out rows, nats a target."""
        placed = (pipeline.whole_to_global(batch, self.placed, self.order) for batch in held_out)
        sums = [self.score(self.state.model, batch) for batch in placed]
        losses, weights = np.sum(jax.device_get(sums), axis=0)
        return float(losses / max(weights, 1.0))

    def _record(self, at: int, metrics: dict[str, jax.Array], held_out: list[Batch] | None = None) -> None:
        """Fetches the metrics of step `at`, writes and shows them; stops the run on too many refused steps."""
        values = {name: value.tolist() for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        seconds, self.last_fetch = now - self.last_fetch, now
        train = self.config.train
        tokens = train.batch_size_at(at - 1) * train.sequence_length / seconds
        record = {"step": at, **values, "tokens_per_second": tokens, "seconds": seconds}
        record["bits_per_byte"] = values["loss"] / math.log(2) * self.dataset.targets_per_byte
        if self.peak:
            flops = tokens * train_flops_per_token(self.config.model, train.sequence_length)
            record["mfu"] = mfu(flops, self.peak, jax.device_count())
        if held_out:
            record["held_out_loss"] = self.held_out_loss = self._evaluate(held_out)
            self.last_fetch = time.monotonic()
        if self.metrics_log and (at % train.log_every == 0 or held_out):
            self.metrics_log.write(record)
        self.progress.show(at, report.line(record))
        self._count_refused(at, values)

    def _count_refused(self, at: int, values: dict[str, Any]) -> None:
        if values["broken"]:
            raise NonFinite(
                f"step {at} made weights or moments that are not finite, though its loss, {values['loss']}, and "
                f"gradient norm, {values['grad_norm']}, are. It is not saved; checkpoints before it are untouched."
            )
        if not values["refused"]:
            self.refused_in_a_row, self.unsaved = 0, True
            return
        self.refused_in_a_row += 1
        compute = self.config.compute
        why, self.advice = refusal.reason(values, compute), refusal.advice(values, compute)
        self.progress.log(f"step {at} is refused, weights unchanged: {why}")
        if self.refused_in_a_row >= self.config.train.max_nonfinite_steps:
            raise NonFinite(
                f"{self.refused_in_a_row} steps in a row were refused, the last is {at}: {why}. Checkpoints before it "
                f"are untouched. {refusal.advice(values, compute, f'the rows before {self.row}')}"
            )

    def _save(self, *, must: bool) -> None:
        """Saves the current step behind the training; `must` waits for it and lets a failure rise.

        A refused step has the weights of one before it. It is saved only where a run ends on it and those are not yet;
        otherwise the next accepted step is saved in its place, so that no good step is retired for it.
        """
        self._report_failed(self.checkpoints.wait)  # an earlier step that failed is no reason not to save this one
        refused = self.refused_in_a_row > 0
        self.save_due = refused and not must
        if refused and not (must and checkpoint.any_of(self.unsaved)):  # a save fails on one process, say
            return
        meta = {
            "config": json.loads(saved.to_json(self.config)),
            "row": self.row,
            "data": self.dataset.manifest,
            "mesh": dict(jax.sharding.get_mesh().shape),
            "refused": refused,
        }
        try:
            self.checkpoints.save(self.step, self.state, meta)
            if must:
                self.checkpoints.wait()
            self.saved, self.unsaved = self.step, False
        except checkpoint.SaveFailed as error:
            if must:
                raise
            self._say_not_saved(error)
        self.last_fetch = time.monotonic()

    def _report_failed(self, check: Callable[[], None]) -> None:
        """Says when a save in the background has failed; `check` is the checkpoints' `check` or `wait`."""
        try:
            check()
        except checkpoint.SaveFailed as error:
            self._say_not_saved(error)

    def _say_not_saved(self, error: checkpoint.SaveFailed) -> None:
        self.unsaved = True
        self.progress.log(f"NOT SAVED, training goes on: {error}")

    def _summary(self, held_out: list[Batch]) -> dict[str, float]:
        """Held-out loss against what counting achieves on the same targets, nats a target."""
        if self.held_out_loss is None:
            return {}
        counted = entropy(held_out)
        return {"held_out_loss": self.held_out_loss, "unigram": counted.unigram, "bigram": counted.bigram}
