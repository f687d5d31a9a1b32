"""How the few rows of a decode step lie in arrays that its operations hand to each other.

Rows are filled up to a multiple of eight, which lie together in a GPU's shared memory, and of more than 64, the height
of its matrix product, to a multiple of that. What stands in rows that only fill up may be anything, NaN too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

EIGHT = 8
ROWS = 64


class Placed(NamedTuple):
    """Parts of rows that lie anywhere: part p of row r is line place[p, r] of float32 lines (S, D); 0 where there is no
    such line. place: int32 (P, C), C = `columns`; lines that no place names may be anything.
    """

    lines_SD: jax.Array
    place_PC: jax.Array


def in_rows(parts: jax.Array | Placed, rows: int) -> jax.Array:
    """Parts as they lie where they are no `Placed`: (P, R, D), of which the first `rows` of R are there."""
    if not isinstance(parts, Placed):
        return parts
    found = parts.lines_SD.at[parts.place_PC[:, :rows]].get(mode="fill", fill_value=0)
    return jnp.pad(found, ((0, 0), (0, filled_up(rows) - rows), (0, 0)))


def filled_up(rows: int) -> int:
    """Rows of an array that holds so many."""
    multiple = EIGHT if rows <= ROWS else ROWS
    return -(-rows // multiple) * multiple


def columns(rows: int) -> int:
    """Columns of an array that has a column a row: whole wgmmas."""
    return -(-rows // ROWS) * ROWS
