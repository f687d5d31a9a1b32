"""Tasks of long context without a model: an oracle and whoever guesses, how prompts are said, what is refused."""

import collections
import json
import random
import types
import uuid

import numpy as np
import pytest

from mm01_jax.data.conversations import BEGIN, END
from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.evals import __main__ as evals
from mm01_jax.evals import report, run, tasks
from mm01_jax.evals.flags import WORDS
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.prompts import Prompts
from mm01_jax.evals.ruler import families
from mm01_jax.inference.engine_request import Result

GIVEN = {
    "lengths": "2k,9000",
    "depths": 3,
    "samples": 2,
    "seed": 5,
    "template": "base",
    "bos": None,
    "data": None,
    "families": "all",
    "templates": None,
}


def asked(task: str, **given) -> tasks.Asked:
    return tasks.read(task, types.SimpleNamespace(**{**GIVEN, **given}))


def all_samples(one: tasks.Asked, prompts: Prompts) -> list:
    return [(group, sample) for group in one.make(prompts) for sample in group.samples]


class Stub:
    """An engine whose answers are told beforehand: prompt -> text."""

    memory = None
    sizes = types.SimpleNamespace(num_slots=3, grid=64)

    def __init__(self, texts: dict[bytes, str]):
        self.texts, self.results = texts, {}

    def submit(self, request) -> int:
        assert not request.remember and request.sampling == run.GREEDY
        self.results[len(self.results)] = Result(text=self.texts[request.prompt.tobytes()], finish="stop")
        return len(self.results) - 1

    def step(self) -> None:
        pass

    def result(self, id: int) -> Result:
        return self.results[id]

    forget = result


def records(one: tasks.Asked, prompts: Prompts, answer) -> list[dict]:
    """answer: sample -> text."""
    texts = {prompts.ids(sample).tobytes(): answer(sample) for _, sample in all_samples(one, prompts)}
    return [report.record_of(found) for found in run.answers(Stub(texts), prompts, one.make(prompts))]


@pytest.mark.parametrize("template", ["base", "chat"])
@pytest.mark.parametrize("task", WORDS)
def test_an_oracle_scores_one_on_every_cell_and_a_guess_scores_chance(task, template):
    prompts, draws = Prompts(Pieces(BytesTokenizer()), template), random.Random(2)
    one = asked(task, template=template)
    right = records(
        one,
        prompts,
        lambda sample: f" {', '.join(sample.answers)}" if len(sample.answers) > 1 else f" {sample.answers[0]}.",
    )
    assert right and {record["score"] for record in right} == {1.0}
    assert all(cell.low > 0.2 and cell.high == 1.0 for cell in report.cells(right))
    guesses = {"needle": number, "needles": number, "copy": code, "rounds": words, "ruler": lambda draws: "Nothing."}
    wrong = records(one, prompts, lambda sample: guesses[task](draws))
    assert sum(record["score"] for record in wrong) / len(wrong) < 0.02
    assert [record["number"] for record in wrong] == [record["number"] for record in right]
    if task == "copy":
        assert {record["edits"] for record in right} == {0} and min(record["edits"] for record in wrong) > 15


def number(draws: random.Random) -> str:
    return str(draws.randint(10**6, 10**7 - 1))


def code(draws: random.Random) -> str:
    return str(uuid.UUID(int=draws.getrandbits(128), version=4))


def words(draws: random.Random) -> str:
    keys = families.own_words().keys
    return "\n".join(f"{place}. {draws.choice(keys)}" for place in range(1, 7))


@pytest.mark.parametrize("template", ["base", "chat"])
@pytest.mark.parametrize("task", WORDS)
def test_prompts_have_the_size_they_say_one_beginning_and_the_answer_s_own(task, template):
    tokenizer = BytesTokenizer()
    bos = None if template == "chat" else END  # any token that no text has
    prompts = Prompts(Pieces(tokenizer), template, bos)
    for group, sample in all_samples(asked(task, template=template, samples=1), prompts):
        ids = prompts.ids(sample)
        counted = collections.Counter(ids.tolist())
        if template == "chat":
            assert counted[tokenizer.special(BEGIN)] == len(sample.turns) + 1
            assert counted[tokenizer.special(END)] == len(sample.turns)
            assert tokenizer.decode(ids).endswith(f"ai name=assistant\n{sample.prefix}")
        else:
            assert counted[tokenizer.special(END)] == 1 and ids[0] == tokenizer.special(END)
            assert tokenizer.decode(ids).endswith(sample.prefix or "\n\nAssistant:")
        assert len(ids) + sample.max_tokens == sample.size <= sample.length <= group.longest
        assert sample.answers[0] in "".join(turn.text for turn in sample.turns)
        ending = sample.question.rsplit("\n", 1)[-1] + sample.prefix  # what is asked, and how the answer begins
        assert not any(answer in ending for answer in sample.answers) or sample.task == "cwe"
        if group.begins is not None and task != "needle" and task != "rounds":
            began = prompts.begun(group.begins)
            assert (ids[: len(began)] == began).all()


def test_the_map_s_cells_part_from_one_haystack_where_their_needle_stands():
    prompts = Prompts(Pieces(BytesTokenizer()))
    found = all_samples(asked("needle", depths=5), prompts)
    began = prompts.begun(found[0][0].begins)
    assert max(sample.length for _, sample in found) - 400 < len(began) < 9000
    for _, sample in found:
        ids = prompts.ids(sample)
        needle = prompts.pieces.tokenizer.decode(ids).index(f" The secret number of {sample.prefix.split()[4]}")
        assert (ids[:needle] == began[:needle]).all() and ids[needle:].tolist() != began[needle : len(ids)].tolist()
        text = len(ids) - sample.facts["distance"] - needle
        assert 50 < text < 300  # the needle, the question and the prefix
        assert 0 <= sample.facts["depths"][0] - sample.facts["cell"] < 0.2  # at the next sentence


def test_rounds_have_their_needle_its_decoy_and_an_ordinal_that_tells_them_apart():
    prompts = Prompts(Pieces(BytesTokenizer()))
    found = all_samples(asked("rounds", lengths="9000", samples=7), prompts)
    assert len(found) == 210 and len({len(sample.turns) for _, sample in found}) == 1
    for _, sample in found:
        texts = [turn.text for turn in sample.turns]
        assert [turn.role for turn in sample.turns] == (["user", "assistant"] * len(texts))[: len(texts)]
        place = texts.index(sample.answers[0])
        request = texts[place - 1]
        lists = [texts[number + 1] for number, text in enumerate(texts) if text == request]
        assert len(lists) == 2 and sample.answers[0] in lists
        which = {"first": 0, "second": 1}[sample.question.split()[3 - 1]]
        assert lists[which] == sample.answers[0]
        topic = request.split(" for ")[1].split(",")[0]
        assert topic in sample.question and int(request.split()[2]) == len(sample.answers[0].split("\n"))
        assert 3 <= len(sample.answers[0].split("\n")) <= 6
        assert abs(place / len(texts) - sample.facts["cell"]) < 0.08
        assert not set(lists[0].split()[1::2]) & set(lists[1].split()[1::2])


def message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


GOOD = {
    "messages": [message("user", "Name trees"), message("assistant", "1. oak\n2. elm"), message("user", "Again")],
    "label": "1. oak\n2. elm",
    "length_class": 2048,
}


def test_published_files_are_taken_as_they_are(tmp_path):
    lines = [json.dumps(GOOD | {"length_class": length}) for length in (4096, 2048, 2048)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    prompts = Prompts(Pieces(BytesTokenizer()), "chat")
    found = [(group.count, list(group.samples)) for group in asked("rounds", data=str(tmp_path)).make(prompts)]
    assert [count for count, _ in found] == [2, 1]
    sample = found[0][1][1]
    assert (sample.length, sample.number, sample.answers, sample.facts["parts"]) == (2048, 1, ("1. oak\n2. elm",), 2)
    assert [turn.text for turn in sample.turns] == [one["content"] for one in GOOD["messages"]]
    text = prompts.pieces.tokenizer.decode(prompts.ids(sample))
    assert text.count("oak") == 1 and text.endswith("ai name=assistant\n")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"label": "1. ash"}, "the label among the answers"),
        ({"label": ""}, "label is ''"),
        ({"label": "..."}, "label is '...'; allowed: a text with a part"),
        ({"length_class": "2048"}, "length_class is '2048'"),
        ({"messages": []}, "messages is []"),
        ({"messages": [{"role": "user"}]}, "a message is {'role': 'user'}"),
        ({"messages": GOOD["messages"][:2]}, "a request at the end"),
        (
            {"messages": [*GOOD["messages"][:2], message("user", "a\ud800")]},
            "a message: character 1 is half a pair",
        ),
    ],
)
def test_published_files_of_another_form_are_refused_by_line(tmp_path, capsys, change, named):
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    refused(capsys, f"{tmp_path}/a.jsonl, line 2", "rounds", f"--data={tmp_path}", code=3)
    refused(capsys, named, "rounds", f"--data={tmp_path}/a.jsonl", code=3)


def test_a_copy_of_strings_that_is_wrong_is_bad_data(tmp_path, capsys):
    (tmp_path / "strings.json").write_text("{}")
    refused(capsys, "strings.json: got nothing", "ruler", f"--templates={tmp_path}/strings.json", code=3)
    (tmp_path / "strings.json").write_text("[]")
    refused(capsys, "strings.json: JSON of a list", "ruler", f"--templates={tmp_path}/strings.json", code=3)


def test_a_published_line_without_end_is_refused_before_it_is_read_whole(tmp_path, capsys):
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.truncate(2**33)  # holes
    said = f"{tmp_path}/a.jsonl, line 1: more than 8,388,608 bytes"
    refused(capsys, said, "rounds", f"--data={tmp_path}/a.jsonl", code=3)


def refused(capsys, named: str, *arguments: str, code: int = 2) -> None:
    """A command ends before it has looked into its checkpoint, with one line."""
    ended = evals.main([*arguments, "--checkpoint=."])
    out, err = capsys.readouterr()
    assert (ended, out, len(err.strip().splitlines())) == (code, "", 1), err
    assert named in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("needle", "--lengths=1g"), "--lengths: got '1g'"),
        (("needle", "--lengths=1k,1024"), "each once"),
        (("needles", "--lengths=20m"), "from 1 to 10,240,000 tokens"),
        (("ruler", "--families=vt,cvt"), "nearest: vt"),
        (("ruler", "--templates=no/such.json"), "no/such.json"),
        (("rounds", "--data=no/such"), "no/such"),
        (("copy", "--template=chat", "--bos=<s>"), "--bos"),
        (("copy", "--template=chatty"), "nearest: chat"),
        (("needle", "--json=no/such/folder/x.json"), "allowed: a file in a folder that exists"),
        (("needle", "--figure=x.pdf"), "allowed: a file that ends in .png or .svg"),
    ],
)
def test_what_is_typed_wrong_is_refused_before_anything_is_loaded(capsys, arguments, named):
    refused(capsys, named, *arguments)


class Lossy(BytesTokenizer):
    name = "lossy"

    def encode(self, text):
        return super().encode(text.lower())


def test_a_tokenizer_that_cannot_say_a_needle_is_refused_by_the_letter():
    with pytest.raises(ValueError, match=r"tokenizer lossy: cannot say 'A'"):
        asked("needle").prompts(Lossy())
    with pytest.raises(ValueError, match="<s>"):
        asked("needle", bos="<s>").prompts(BytesTokenizer())


@pytest.mark.parametrize("task", WORDS)
def test_a_length_that_nothing_fits_is_refused(task):
    with pytest.raises(ValueError, match="got .*200.*; allowed: "):
        all_samples(asked(task, lengths="200"), Prompts(Pieces(BytesTokenizer())))


def test_what_is_resumed_is_not_asked_again():
    prompts, one = Prompts(Pieces(BytesTokenizer())), asked("needles", lengths="2k,4k")
    texts = collections.defaultdict(
        str, {prompts.ids(sample).tobytes(): "x" for _, sample in all_samples(one, prompts)}
    )
    whole = [found.sample for found in run.answers(Stub(texts), prompts, one.make(prompts))]
    for skipped in (1, 3, 4, 11, 12):
        stub = Stub(texts)
        assert [f.sample for f in run.answers(stub, prompts, one.make(prompts), skipped)] == whole[skipped:]
        assert len(stub.results) == len(whole) - skipped


def test_needles_are_as_many_as_depths_and_distances_are_counted_in_tokens():
    prompts = Prompts(Pieces(BytesTokenizer()))
    for _, sample in all_samples(asked("needles", depths=7), prompts):
        assert sample.question.count("The secret number of ") == 7 and sample.facts["distractors"] == 6
        context = sample.question.rsplit("\nWhich", 1)[0]
        behind = context.split(f" is {sample.answers[0]}.")[1]
        assert sample.facts["distance"] == len(behind)
    counted = report.by_distance(
        [report.record_of(found(sample)) for _, sample in all_samples(asked("needles"), prompts)]
    )
    assert sum(cell.count for _, cell in counted) == 12
    assert all(np.log2(most) % 1 == 0 for most, _ in counted)


def found(sample) -> run.Answered:
    return run.Answered(sample, "", "length", 1, 0)
