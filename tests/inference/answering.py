"""One small trained-shaped run on disk, and what its model answers on a mesh: new tokens and a perplexity.

As a program, one process of several (tests/inference/test_inference_processes.py):
python -m tests.inference.answering CHECKPOINT MESH
"""

import json
import pathlib
import sys
from typing import NamedTuple

import numpy as np

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


def answer(path, mesh: str | None) -> Answer:
    """What `load` gives on a mesh, asked."""

    from mm01_jax.evals.perplexity import perplexity
    from mm01_jax.inference.decoding import generate
    from mm01_jax.inference.sampling import Sampling
    from mm01_jax.loading import load

    model, tokenizer, config = load(path, mesh)
    options = {"seed": 5, "stop": tokenizer.end_of_document, "vocab_size": tokenizer.vocab_size}
    prompts, sampling = [tokenizer.encode(text) for text in PROMPTS], Sampling(temperature=1.0, top_p=0.9)
    blocks = [*generate(model, prompts, max_tokens=20, sampling=sampling, **options)]
    score = perplexity(model, config)
    return Answer(np.concatenate(blocks, axis=1).tolist(), score.loss, score.num_targets)


if __name__ == "__main__":
    cluster.join()
    found = answer(*sys.argv[1:])
    print("answer", json.dumps(found), flush=True)
