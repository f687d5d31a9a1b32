"""The same work as an Apache Beam pipeline, on any of its runners (extra `beam`). Its elements are the shards, so the
files are byte for byte those of mm01-tokenize; source and out are folders that every worker sees.
"""

import shlex

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from mm01_jax.data.text import DataError
from mm01_jax.data.tokenize import plan as planning
from mm01_jax.data.tokenize import work
from mm01_jax.data.tokenize.plan import Asked, Plan


class MakeShard(apache_beam.DoFn):
    """The number of a shard -> what was done about it ("" or "verified")."""

    def __init__(self, plan: Plan):
        self._asked, self._facts, self._harmless = tuple(plan.asked), plan.facts, plan.harmless

    def setup(self) -> None:
        self._plan = planning.make_again(Asked(*self._asked), self._facts, self._harmless)

    def process(self, shard: int):
        yield work.settle(self._plan, shard).found


def run(plan: Plan, options: str) -> None:
    """Makes every shard of a plan.

    Args:
      options: of the pipeline, as Beam's own programs take them: "--runner=FlinkRunner --flink_master=host:8081".

    Raises:
      DataError: what the pipeline ended with.
    """
    try:
        with apache_beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
            shards = pipeline | apache_beam.Create(range(len(plan.shards))) | apache_beam.Reshuffle()
            shards | apache_beam.ParDo(MakeShard(plan))
    except Exception as error:  # each runner has its own, around what a worker raised
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DataError(f"the Beam pipeline failed: {lines[-1].strip()}") from error
