"""Scores beside an independent reading of the suites' rules, on answers made to be hard; intervals beside a search."""

import difflib
import math
import random

import pytest

from mm01_jax.evals import scores

# In MR-NIAH's forms, in our words, with their parts as they are to be read.
FORMS = {
    "1. oak\n2. elm\n3. ash": ["oak", "elm", "ash"],
    "1. 河\n2. 湖\n3. 海\n4. 泉": ["河", "湖", "海", "泉"],
    "Low and grey, mist rolling, end of the year.": ["Low and grey", "mist rolling", "end of the year"],
    "Up on the pier,\nGulls wait in a row.\nWet and white, very still,\nThey look at the sea.": [
        "Up on the pier",
        "Gulls wait in a row",
        "Wet and white",
        "very still",
        "They look at the sea",
    ],
    "Wind turning, leaves come and go.\nOn the step, a cat sleeps.\nBells ring, noon is over.": [
        "Wind turning, leaves come and go",
        "On the step, a cat sleeps",
        "Bells ring, noon is over",
    ],
    "冬雪落，山路静。\n炉火边，猫睡着。": ["冬雪落，山路静", "炉火边，猫睡着"],
    "小而灰，\n住在屋檐，早晨歌唱。": ["小而灰", "住在屋檐", "早晨歌唱"],
}


def crafted(wanted: list[str], draws: random.Random) -> str:
    """An answer that has some of what is asked for, whole, cut, in other letters, or with a refusal."""
    said = []
    for text in wanted:
        kind = draws.randrange(6)
        said += [[text], [text.upper()], [text[:-1]], [], [f"x{text}y"], [text[::-1]]][kind]
    draws.shuffle(said)
    ends = ["", "", "", "I am Sorry.", "There was no previous conversation", "抱歉", "没有之前的对话", " Done."]
    return draws.choice([", ", "\n", " ", ""]).join(said) + draws.choice(ends)


def contains(text: str, part: str) -> bool:
    """`part in text`, by going along."""
    return any(text[start : start + len(part)] == part for start in range(len(text) - len(part) + 1))


def test_scorers_agree_with_an_independent_reading_on_500_answers():
    draws = random.Random(3)
    seen = {name: set() for name in ("every", "some", "parts")}
    for _ in range(500):
        label = draws.choice(list(FORMS))
        wanted = FORMS[label]
        answer = crafted(wanted, draws)
        lowered = [contains(answer.lower(), part.lower()) for part in wanted]
        chinese = not label.isascii()
        words = ("抱歉", "没有之前的对话") if chinese else ("sorry", "no previous conversation")
        refused = any(contains(answer.lower(), word) for word in words)
        share = 0.0 if refused else sum(contains(answer, part) for part in wanted) / len(wanted)
        read = {
            "every": lowered.count(True) / len(lowered),
            "some": float(True in lowered),
            "parts": share,
        }
        assert scores.every(answer, wanted) == pytest.approx(read["every"])
        assert scores.some(answer, wanted) == read["some"]
        assert scores.parts(answer, [label]) == pytest.approx(read["parts"])
        for name, value in read.items():
            seen[name].add(value)
    assert all({0.0, 1.0} <= values for values in seen.values()) and len(seen["parts"]) > 4


@pytest.mark.parametrize("label", FORMS)
def test_what_an_answer_is_made_of_is_read_off_its_form(label):
    assert scores.parts_of(label) == FORMS[label]
    assert 2 <= len(FORMS[label]) <= 6


def test_edits_are_the_fewest_for_any_beginning_of_the_answer():
    draws = random.Random(5)
    for _ in range(200):
        wanted = "".join(draws.choices("abc", k=6))
        answer = "".join(draws.choices("abc", k=draws.randrange(10)))
        whole = min(distance(answer[:end], wanted) for end in range(len(answer) + 1))
        assert scores.edits(answer, wanted) == whole
        assert scores.exact(answer, [wanted]) == (answer == wanted)
        assert scores.exact(f"{answer}. c", [wanted]) == (answer == wanted)
        if answer.startswith(wanted):
            assert whole == 0
    assert scores.edits(" 12345 and more", "12345") == 0 and scores.edits("", "12345") == 5
    assert difflib.SequenceMatcher(None, "12945", "12345").ratio() < 1 and scores.edits("12945", "12345") == 1


def distance(left: str, right: str) -> int:
    """Levenshtein's, by its recursion."""
    if not left or not right:
        return len(left) + len(right)
    if left[-1] == right[-1]:
        return distance(left[:-1], right[:-1])
    return 1 + min(distance(left[:-1], right), distance(left, right[:-1]), distance(left[:-1], right[:-1]))


@pytest.mark.parametrize(("good", "count"), [(0, 10), (10, 10), (27, 30), (1, 500), (250, 500)])
def test_the_interval_has_the_rates_that_could_well_have_given_the_mean(good, count):
    found = scores.interval([1.0] * good + [0.0] * (count - good))
    assert (found.mean, found.count) == (good / count, count)
    # Wilson's: rates p with |mean - p| <= 1.96 sqrt(p (1 - p) / count), looked for one by one.
    steps = 20_000
    rates = [number / steps for number in range(steps + 1)]
    inside = [p for p in rates if abs(good / count - p) <= 1.959963985 * math.sqrt(p * (1 - p) / count) + 1e-12]
    assert found.low == pytest.approx(min(inside), abs=2 / steps)
    assert found.high == pytest.approx(max(inside), abs=2 / steps)
