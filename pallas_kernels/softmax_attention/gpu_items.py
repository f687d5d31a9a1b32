"""What a program of a Hopper kernel has to do: items, 128 tokens of one head each, and the blocks that these see.

A warpgroup has one half of an item's tokens, a strip, and its own `masking.Spans`: blocks that neither strip sees are
never read, one that only the other sees is passed by, and only those not all visible are masked.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.softmax_attention.gpu_blocks import HALF
from pallas_kernels.softmax_attention.masking import Spans, Work


class Span(NamedTuple):
    """`masking.Spans` of one strip, inside `begin .. stop`, the blocks of its tile."""

    begin: jax.Array
    first: jax.Array
    clear: jax.Array
    clear_end: jax.Array
    end: jax.Array
    stop: jax.Array

    @property
    def steps(self):
        return self.stop - self.begin

    def walk(self, step, carry, idle):
        """carry = step(block, carry, masked) over the blocks that it sees, in order; idle(block) for the others."""

        def pass_by(block, carry):
            idle(block)
            return carry

        masked, clear = (functools.partial(step, masked=x) for x in (True, False))
        for low, high, body in (
            (self.begin, self.first, pass_by),
            (self.first, self.clear, masked),
            (self.clear, self.clear_end, clear),
            (self.clear_end, self.end, masked),
            (self.end, self.stop, pass_by),
        ):
            carry = lax.fori_loop(low, high, body, carry)
        return carry


class PairSpan(NamedTuple):
    """The same in pairs of blocks, of which there is one at least. `half`: is only the first block of the last pair to
    be seen.
    """

    begin: jax.Array
    first: jax.Array
    clear: jax.Array
    clear_end: jax.Array
    half: jax.Array  # 0 or 1
    end: jax.Array
    stop: jax.Array

    @classmethod
    def of(cls, span: Span, passing: bool = False):
        """passing: pairs that only other strips see are passed by, as many as three strips have; else all hidden."""
        two, sees = jnp.int32(2), span.end > span.first
        begin = lax.div(span.begin, two)
        stop = jnp.maximum(lax.div(span.stop + 1, two), begin + 1)
        first, end = begin, stop
        if passing:
            first = jnp.where(sees, lax.div(span.first, two), begin)
            end = jnp.where(sees, lax.div(span.end + 1, two), begin)
        half = jnp.where(sees & (span.end == 2 * end - 1), jnp.int32(1), jnp.int32(0))
        clear = jnp.clip(lax.div(span.clear + 1, two), first, end - half)
        return cls(begin, first, clear, jnp.maximum(lax.div(span.clear_end, two), clear), half, end, stop)

    @property
    def steps(self):
        return self.stop - self.begin

    def walk(self, step, carry, idle):
        """carry = step(pair, carry, masked) over the pairs that it sees, in order, the half of the last with
        num_keys=HALF; idle(pair) for the others.
        """
        masked, clear = (functools.partial(step, masked=x) for x in (True, False))
        half, whole = functools.partial(masked, num_keys=HALF), self.end - self.half

        def pass_by(pair, carry):
            idle(pair)
            return carry

        for low, high, body in (
            (self.begin, self.first, pass_by),
            (self.first, self.clear, masked),
            (self.clear, self.clear_end, clear),
            (self.clear_end, whole, masked),
            (whole, self.end, half),
            (self.end, self.stop, pass_by),
        ):
            if low is not high:  # as they are where no pair is passed by
                carry = lax.fori_loop(low, high, body, carry)
        return carry


class Item(NamedTuple):
    """128 tokens of one head, and where in a program's work they stand."""

    b: jax.Array
    head: jax.Array
    t: jax.Array  # the tile
    strip: jax.Array  # which of its strips is the warpgroup's
    span: Span | PairSpan  # of the strip
    number: jax.Array  # of this program's items
    done: jax.Array  # blocks of the items before
    strips: int  # of a tile

    def tokens(self, strip, length: int | None = None):
        """Of an array so long, if tiles may go beyond it: there its last ones, which then see nothing."""
        index = self.t * self.strips + strip
        index = jnp.minimum(index, length // HALF - 1) if length else index
        return pl.ds(index * HALF, HALF)

    def is_in(self, length: int):
        """Whether the warpgroup's strip is in an array so long; None if all are."""
        return None if length % (self.strips * HALF) == 0 else self.t * self.strips + self.strip < length // HALF


class _Read(NamedTuple):
    """What the memory says of an item, as it lies there."""

    place: jax.Array
    begin: jax.Array
    stop: jax.Array
    strips: tuple[Spans, ...]


def each_item(work: Work, heads: int, items: int, programs: int, warpgroup, body, of_span=lambda span: span, repeats=1):
    """body(item) for every item of this program, whose ring takes repeats * item.span.steps steps for each.

    Items beside each other are heads of the same tokens. They come in order of their length, so the programs take them
    there and back: the first of one round is the last of the next, and all end at about the same time. What an item is
    stands in two places, one behind the other: either is read an item ahead, and nothing made of it before its turn,
    when it would be waited for.
    """
    program, whole_rounds = lax.axis_index("program"), items // programs
    backwards = programs - 1 - program
    place_in_last = backwards if whole_rounds % 2 else program
    count = whole_rounds + jnp.where(place_in_last < items % programs, 1, 0)
    tiles, strips = jnp.int32(work.begin.shape[1]), len(work.strips)

    def index_of(number):
        index = number * programs + jnp.where(lax.rem(number, jnp.int32(2)) == 1, backwards, program)
        return jnp.minimum(index, items - 1)

    # Under `shard_map` a load has the array's varying axes in its type, arithmetic in a kernel does not keep them, and
    # a loop's bounds have to begin with the type they end with.
    def read_place(number):
        return work.order[lax.div(index_of(number), jnp.int32(heads))] + jnp.int32(0)

    def read(place):
        b, t = lax.div(place, tiles), lax.rem(place, tiles)
        begin, stop, strips = jax.tree.map(lambda x: x[b, t] + jnp.int32(0), (work.begin, work.stop, work.strips))
        return _Read(place, begin, stop, strips)

    def item_of(number, done, known: _Read) -> Item:
        strip = lax.rem(warpgroup + number, jnp.int32(strips))  # the last sees more; so each has it in its turn
        inside = known.strips[0]
        for i in range(1, strips):
            inside = [jnp.where(strip == i, x, y) for x, y in zip(known.strips[i], inside, strict=True)]
        span = of_span(Span(known.begin, *inside, known.stop))
        b, t = lax.div(known.place, tiles), lax.rem(known.place, tiles)
        return Item(b, lax.rem(index_of(number), jnp.int32(heads)), t, strip, span, number, done, strips)

    def one(number, carry):
        done, known, place = carry
        following, after = read(place), read_place(number + 2)
        item = item_of(number, done, known)
        body(item)
        return done + repeats * item.span.steps, following, after

    first = read(read_place(jnp.int32(0)))
    lax.fori_loop(0, count, one, (jnp.int32(0), first, read_place(jnp.int32(1))))
