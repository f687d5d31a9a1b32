"""A step of a run, made hostile, looked at and verified."""

from tests.faults import hostile
from tests.faults.hostile_bytes import BYTES, INSTEAD, folder_linked_out
from tests.faults.hostile_json import JSON

WORDS = "a hostile step is refused in a screen that names the file; nothing outside is touched"
judge = hostile.judge
MEMBERS = hostile.members("step", hostile.ways(INSTEAD, JSON, BYTES, (folder_linked_out,)))
