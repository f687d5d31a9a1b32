"""lm-evaluation-harness on the engine: its perplexity is ours, its log-likelihoods and answers are the model's."""

import json
import math
import types

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval")

from mm01_jax.data.tokenizer import BytesTokenizer  # noqa: E402
from mm01_jax.evals import __main__ as evals  # noqa: E402
from mm01_jax.evals.harness import EngineLM  # noqa: E402
from mm01_jax.evals.perplexity import perplexity  # noqa: E402
from mm01_jax.inference import engine_devices  # noqa: E402
from mm01_jax.loading import load  # noqa: E402
from tests import small  # noqa: E402
from tests.inference.engine import engines  # noqa: E402
from tests.train import cheap_run  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TEXTS = ["A river runs.", "The grass of the hill is green and wet é.", "x" * 20 + "y" * 9, "To be, or not."]
PERPLEXITY = """
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metric_list: [{{metric: {metric}}}]
metadata: {{version: 1}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of a run, and a folder with a file of texts and tasks about them."""
    root = tmp_path_factory.mktemp("harness")
    with pytest.MonkeyPatch.context() as patch:
        cheap_run.use(patch)
        cheap_run.run(
            root / "run", small.config(small.write_text(root / "text"), train__steps=1, train__sequence_length=128)
        )
    (folder := root / "tasks").mkdir()
    rows = [{"text": text, "question": text[:-4], "answer": text[-4:]} for text in TEXTS]
    (file := root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, text, target, metric in (
        ("bits", "loglikelihood_rolling", "", "{{text}}", "bits_per_byte"),
        ("exact", "generate_until", "{{question}}", "{{answer}}", "exact_match"),
    ):
        written = PERPLEXITY.format(name=name, file=file, kind=kind, text=text, target=target, metric=metric)
        (folder / f"{name}.yaml").write_text(written)
    return root / "run", folder, file


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing is asked of a network; engines are compiled quickly."""
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)
    for name, value in (("HF_DATASETS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "1"), ("HF_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)


def instances(*pairs) -> list:
    return [types.SimpleNamespace(args=pair) for pair in pairs]


def logprobs(model, ids: list[int]) -> np.ndarray:
    """Of each token but the first, by the model's own forward."""
    tokens = np.array([ids], np.int32)
    positions = np.arange(len(ids), dtype=np.int32)[None]
    with jax.set_mesh(jax.tree.leaves(model)[0].sharding.mesh):
        logits = np.asarray(model(tokens, positions, np.zeros_like(tokens))[0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(ids) - 1), ids[1:]]


def test_perplexity_of_a_local_task_is_that_of_our_own_command(run, tmp_path, capsys):
    workdir, folder, file = run
    out = tmp_path / "found.json"
    typed = ("lm-eval", f"--checkpoint={workdir}", "--nocompile-cache", "--tasks=local_bits,local_exact")
    assert evals.main([*typed, f"--include={folder}", "--context=128", f"--json={out}"]) == 0, capsys.readouterr().err
    assert "local_bits" in capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    with small.one_device():
        model, _, config = load(str(workdir))
        ours = perplexity(model, config, str(file))
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert ours.num_targets == num_bytes  # every token but the first of each, and its end
    theirs = results["local_bits"]["bits_per_byte,none"] * math.log(2) * num_bytes / ours.num_targets
    assert theirs == pytest.approx(ours.loss, rel=1e-6)
    assert results["local_exact"]["exact_match,none"] == 0.0


def test_log_likelihoods_are_those_of_the_forward_whole_in_windows_and_with_a_first_token():
    model, words = engines.model(), BytesTokenizer()
    plain, bos = EngineLM(model, words, 40, 2), EngineLM(model, words, 40, 2, "<beginning_of_sentence>")
    pairs = [("A river", " runs."), ("", "x"), ("", "xyz"), ("long " * 20, "tail")]
    found = plain.loglikelihood(instances(*pairs))
    wanted = [logprobs(model, [*b"A river runs."])[-6:].sum(), 0.0, logprobs(model, [*b"xyz"]).sum()]
    wanted.append(logprobs(model, [*b"long " * 20, *b"tail"][-40:])[-5:].sum())  # with the blank before it
    np.testing.assert_allclose([one for one, _ in found], wanted, rtol=1e-5)
    begun = [0xFD, *b"xyz"]
    assert bos.loglikelihood(instances(("", "xyz")))[0][0] == pytest.approx(logprobs(model, begun).sum(), rel=1e-5)
    ids = [*TEXTS[0].encode(), 256]
    rolled = plain.loglikelihood_rolling(instances((TEXTS[0],), ("z" * 60,)))
    assert rolled[0] == pytest.approx(logprobs(model, ids).sum(), rel=1e-5)
    window = [*b"z" * 60, 256]
    parts = logprobs(model, window[:40]).sum() + logprobs(model, window[-40:])[-21:].sum()
    assert rolled[1] == pytest.approx(parts, rel=1e-5)


def test_a_greedy_answer_is_known_as_the_likeliest_and_ends_before_its_stop_text():
    adapter = EngineLM(engines.model(), BytesTokenizer(), 40, 2)
    (said,) = adapter.generate_until(instances(("A river", {"until": [], "max_gen_toks": 8})))
    ascii_only = said.isascii() and len(said) == 8
    again = adapter.generate_until(instances(("A river", {"until": [said[3:5]], "max_gen_toks": 8})))
    assert again == [said[: said.index(said[3:5])]]
    (_, is_greedy), (_, other) = adapter.loglikelihood(instances(("A river", said), ("A river", said[:3] + "~#")))
    assert (is_greedy or not ascii_only) and not other


def test_a_task_that_is_none_and_a_setting_that_is_none_are_refused(run, capsys):
    workdir, folder, _ = run
    typed = ("lm-eval", f"--checkpoint={workdir}", "--nocompile-cache", f"--include={folder}")
    assert evals.main([*typed, "--tasks=local_bit"]) == 2
    err = capsys.readouterr().err.strip()
    assert "nearest: local_bits" in err and len(err.splitlines()) == 1
    with pytest.raises(ValueError, match="generation_kwargs.beams"):
        EngineLM(engines.model(), BytesTokenizer(), 40, 2).generate_until(instances(("A", {"beams": 3})))
