"""How the engine's programs are made: traced by who asks, lowered and compiled in one thread, a pool's on accelerators.

jax lowers up to ten programs of a thread into one MLIR context (0.12). Compiling one, or looking it up in the compile
cache, runs passes in that context, and these load dialects into it, which no lock guards. A program that one thread
lowered and another compiled shared its context with what the first lowered next, so none does. The stack of a thread
that reads a program is no limit: 64 KiB suffice for decode of `tiny`, 96 for its training step; Linux gives 8 MiB.

In a command programs are kept as they were traced (`kept_programs.py`).
"""

import concurrent.futures
import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mm01_jax import kept_programs
from pallas_kernels import dispatch


class _Now(concurrent.futures.Executor):
    """Whatever is submitted is done before the next line."""

    def submit(self, function, /, *arguments, **keywords) -> concurrent.futures.Future:
        done = concurrent.futures.Future()
        done.set_result(function(*arguments, **keywords))
        return done


@contextlib.contextmanager
def threads(count: int) -> Iterator[concurrent.futures.Executor]:
    """A pool for `Compiler.begin`; on a CPU the thread that asks is all of it.

    There a start gains nothing (the compiler wants the same cores), and a few of many whole test suites ended in a
    segmentation fault while an engine started. Its cause is not known; where a stack was seen, the pool was at work.

    Python's collector waits for the pool's end: it runs in whichever thread is at hand, and frees what another has left
    in a context of MLIR that is in use. One of those faults was inside of a collection, a later one came without any.
    """
    if dispatch.platform() == "cpu":
        yield _Now()
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        if collects:
            gc.enable()


class Compiler:
    """Makes programs of functions on a mesh; count: how many. jit: as `jax.jit`. kept: where traced ones lie."""

    def __init__(self, mesh: jax.sharding.Mesh, jit: Callable, kept: kept_programs.Kept | None = None):
        self._mesh, self._jit, self._kept, self.count = mesh, jit, kept, 0

    def program(self, function: functools.partial, *arguments, donate: int | None = None, like: Any = None) -> Callable:
        """A program of `function`, whose keywords are static: jax keeps it for whoever asks for it again.

        Args:
          like: of a program that is worth keeping, a tree with the structure of what it returns.
        """
        return self._compiled(self._begun(function, arguments, donate, like))

    def begin(self, pool: concurrent.futures.Executor, function, *arguments, like: Any) -> concurrent.futures.Future:
        """As `program`, of one that takes the slots second; lowered and compiled by the pool."""
        return pool.submit(self._compiled, self._begun(function, arguments, 1, like))

    def _begun(self, function: functools.partial, arguments: tuple, donate: int | None, like: Any) -> Callable:
        """What is left to do for a program, once it is traced."""
        self.count += 1
        donated = () if donate is None else donate
        jitted = self._jit(function.func, static_argnames=tuple(function.keywords), donate_argnums=donated)
        trace = functools.partial(jitted.trace, *arguments, **function.keywords)
        if self._kept is None or like is None:
            traced = trace()
            return lambda: traced.lower().compile()
        name, results = function.func.__name__, jax.tree.structure(like)
        described = f"{function.func.__module__} {sorted(function.keywords.items())!r} {donate}"
        jit = functools.partial(self._jit, donate_argnums=donated)
        try:
            kept = self._kept.traced(function, arguments, results, described, name=name)
        except Exception as error:
            return functools.partial(_anew, trace, name, error)

        def compiled():
            try:
                return kept_programs.compiled(kept, arguments, results, name=name, jit=jit)
            except Exception as error:
                return _anew(trace, name, error)

        return compiled

    def _compiled(self, begun: Callable):
        with jax.set_mesh(self._mesh):  # which is a thread's own
            return begun()


def _anew(trace: Callable, name: str, error: Exception):
    """A program all the same: no start fails for what is kept. What is wrong with the program itself rises here."""
    program = trace().lower().compile()
    print(f"the program {name} is not kept: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    return program
