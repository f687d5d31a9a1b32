"""Laws of many prompts through the engine: an answer is that of its prompt alone, and ends where its options say."""

import json

import numpy as np
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference import answer_file, batch, engine_devices, fitting, prompt_file, thoughts
from mm01_jax.inference.asked import Answer, Settings
from mm01_jax.inference.sampling import Sampling, seed_of_sample
from mm01_jax.inference.stops import Stops
from mm01_jax.progress import Progress
from tests import small

TOKENIZER = BytesTokenizer()
SETTINGS = Settings(12, Sampling(temperature=1.0), 5)
PROMPT = TOKENIZER.encode("def f")


@pytest.fixture(scope="module", autouse=True)
def cheap():
    with small.one_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_devices, "jit", small.unoptimised)
        yield


@pytest.fixture(scope="module")
def model():
    return small.model(seed=1)


def test_answers_come_in_order_each_as_its_options_say(model):
    """Six prompts over two slots; the answer of one, cut by a stop string of its own text, frees its slot."""
    options = [{}, {"seed": 9}, {"n": 2}, {"temperature": 0, "max_tokens": 3}, {"logit_bias": {"65": 1e6}}]
    jobs = [batch.job(PROMPT, SETTINGS, one) for one in options]
    found = [*batch.answers(model, TOKENIZER, jobs, slots=2)]
    assert [len(answers) for answers in found] == [1, 1, 2, 1, 1]
    assert found[0][0] == found[2][0]  # the first sample has the request's own seed
    assert len({answers[0].text for answers in found} | {found[2][1].text}) == 5
    assert found[4][0] == Answer("A" * 12, "length")
    alone = [
        batch.job(PROMPT, SETTINGS, {"seed": seed_of_sample(5, 1)}),
        batch.job(PROMPT, SETTINGS, {"stop": found[0][0].text[2:4]}),
    ]
    (sample,), (stopped,) = batch.answers(model, TOKENIZER, alone, slots=2)
    assert sample == found[2][1]
    text = found[0][0].text
    assert stopped == Answer(text[: text.index(text[2:4])], "stop")


def test_what_goes_on_after_a_cut_has_the_engine_of_the_whole(model, monkeypatch):
    """Its shapes decide the bits, and follow from all jobs."""
    asked, jobs = [], [batch.job(TOKENIZER.encode(text), SETTINGS, {}) for text in ("def f" * 20, "x", "y")]

    def engine_for(_model, _tokenizer, requests, slots, *, tiles):
        asked.append(([len(request.prompt) for request in requests], slots, tiles))
        raise InterruptedError

    monkeypatch.setattr(batch, "engine_for", engine_for)
    for done in (0, 2):
        with pytest.raises(InterruptedError):
            next(batch.answers(model, TOKENIZER, jobs, slots=2, done=done))
    assert asked == [([100, 1, 1], 2, 0)] * 2


def test_options_change_what_they_name_alone():
    assert batch.job(PROMPT, SETTINGS, {}) == batch.Job(PROMPT, SETTINGS)
    said = {"top_k": 3, "logit_bias": {"7": -1}, "max_tokens": 4, "seed": 2**40, "stop": ["x", 7], "n": 3}
    found = batch.job(PROMPT, SETTINGS, said)
    sampling = Sampling(temperature=1.0, top_k=3, logit_bias={7: -1})
    assert found.settings == Settings(4, sampling, 2**40, Stops(frozenset({7}), ("x",)))
    assert found.samples == 3
    np.testing.assert_array_equal(found.prompt, PROMPT)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["n"], "options: got"),
        ({"temprature": 1}, "options: got 'temprature'; allowed: .*; nearest: temperature"),
        ({"temperature": -1}, "temperature=-1 must be"),
        ({"logit_bias": {"a": 1}}, "logit_bias has the id 'a'"),
        ({"logit_bias": 3}, "logit_bias=3 must be"),
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"max_tokens": 10**12}, "max_tokens: got 1000000000000; allowed: .* at most 10240000"),
        ({"temperature": 1e39}, "temperature=1e\\+39 must be 0 .greedy. or a positive number up to 1000000"),
        ({"thinking_tokens": 5}, "thinking_tokens: allowed of a conversation whose template knows <think> alone"),
        ({"n": 1.5}, "n: got 1.5"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"stop": [1.5]}, "stop: got 1.5"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        batch.job(PROMPT, SETTINGS, options)


def test_a_model_that_thinks_has_its_thoughts_apart_and_stops_thinking_at_its_budget(model):
    """A bias makes it think: its first token opens, and then it says a and b for ever."""
    prompt = TOKENIZER.encode("x")
    settings = SETTINGS._replace(thinks=True, max_tokens=40)

    class Opening:
        """The model is made to open its thoughts: a hook before the budget's."""

        def __init__(self, tokenizer, most):
            self.budget = thoughts.Budget(tokenizer, most)

        def __call__(self, tokens):
            return [b"<think>"[len(tokens)]] if len(tokens) < 7 else self.budget(tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "Budget", Opening)
        job = batch.job(prompt, settings, {"thinking_tokens": 12, "logit_bias": {"97": 60, "98": 60}})
        ((answer,),) = batch.answers(model, TOKENIZER, [job], slots=1)
    assert set(answer.thinking) <= {"a", "b"} and len(answer.thinking) == 5
    assert set(answer.text) <= {"a", "b"} and len(answer.text) == 40 - 12 - len(thoughts.CLOSING)


def test_what_takes_long_of_many_lines_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "SECONDS", 0.0)
    lines = [{"prompt": str(number)} for number in range(4)]
    assert prompt_file.of_lines("f", lambda fields: fields["prompt"], lines, "lines looked at") == ["0", "1", "2", "3"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 2/4  lines looked at" and said[-1].startswith("step 4/4  lines looked at  0:00")
    with pytest.raises(ValueError, match="f line 2: .*invalid literal"):
        prompt_file.of_lines("f", lambda fields: int(fields["prompt"]), [{"prompt": "0"}, {"prompt": "x"}], "")


def test_an_answer_whose_hook_leaves_nothing_to_say_says_why(model, monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "Budget", lambda *_: lambda tokens: [] if len(tokens) == 2 else [65])
    settings = SETTINGS._replace(thinks=True, thinking_tokens=5)
    ((answer,),) = batch.answers(model, TOKENIZER, [batch.job(PROMPT, settings, {})], slots=1)
    assert answer == Answer("AA", "masked", "", "mask: no id that may be chosen is allowed")
    answer_file.finish(str(tmp_path / "out"), answer_file.Begun(), [({"id": 1}, answer)])
    assert json.loads((tmp_path / "out").read_text())["error"] == answer.error
