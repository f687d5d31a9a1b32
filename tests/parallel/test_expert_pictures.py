"""The small examples drawn in docstrings of the experts are what the functions do."""

import jax
import jax.numpy as jnp
import numpy as np

from mm01_jax.parallel.experts import exchange, router
from mm01_jax.parallel.experts.rows import permutation_by

BUFFERS = exchange.Buffers(groups=1, tokens=3, shards=2, experts_per_shard=2, send=3, per_expert=6)


def drawn(label: str) -> list[list[str]]:
    """The cells of a line of the picture in `exchange`: of sender 0 or shard 0, of sender 1."""
    lines = [line.strip("\n") for line in exchange.__doc__.splitlines()]
    (header,) = (line for line in lines if line.split()[:1] == ["sender"])
    (line,) = (line for line in lines if line.strip().startswith(label))
    width = len("a  b  c | d  e  f")
    return [line[start : start + width].replace("|", " ").split() for start in (header.index("0"), header.index("1"))]


def numbers(cells: list[str], none: int = -1) -> list[int]:
    return [none if cell == "-" else int(cell) for cell in cells]


def inside(indices: jax.Array, none: int) -> list[int]:
    """What is out of range is any number from `none` on."""
    return np.minimum(indices, none).tolist()


def sent(sender: int):
    """(rows of each expert of each shard, assignment of each slot, slot of each assignment)."""
    choice = jnp.asarray(numbers(drawn("choice")[sender]), jnp.int32)[:, None]
    chosen = router.count(choice[:, 0], 4).reshape(2, 2)
    return chosen, *exchange._send_slots(choice, chosen, BUFFERS)


def test_exchange_picture_shows_the_slots_of_two_senders():
    for sender in range(2):
        tokens = drawn("token ")[sender]
        order, _ = permutation_by(jnp.asarray(numbers(drawn("choice")[sender]), jnp.int32), 4)
        assert [tokens[i] for i in order] == drawn("sorted by expert")[sender]
        _, assignment_of_slot, slot_of_assignment = sent(sender)
        assert inside(assignment_of_slot, 5) == numbers(drawn("assignment of each slot")[sender], 5)
        assert inside(slot_of_assignment[:, 0], 6) == numbers(drawn("slot of each assignment")[sender], 6)
        assert [(*tokens, ".")[i] for i in inside(assignment_of_slot, 5)] == drawn("slots, shard 0 | shard 1")[sender]


def test_exchange_picture_shows_the_rows_of_the_receiver_and_how_many_did_not_fit():
    chosen = jnp.stack([sent(sender)[0][0] for sender in range(2)])  # of the experts on shard 0
    arriving = exchange._arriving(chosen, BUFFERS)
    assert "1 2 | 1 1" in exchange.__doc__ and arriving.tolist() == [[1, 2], [1, 1]]
    assert int(chosen.sum() - arriving.sum()) == 1, "e"
    received = drawn("shard 0 receives")[0]
    assert received == [token for sender in range(2) for token in drawn("slots, shard 0 | shard 1")[sender][:3]]
    slot_of_row, row_of_slot = exchange._rows_by_expert(arriving, jnp.zeros(2, jnp.int32), BUFFERS)
    assert inside(slot_of_row, 6) == numbers(drawn("slot of each row")[0], 6)
    assert inside(row_of_slot, 6) == numbers(drawn("row of each slot")[0], 6)
    assert [(*received, ".")[slot] for slot in inside(slot_of_row, 6)] == drawn("rows by expert")[0]


def test_capacity_picture_shows_what_two_stripes_of_a_sequence_leave_of_an_expert():
    lines = [line.split() for line in router.keep_first.__doc__.splitlines()]
    cells = {line[0]: line[1:] for line in lines if line[:1] and line[0] in ("choices", "ahead", "rank", "served")}
    stripes = np.array([cell == "x" for cell in cells["choices"]]).reshape(1, 2, 4)  # one sequence, two stripes
    choice = jnp.where(stripes, 0, 1)
    counts = jnp.sum(stripes, axis=2, dtype=jnp.int32)[..., None]
    order = jnp.arange(2, dtype=jnp.int32)
    ahead = router._ahead_in_sequence(counts[None], order[None], order)
    assert ahead[0, :, 0].tolist() == [int(cell) for cell in cells["ahead"][:2]]
    assert router._ahead_of_sequences(counts.sum(axis=1), ()).tolist() == [[0]]
    rank = jax.device_get(router._rank(choice, ahead, 1)).reshape(-1)
    assert [str(n) if s else "." for n, s in zip(rank, stripes.reshape(-1), strict=True)] == cells["rank"][:8]
    assert ["x" if s and n < 2 else "." for n, s in zip(rank, stripes.reshape(-1), strict=True)] == cells["served"][:8]
