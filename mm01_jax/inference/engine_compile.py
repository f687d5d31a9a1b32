"""How the engine's programs are made: traced by who asks, then lowered and compiled in one thread, maybe another.

jax lowers up to ten programs of a thread into one MLIR context (0.12). Compiling one, or looking it up in the compile
cache, runs passes in that context, and these load dialects into it, which no lock guards. A program that one thread
lowered and another compiled shared its context with what the first lowered next: the likeliest cause of a segmentation
fault seen once in three whole test suites. The stack of a thread that reads a program is none: 64 KiB suffice for
decode of `tiny`, 96 for its training step, and Linux gives 8 MiB.
"""

import concurrent.futures
from collections.abc import Callable

import jax


class Compiler:
    """Makes programs of functions on a mesh; count: how many. jit: as `jax.jit`."""

    def __init__(self, mesh: jax.sharding.Mesh, jit: Callable):
        self._mesh, self._jit, self.count = mesh, jit, 0

    def program(self, function, *arguments, donate: int | None = None) -> Callable:
        """A program of `function`, a partial whose keywords are static: jax keeps it for whoever asks for it again."""
        return self._compiled(self._traced(function, *arguments, donate=donate))

    def begin(self, pool: concurrent.futures.Executor, function, *arguments) -> concurrent.futures.Future:
        """As `program`, of one that takes the slots second; lowered and compiled by the pool."""
        return pool.submit(self._compiled, self._traced(function, *arguments, donate=1))

    def _traced(self, function, *arguments, donate: int | None):
        self.count += 1
        static, donated = tuple(function.keywords), () if donate is None else donate
        jitted = self._jit(function.func, static_argnames=static, donate_argnums=donated)
        return jitted.trace(*arguments, **function.keywords)

    def _compiled(self, traced):
        with jax.set_mesh(self._mesh):  # which is a thread's own
            return traced.lower().compile()
