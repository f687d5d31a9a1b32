"""A directory of PyTorch weights, made hostile, converted."""

from tests.faults import hostile
from tests.faults.hostile_bytes import BYTES, INSTEAD
from tests.faults.hostile_json import HEADERS, JSON, header_of_2_to_63

WORDS = "a hostile directory of PyTorch weights is refused in a screen that names the file; nothing outside is touched"
judge = hostile.judge
_WAYS = hostile.ways(HEADERS, (header_of_2_to_63,), INSTEAD, JSON, BYTES)
MEMBERS = hostile.members("torch", _WAYS, refused=tuple(hostile.ways(HEADERS, (header_of_2_to_63,))))
