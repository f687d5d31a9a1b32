"""The ways: a mesh of two GPUs, and what is changed of how its messages are made. Of NCCL's channels fewer were tried,
with smaller grids of our kernels beside: messages took two to four times as long (benchmarks/mesh.md)."""

import dataclasses
from typing import Literal

ROWS = {"act_seq": (), "act_batch": ("tensor",)}
TIMES = {0.5: "half the rows", 2: "twice the rows"}


@dataclasses.dataclass(frozen=True)
class Way:
    """axis: of the mesh, over two GPUs; None: one GPU.

    copies: `compute.collectives` is "copies"; sums over all shards, and what XLA makes of shardings (between
    mixers, over `tensor`), stay NCCL's. gathered: all tokens to every expert shard instead of an exchange of rows.
    rows: over `tensor`, rows are cut between mixers instead of positions. times: as many rows as one GPU has; half of
    them on one GPU is what two would take if messages cost nothing. beside: most messages that run beside each other.
    """

    axis: Literal["data", "sequence", "expert", "tensor"] | None
    copies: bool = False
    gathered: bool = False
    rows: bool = False
    times: float = 1
    beside: int = 1

    @property
    def subject(self) -> str:
        """What its rows of results are said of."""
        parts = [f"{self.axis} 2" if self.axis else "one GPU"]
        parts += ["all tokens to every shard"] * self.gathered + ["rows cut between mixers"] * self.rows
        parts += ["all by copies"] * self.copies
        parts += [f"{self.beside} at once"] * (self.beside != 1)
        return ", ".join(parts + [TIMES[self.times]] if self.times in TIMES else parts)

    @property
    def plain(self) -> bool:
        """As a run would have it: compiled before the others, which take over how its kernels are tuned."""
        return self == Way(self.axis)

    def config(self, shapes: str):
        from benchmarks import mesh

        config = mesh.configured({self.axis: 2} if self.axis else {}, shapes=shapes, times=self.times)
        compute = dataclasses.replace(config.compute, remat="none")  # what fits more must not change the program
        compute = dataclasses.replace(compute, exchange="gathered") if self.gathered else compute
        compute = dataclasses.replace(compute, collectives="copies") if self.copies else compute
        rules = dataclasses.replace(config.mesh.rules, **ROWS) if self.rows else config.mesh.rules
        return dataclasses.replace(config, compute=compute, mesh=dataclasses.replace(config.mesh, rules=rules))

    def options(self, platform: str) -> dict[str, str | bool | int]:
        """Of the compiler."""
        from mm01_jax.parallel.overlap import compiler_options

        options = compiler_options(platform, "copies" if self.copies else "auto")
        if platform == "gpu" and self.beside > 1:
            options |= {"xla_gpu_experimental_parallel_collective_overlap_limit": self.beside}
        return options


# The plain ones, then in the order of what they would tell.
WAYS = {
    "one": Way(None),
    "one-half": Way(None, times=0.5),
    "data": Way("data"),
    "sequence": Way("sequence"),
    "expert": Way("expert"),
    "tensor": Way("tensor"),
    "data-permuted": Way("data", copies=True),
    "sequence-permuted": Way("sequence", copies=True),
    "expert-permuted": Way("expert", copies=True),
    "expert-gathered-permuted": Way("expert", copies=True, gathered=True),
    "tensor-permuted": Way("tensor", copies=True),
    "tensor-rows-permuted": Way("tensor", copies=True, rows=True),
    "tensor-rows-gathered-permuted": Way("tensor", copies=True, gathered=True, rows=True),
    "expert-gathered": Way("expert", gathered=True),
    "tensor-rows": Way("tensor", rows=True),
    "data-twice-permuted": Way("data", copies=True, times=2),
    "sequence-twice-permuted": Way("sequence", copies=True, times=2),
    "expert-twice-gathered-permuted": Way("expert", copies=True, gathered=True, times=2),
    "data-permuted-4": Way("data", copies=True, beside=4),
    "sequence-permuted-4": Way("sequence", copies=True, beside=4),
    "expert-gathered-permuted-4": Way("expert", copies=True, gathered=True, beside=4),
    "tensor-rows-gathered-permuted-4": Way("tensor", copies=True, gathered=True, rows=True, beside=4),
}
