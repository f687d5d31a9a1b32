"""How the few rows of a decode step lie in arrays that its operations hand to each other.

Rows are filled up to a multiple of eight, which lie together in a GPU's shared memory, and of more than 64, the height
of its matrix product, to a multiple of that. What stands in rows that only fill up may be anything, NaN too.
"""

EIGHT = 8
ROWS = 64


def filled_up(rows: int) -> int:
    """Rows of an array that holds so many."""
    multiple = EIGHT if rows <= ROWS else ROWS
    return -(-rows // multiple) * multiple


def columns(rows: int) -> int:
    """Columns of an array that has a column a row: whole wgmmas."""
    return -(-rows // ROWS) * ROWS
