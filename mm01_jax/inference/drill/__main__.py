"""Drills the engine: random schedules of requests, each compared, bit by bit, with itself alone from cold.

  python -m mm01_jax.inference.drill --checkpoint=runs/tiny --schedules=100
  python -m mm01_jax.inference.drill --random=1024 --schedules=10 --seed=3 --json=drill.json
  JAX_NUM_CPU_DEVICES=8 python -m mm01_jax.inference.drill --random=64 --mesh=data=2,expert=2,tensor=2

Exit codes: 0 done, 1 a request had other tokens (on a CPU: other bits), 2 what was typed is wrong, 3 bad checkpoint or
data, 130 interrupted.
"""

import dataclasses
import json
import math
import shlex
import sys
import time
import types
from collections.abc import Sequence

import numpy as np

from mm01_jax import arguments, command, compile_cache, files
from mm01_jax.flag import Command, Flag
from mm01_jax.progress import Progress

COMMAND = Command(
    name="mm01_jax.inference.drill",
    doc=__doc__,
    flags=(
        arguments.CHECKPOINT._replace(required=False),
        Flag(
            "random", "instead of a checkpoint, random weights of this width", int, example="64", least=32, most=16_384
        ),
        arguments.MESH,
        Flag("dtype", "of weights and computation", ("bfloat16", "float32"), default="float32"),
        Flag("schedules", "how many", int, default=20, example="1000", least=1),
        Flag("seconds", "after which no schedule begins, those of compiling included", int, example="600", least=1),
        Flag("requests", "of each schedule", int, default=32, example="32", least=1, most=1_000_000),
        Flag("different", "requests that the schedules choose from", int, default=200, example="200", least=1),
        Flag("seed", "of requests and schedules", int, default=0, example="1", least=0),
        Flag("slots", "requests that run at a time", int, default=8, example="8", least=1),
        Flag("grid", "tokens of a piece", int, default=8, example="64", least=1, most=256),
        Flag("prefix_bytes", "remembered of earlier requests", int, default=200_000_000, example="100000", least=0),
        Flag("host_bytes", "remembered on the host", int, default=0, example="100000", least=0),
        Flag("lanes", "prompts of which a call takes in a piece each, on one device", int, default=1, least=1, most=64),
        Flag("drafts", "tokens guessed in each step of decode", int, default=0, example="2", least=0, most=16),
        Flag("json", "a file for what was counted", example="drill.json", writes=True),
        arguments.COMPILE_CACHE,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(_run, argv, name=COMMAND.name)


def _run(argv: Sequence[str]) -> int:
    ends = time.monotonic()
    given = arguments.read(COMMAND, argv)
    ends = ends + given.seconds if given.seconds else math.inf
    if (given.checkpoint is None) == (given.random is None):
        got = "neither" if given.checkpoint is None else "both"
        raise arguments.refused("--checkpoint, --random", got, "one of them", "--random=64")
    if given.compile_cache:
        compile_cache.use()
    found = {"command": shlex.join(["python", "-m", COMMAND.name, *_without_file(argv)])}
    found |= _drill(*_model(given), given, ends)
    print(json.dumps(found, indent=1))
    if given.json:
        files.write(given.json, (json.dumps(found, indent=1) + "\n").encode())
    return 1 if found["different" if found["platform"] == "cpu" else "differing_tokens"] else 0


def _without_file(argv: Sequence[str]) -> list[str]:
    return [text for text in argv if not text.startswith("--json")]


def _model(given: types.SimpleNamespace):
    """(the model, ids of its tokenizer)."""
    if given.random is not None:
        from mm01_jax.inference.drill.models import random_model

        return random_model(given.random, given.mesh, given.dtype), 257
    from mm01_jax.loading import load

    loaded = load(given.checkpoint, given.mesh, given.dtype)
    return loaded.model, loaded.tokenizer.vocab_size


def _sizes(model, vocab_size: int, given: types.SimpleNamespace) -> tuple[int, dict]:
    """(tokens of the longest prompt, what both engines are made with)."""
    from mm01_jax import sharding
    from mm01_jax.inference.drill.cases import MOST_NEW

    longest = 6 * given.grid
    shards = math.prod(sharding.mesh_of(model).shape.values())
    sizes = {
        "num_slots": -(-given.slots // shards) * shards,
        "max_length": -(-(longest + MOST_NEW) // given.grid) * given.grid,
        "grid": given.grid,
        "pieces": 4,
        "steps": 4,
        "lanes": given.lanes,
        "drafts": given.drafts,
        "keep_logits": True,
        "vocab_size": vocab_size,
    }
    return longest, sizes


def _drill(model, vocab_size: int, given: types.SimpleNamespace, ends: float) -> dict:
    import jax

    from mm01_jax import sharding
    from mm01_jax.inference.drill.cases import Cases
    from mm01_jax.inference.drill.schedules import Compiled, Count, run_schedule
    from mm01_jax.inference.engine import Engine

    longest, sizes = _sizes(model, vocab_size, given)
    kept = {"prefix_bytes": given.prefix_bytes, "host_bytes": given.host_bytes, "path_states": 4}
    engine = Engine(model, poison=True, **kept, **sizes)
    alone = Engine(model, like=engine, **sizes)
    cases = Cases(alone, vocab_size, longest, given.different, given.seed)
    count, random, progress = Count(), np.random.default_rng(given.seed), Progress(0, given.schedules)
    with Compiled() as compiled:
        for schedule in range(given.schedules):
            if time.monotonic() > ends:
                break
            run_schedule(engine, cases, given.requests, random, count)
            progress.show(schedule + 1, f"{count.requests} requests, {count.different} different")
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "mesh": dict(sharding.mesh_of(model).shape),
        "width": model.config.embed_dim,
        "dtype": model.compute.dtype,
        "seed": given.seed,
        **dataclasses.asdict(count),
        "compiled_in_traffic": compiled.count,
        "engine": engine.statistics(),
    }


if __name__ == "__main__":
    sys.exit(main())
