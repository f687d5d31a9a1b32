"""Samples of RULER's six families that need no download, byte for byte those of NVIDIA's own generators.

The sums are of what those generators (c3f5e3b) wrote, once, elsewhere: seed 42, 20 samples, a tokenizer that is the
pattern below. OF_STRINGS: with the strings and words of this file in place of theirs. PUBLISHED: as they are, with the
words of wonderwords 3.0.1; `RULER_STRINGS=.../data/synthetic/constants.py pytest` compares them with somebody's copy.
"""

import hashlib
import importlib.util
import json
import os
import re

import numpy as np
import pytest

from mm01_jax.data.text import BadFile
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.ruler import families, strings
from mm01_jax.evals.ruler.pairs import Pairs

PATTERN = re.compile(r" ?[A-Za-z]{1,5}|\d{1,3}|[^A-Za-z\d]")
STRINGS = {
    "niah": {
        "template": "Some odd {type_needle_v} are below.\n{context}\nWhich are all the odd {type_needle_v} of {query}?",
        "answer_prefix": " You find that the odd {type_needle_v} of {query} are",
        "needle": "One odd {type_needle_v} of {key} is: {value}.",
        "noise": "Leaves fall. It snows. The pond is still.",
    },
    "variable_tracking": {
        "template": "Mind the variables.\n\n{context}\nQuestion: which have the value {query}?",
        "answer_prefix": " Answer: these {num_v} have the value {query}: ",
    },
    "common_words_extraction": {
        "template": "A list of words.\n{context}\nQuestion: which 10 come most?",
        "answer_prefix": " Answer: these 10 come most:",
    },
    "freq_words_extraction": {
        "template": "A text in a code. {context}\nQuestion: which 3 words but dots come most?",
        "answer_prefix": " Answer: these 3 come most:",
    },
}
NOUNS = [f"n{i:03d}" if i % 7 else f"n-{i}" for i in range(2000)]
ADJECTIVES = [f"a{i}" if i % 5 else f"a{i // 5}-{i}" for i in range(1500)]
VERBS = [f"v{i}" for i in range(1500)]
WORDS = families.Words(
    Pairs(ADJECTIVES, NOUNS), sorted({*NOUNS, *ADJECTIVES, *VERBS}), [f"list{i}" for i in range(60_000)]
)
OF_STRINGS = {
    ("niah_single_1", 2048): "dcf51bfcbdf134f9f505d7ffe4c0b346f1eb244f6262bca2ca6353700d4b7b7c",
    ("niah_single_1", 4096): "7112d661e40a5f162141a14b42a17fac15e9a7bfedcd07b70147c0368b3d41dd",
    ("niah_single_1", 16384): "1e152d3b8b5de074e5bbdd46cd23ab5568c6948132a30d3e9b2bfcae4b2de9a0",
    ("niah_multikey_2", 2048): "2a6b56bd01f2b4be25945577360f0d79eea51d389888c841f90766aa85ca599c",
    ("niah_multikey_2", 4096): "ecd81acbecebea90869d1dea2911380d63f901a7a18514563ae5c61822b77147",
    ("niah_multikey_2", 16384): "3d9dadf7ccf0cf2d4dd884454299ce1d81151005aa5d6676fced87f0ade5b23c",
    ("niah_multikey_3", 2048): "ce73f369b995a78d9221afde25594da9e6bd128e0d3d885fa3de981be824a38c",
    ("niah_multikey_3", 4096): "09fbeaa5a258568f1006aa5fe15ab1062882d883935cf9de7c8e6c50151f1004",
    ("niah_multikey_3", 16384): "dbe2fbfe950b986bf009cc507d4ff6f8076d66ef82374d8240728c2d0dca08c3",
    ("vt", 2048): "af378ef831ca8ba5117a1b34ddecb002b012f0af4e5dd07a5c8c585c62c6843b",
    ("vt", 4096): "17032d9ab6d7b8c12a03e0a98b3071255e6ff8e8d335c4960f9193a971c819c1",
    ("vt", 16384): "7754840e0decea27ca97b7a1b48ab8a48bdf1997d8230d93e2a4383a56e713e0",
    ("cwe", 2048): "8029c7ec71be0c0e0ac8ee274d132d2690068b6cab185e664cc3f012057087b8",
    ("cwe", 4096): "96b28ab24356f03cf003ef7a689e8967d79db1ac9d05fe16f8ae5b3c4e1012db",
    ("cwe", 16384): "3d2594525d7d29f0027ddebf2c69343c23a1f2f8c796e9e60e004ceb3e20a5cf",
    ("fwe", 2048): "b86b6df7057fb49c4cc1eefc4cd11bd980242c4813c0836f9a15d40a9de03116",
    ("fwe", 4096): "dfa936fae47fe68743002bd017430346d43a36a35f328af89dba1a34d361331b",
    ("fwe", 16384): "bbcf208bdcdbe9e6bf35e4c73e9087079f8f83a7a5cfd1c7980c768167f17d5b",
}
PUBLISHED = {
    ("niah_single_1", 2048): "b42ab2197346677732497b054b7f1306bada482a278c3e1250f03b05218499cb",
    ("niah_single_1", 4096): "af60c034af4c7022bb99882329786c80633e43b2bda38b26e26cc81585a0da01",
    ("niah_single_1", 16384): "8bdea5f7524dfbafb5849337e4c50c2e410ea43bf498a4f9135ccd8071810c87",
    ("niah_multikey_2", 2048): "eb8b834ea893af0fe90efb9aeef6067148d635b1d0596925bf4b31732cbb4ab6",
    ("niah_multikey_2", 4096): "af5a7d0975083ee6ff14a16f7eb5dd9ff9b01e73726b2204f6b281374055c18b",
    ("niah_multikey_2", 16384): "b7cd00bf6260db9cd6f00c10811b47288ee057cf4c81b71073efe51ef5f10021",
    ("niah_multikey_3", 2048): "8796b6c047111d2ecd81fecb3fae99bb6edface1fe71a9e496f885b5699b1903",
    ("niah_multikey_3", 4096): "8b3c84f0cbad22f48bdf901b04fddb52fac16af0edbdb666f72460141a21fd60",
    ("niah_multikey_3", 16384): "ecdd63e8f6b00c8d0d28344b46078d9133e21040d348257e012cca9bf887977c",
    ("vt", 2048): "a2dabbe854f99cd90c773558d007f3d56e6a91239d05eb0fd702d8ac9a190d4f",
    ("vt", 4096): "8414b2a67d733533efa874420002dbca710d67504028f5025087cb14554a3cf5",
    ("vt", 16384): "2d00bad4622c3245e02abc2190c82d08d1821c3e6473ca02ae7d7af05263bc4b",
    ("cwe", 2048): "f43736104acc6590ea92f2009b89ed9a37e1e7d3a4d6baaba6757364abf57d8f",
    ("cwe", 4096): "ffc8e7445ab5efc4a44e708e7f0c8d6e8c0992f454e97a0b79326f11bfd1003a",
    ("cwe", 16384): "983cf81d6f2edabdaca82b224c1d4eaf01e4654267cb6a8bc5ef6830731dfad4",
    ("fwe", 2048): "ecbab4f18226c932294773aa0c840880842b999933984416a55d90849741abcb",
    ("fwe", 4096): "107ce272cf68843354b7dd91f31af9eef7d3a73ad921822a0d19d165c2c1f589",
    ("fwe", 16384): "2fe1b04e445bda7ac1f311d062aa0065cf644debe256b05c677838a8c21b3c06",
}


class Letters:
    """A tokenizer of the pattern."""

    name = "letters"

    def encode(self, text: str) -> np.ndarray:
        return np.zeros(len(PATTERN.findall(text)), np.int32)


def line(sample) -> str:
    """As RULER's generators write it."""
    text = sample.question
    record = {"index": sample.number, "input": text, "outputs": list(sample.answers)}
    record |= {"length": sample.size, "length_w_model_temp": sample.size, "answer_prefix": sample.prefix}
    if sample.task.startswith("niah"):
        record["index"] = text.find(sample.answers[0])
        record["token_position_answer"] = len(PATTERN.findall(text[: record["index"]]))
    return json.dumps(record) + "\n"


def digest(task: str, length: int, said: strings.Strings, words: families.Words | None) -> str:
    pieces = Pieces(Letters(), whole=True)
    found = families.samples(task, length, 20, pieces, strings=said, given=words)
    return hashlib.sha256("".join(map(line, found)).encode()).hexdigest()


@pytest.mark.parametrize(("task", "length"), OF_STRINGS)
def test_samples_of_given_strings_are_those_of_the_published_generators(tmp_path, task, length):
    (tmp_path / "strings.json").write_text(json.dumps(STRINGS))
    said = strings.read(str(tmp_path / "strings.json"))
    assert digest(task, length, said, WORDS) == OF_STRINGS[task, length]


@pytest.mark.skipif(
    "RULER_STRINGS" not in os.environ or importlib.util.find_spec("wonderwords") is None,
    reason="needs a copy of RULER's constants.py and niah.py (RULER_STRINGS) and wonderwords",
)
@pytest.mark.parametrize(("task", "length"), PUBLISHED)
def test_samples_of_the_published_strings_are_the_published_samples(task, length):
    assert digest(task, length, strings.read(os.environ["RULER_STRINGS"]), None) == PUBLISHED[task, length]


def test_pairs_are_those_of_a_list_that_is_written_out():
    pairs = Pairs(["all", "all-around", "big", "a"], ["pond", "zoo", "around-x"])
    written = sorted(
        {f"{first}-{second}" for first in ("all", "all-around", "big", "a") for second in ("pond", "zoo", "around-x")}
    )
    assert list(pairs) == pairs[:] == written


GOOD = json.dumps(STRINGS)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GOOD.replace('"needle"', '"nadel"'), "niah.needle=None; allowed: a text niah.needle"),
        (GOOD.replace("{key}", "key"), "niah.needle without {key}"),
        (GOOD.replace("below.\\n{context}", "below."), "niah.template without {context}"),
        (GOOD.replace("below.", "{context}"), "niah.template with {context} twice"),
        (GOOD.replace("below.", "{besides}"), "niah.template with {besides}"),
        (GOOD.replace('"variable_tracking"', '"variabletracking"'), "nearest: variable_tracking"),
        (GOOD.replace('"variable_tracking"', '"a\\nmm01-eval: done"'), "got a\\nmm01-eval: done; allowed: families "),
        ("[]", "JSON of a list, not of an object"),
        ("{}", "allowed: an entry 'niah' with template and answer_prefix"),
    ],
)
def test_a_copy_that_lacks_something_is_refused_in_one_line(tmp_path, text, named):
    (tmp_path / "strings.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        strings.read(str(tmp_path / "strings.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "TASKS = [1, 2]\n",
        "TASKS = {'niah': 5}\n",
        "TASKS = {[]: 1}\n",
        "TASKS = {**{}, 'a': 1}\n",
        "TASKS = " + "-" * 200_000 + "1\n",
        "TASKS = " + "[" * 5_000 + "\n",
        "x" + ".a" * 100_000 + " = 1\n",
        "# " + "x" * 2**20,
    ],
    ids=range(8),
)
def test_python_of_any_form_is_refused_in_one_line_with_the_file(tmp_path, text):
    (tmp_path / "constants.py").write_text(text)
    (tmp_path / "niah.py").write_text("needle = ''\n")
    with pytest.raises(ValueError, match="constants.py") as error:
        strings.read(str(tmp_path / "constants.py"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "key", "value", "named"),
    [
        ("niah", "template", "{ Some {type_needle_v} {context} {query} }", "niah.template, in which there is"),
        ("niah", "template", "{type_needle_v} {context} {query} }", "niah.template, in which there is"),
        ("niah", "noise", "", "niah.noise=''"),
        ("niah", "noise", " \n", "niah.noise="),
        ("niah", "needle", " ", "niah.needle="),
        ("niah", "noise", "x y. " * 2001, "niah.noise of 10,005 characters; allowed: at most 10,000"),
    ],
)
def test_a_copy_whose_braces_do_not_close_or_whose_haystack_is_blank_or_endless_is_refused(
    tmp_path, family, key, value, named
):
    plain = json.loads(GOOD)
    plain[family][key] = value
    (tmp_path / "strings.json").write_text(json.dumps(plain))
    with pytest.raises(BadFile, match=f"strings.json.*{re.escape(named)}"):
        strings.read(str(tmp_path / "strings.json"))


def test_words_that_are_none_are_refused_with_their_file(tmp_path):
    (tmp_path / "strings.json").write_text(GOOD)
    (tmp_path / "english_words.json").write_text('{"0": "a", "1": []}')
    with pytest.raises(ValueError, match=re.escape("english_words.json: got []; allowed: words")):
        strings.read(str(tmp_path / "strings.json"))


def test_a_copy_in_python_is_read_and_not_run(tmp_path):
    tasks = {name: dict(entry) for name, entry in STRINGS.items()}
    needle, noise = tasks["niah"].pop("needle"), tasks["niah"].pop("noise")
    (tmp_path / "constants.py").write_text(f"raise SystemExit('run')\nTASKS = {tasks!r}\n")
    niah = f"needle = {needle!r}\nif essay:\n    haystack = find()\nelse:\n    haystack = {noise!r}\n"
    (tmp_path / "niah.py").write_text(niah)
    (tmp_path / "strings.json").write_text(GOOD)
    found = strings.read(str(tmp_path / "constants.py"))
    assert found == strings.read(str(tmp_path / "strings.json"))
    (tmp_path / "niah.py").write_text("needle = None\n")
    with pytest.raises(ValueError, match=r"niah.needle=None"):
        strings.read(str(tmp_path / "constants.py"))
