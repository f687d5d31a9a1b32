"""lm-evaluation-harness asks the server, and its scores are the engine's own log-probabilities of the same texts."""

import importlib.util
import inspect
import json
import math
import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from mm01_jax.inference.engine import Engine  # noqa: E402
from mm01_jax.inference.engine_request import Request  # noqa: E402
from mm01_jax.loading import load  # noqa: E402
from tests.inference.serve.running import CHAT_TINY, NAME, Server  # noqa: E402

TASK = """
task: library
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
"""
COUNT, CHOICES = 12, 4


def documents() -> list[dict]:
    """Questions about functions, each with what is said of some."""
    known = [name for name in sorted(vars(math)) if callable(getattr(math, name)) and not name.startswith("_")]
    found = []
    for number in range(COUNT):
        some, answer = known[number * CHOICES :][:CHOICES], number % CHOICES
        choices = [" ".join(inspect.getdoc(getattr(math, name)).split())[:80] for name in some]
        found.append({"question": f"What does math.{some[answer]} do?", "choices": choices, "answer": answer})
    return found


def alone(texts: list[tuple[str, str]]) -> list[float]:
    """The log-probability of each text behind its beginning, of an engine in this process."""
    loaded = load(str(CHAT_TINY))
    engine = Engine(loaded.model, num_slots=4, max_length=896, tokenizer=loaded.tokenizer, logprobs=20, steps=4)
    ids = [
        engine.submit(Request(prompt=loaded.tokenizer.encode(before + text), max_tokens=1, prompt_logprobs=1))
        for before, text in texts
    ]
    engine.run()
    counts = [len(loaded.tokenizer.encode(before)) for before, _ in texts]
    return [sum(engine.forget(id).prompt_logprobs[count - 1 :]) for id, count in zip(ids, counts, strict=True)]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_evals_scores_over_http_are_the_engines_own(tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents()))
    (tmp_path / "library.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    flags = f"--checkpoint={CHAT_TINY}", "--template=minimax-01", "--context=896", "--slots=4"
    with Server(*flags, quick=False) as server:
        url = server.until(r"(http://\S+/v1) serves")[1]
        asked = f"model={NAME},base_url={url}/completions,num_concurrent=4,max_length=895"
        command = [sys.executable, "-m", "lm_eval", "--model=local-completions", f"--model_args={asked}"]
        command += ["--tasks=library", f"--include_path={tmp_path}", f"--output_path={tmp_path / 'out'}"]
        done = subprocess.run([*command, "--log_samples"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("samples_library_*.jsonl")
    samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda one: one["doc_id"])
    found = [float(response[0][0]) for one in samples for response in one["resps"]]
    texts = [(one["question"], f" {choice}") for one in documents() for choice in one["choices"]]
    assert found == pytest.approx(alone(texts), rel=0, abs=1e-6) and len(found) == COUNT * CHOICES
