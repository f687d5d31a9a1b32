"""RULER's thirteen families by name; those of needles by what they are made of."""

from typing import NamedTuple


class Needles(NamedTuple):
    """A family. keys: needles' keys, each with so many values; asked: keys that are asked for."""

    haystack: str
    key_kind: str = "words"
    value_kind: str = "numbers"
    keys: int = 1
    values: int = 1
    asked: int = 1


NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("text"),
    "niah_single_3": Needles("text", value_kind="uuids"),
    "niah_multikey_1": Needles("text", keys=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": Needles("text", values=4),
    "niah_multiquery": Needles("text", keys=4, asked=4),
}
FAMILIES = (*NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2")
SEED = 42
