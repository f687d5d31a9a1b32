"""How far answers are from the training forward of the row they are packed into, and what it costs to be there.

    python -m benchmarks.deterministic [--width=512] [--dtype=bfloat16] [--json=FILE]

Documents of random lengths are answered by the engine, deterministic and not, over fewer slots than there are of them,
then packed into one row whose forward says the same tokens' log-probabilities as training computes them. Of the engine
that is not deterministic documents begin at its slots' beginning. Random weights, both mixers, four experts.
"""

import sys
import time

import jax
import numpy as np

from benchmarks.results import Report, add_json, device, say_where
from mm01_jax import sharding
from mm01_jax.inference import sampling
from mm01_jax.inference.drill.models import random_model
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling
from tests.command_line import Parser

ROW, GRID, SLOTS, PROMPT = 2048, 128, 8, 24
_SEED = 0


def places(documents: int) -> list[tuple[int, int]]:
    """(begin, end) of so many documents in a row, each longer than its prompt."""
    random = np.random.default_rng(_SEED)
    free = ROW - 48 - 2 * PROMPT * documents
    cuts = np.sort(random.choice(free, documents - 1, replace=False)) + 2 * PROMPT * np.arange(1, documents)
    ends = [*cuts.tolist(), ROW - 48]
    return [*zip([0, *ends[:-1]], ends, strict=True)]


def answered(engine: Engine, spans, *, packed: bool) -> tuple[list[np.ndarray], list[Result], float]:
    """(each document's tokens, its answer, tokens drawn a second)."""
    random, asked = np.random.default_rng(_SEED), []
    for begin, end in spans:
        prompt = random.integers(engine.limits.vocab_size, size=PROMPT)
        request = Request(
            prompt=prompt,
            max_tokens=end - begin - PROMPT,
            sampling=Sampling(temperature=1.0),
            logprobs=0,
            place=begin if packed else 0,
        )
        asked.append((prompt, engine.submit(request)))
    began = time.perf_counter()
    engine.run()
    seconds = time.perf_counter() - began
    results = [engine.forget(id) for _, id in asked]
    tokens = [np.concatenate([prompt, one.tokens]) for (prompt, _), one in zip(asked, results, strict=True)]
    return tokens, results, sum(len(one.tokens) for one in results) / seconds


def trained(model, tokens: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(float32 logits (ROW, V), log-probabilities (ROW,) of what follows) of the packed row."""
    columns = (tokens, [np.arange(len(x)) for x in tokens], [np.full(len(x), n) for n, x in enumerate(tokens)])
    row = [np.concatenate(x).astype(np.int32) for x in columns]
    row = [np.pad(x, (0, ROW - len(x)), constant_values=fill)[None] for x, fill in zip(row, (0, 0, -1), strict=True)]

    @jax.jit
    def forward(model, tokens, positions, segments):
        logits, allowed = model(tokens, positions, segments)[0], np.ones(model.config.vocab_size, bool)
        return logits, sampling.log_probabilities(logits, jax.numpy.roll(tokens[0], -1), allowed, 1)[0]

    with jax.set_mesh(sharding.mesh_of(model)):
        return jax.tree.map(np.asarray, forward(model, *row))


def compared(spans, results: list[Result], logits, nats) -> dict[str, float]:
    """Tokens, those whose logits differ in any bit, the largest difference of a log-probability, the mean KL divergence
    of what the engine says from what training says (nats)."""
    got = np.concatenate([np.stack(one.logits) for one in results])
    said = np.concatenate([np.float32(one.logprobs) for one in results])
    at = np.concatenate([np.arange(begin + PROMPT - 1, end - 1) for begin, end in spans])
    differ = (got.view(np.uint32) != logits[at].view(np.uint32)).any(axis=1)
    ours, theirs = (
        x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (got.astype(float), logits[at].astype(float))
    )
    divergence = (np.exp(ours) * (ours - theirs)).sum(axis=1).mean()
    return {
        "tokens": len(at),
        "tokens with other bits": int(differ.sum()),
        "largest difference": float(np.abs(said - nats[at]).max()),
        "mean divergence": float(max(divergence, 0.0)),
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.deterministic", __doc__)
    parser.add_argument("--width", type=int, default=512, help="of the model, a multiple of 32")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--documents", type=int, default=12, help="in the row")
    add_json(parser)
    given = parser.parse_args(argv)
    say_where()
    report = Report(given.json, "benchmarks.deterministic", argv)
    model, spans = random_model(given.width, None, given.dtype), places(given.documents)
    found = {}
    for name, options in (("deterministic", {"deterministic": True}), ("ordinary", {})):
        engine = Engine(model, num_slots=SLOTS, max_length=ROW, grid=GRID, keep_logits=True, pieces=2, **options)
        tokens, results, speed = answered(engine, spans, packed=name == "deterministic")
        found[name] = compared(spans, results, *trained(model, tokens)) | {"speed": speed}
        for quantity, value in found[name].items():
            unit = {"speed": "tokens/s", "largest difference": "nats", "mean divergence": "nats"}.get(quantity, "")
            report.add(f"{name}, width {given.width}, {given.dtype}: {quantity}", value, unit, device=device())
        print(f"{name}: {found[name]}", flush=True)
    is_cpu = jax.devices()[0].platform == "cpu"
    return 1 if is_cpu and found["deterministic"]["tokens with other bits"] else 0


if __name__ == "__main__":
    sys.exit(main())
