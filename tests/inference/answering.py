"""One small trained-shaped run on disk, and what its model answers on a mesh: new tokens and a perplexity.

As a program, one process of several (tests/inference/test_inference_processes.py):
python -m tests.inference.answering CHECKPOINT MESH
"""

import json
import pathlib
import sys
from typing import NamedTuple

from mm01_jax import cluster

PROMPTS = ("def f", "x", "import self for")


class Answer(NamedTuple):
    """tokens: (prompts, 20), drawn. loss: nats a target of the held-out text, of so many targets."""

    tokens: list[list[int]]
    loss: float
    num_targets: int


def write_run(folder: pathlib.Path) -> pathlib.Path:
    """A step with weights large enough that no two logits are equal to rounding; three rows a batch, which no axis of 2
    divides."""
    import jax

    from mm01_jax.checkpoint import Checkpoints
    from mm01_jax.config import saved
    from tests import small

    changes = {"model__num_heads": 4, "model__num_kv_heads": 2, "train__batch_size": 3}
    config = small.config(small.write_text(folder / "text"), **changes)
    with small.one_device():
        model = small.model(small.Variant(config.model, config.compute), seed=3)
        model = jax.tree.map(lambda x: x * 4 if x.ndim > 3 else x, model)
        with Checkpoints(folder / "run") as checkpoints:
            checkpoints.save(1, {"model": model}, {"config": json.loads(saved.to_json(config))})
    return folder / "run"


def drawn(
    model, prompts, *, vocab_size: int, slots: int | None = None, seed: int = 0, shows=None, **asked
) -> list[list[int]]:
    """New tokens of each prompt, the first with `seed` and each next one with one more, from an engine that fits."""
    from mm01_jax.inference.engine_request import Request
    from mm01_jax.inference.fitting import engine_for

    shows = [None] * len(prompts) if shows is None else shows
    told = enumerate(zip(prompts, shows, strict=True))
    requests = [Request(prompt=prompt, seed=seed + number, shows=shown, **asked) for number, (prompt, shown) in told]
    tiles = max(0 if shown is None else len(shown.tiles) for shown in shows)
    engine = engine_for(model, None, requests, slots or len(prompts), vocab_size=vocab_size, tiles=tiles)
    ids = [engine.submit(request) for request in requests]
    engine.run()
    return [engine.forget(id).tokens for id in ids]


def answer(path, mesh: str | None) -> Answer:
    """What `load` gives on a mesh, asked."""

    from mm01_jax.evals.perplexity import perplexity
    from mm01_jax.inference.sampling import Sampling
    from mm01_jax.loading import load

    model, tokenizer, config = load(path, mesh)
    prompts, sampling = [tokenizer.encode(text) for text in PROMPTS], Sampling(temperature=1.0, top_p=0.9)
    tokens = drawn(model, prompts, vocab_size=tokenizer.vocab_size, seed=5, max_tokens=20, sampling=sampling)
    score = perplexity(model, config)
    return Answer(tokens, score.loss, score.num_targets)


if __name__ == "__main__":
    cluster.join()
    found = answer(*sys.argv[1:])
    print("answer", json.dumps(found), flush=True)
