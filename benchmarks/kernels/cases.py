"""Every shape that the kernels are measured at, by operation and name. bfloat16 all."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Lightning:
    """Slopes of the first layer. `documents` > 0 packs that many, uneven; `step` is one decode step of B rows."""

    name: str
    B: int
    S: int
    N: int
    H: int = 128
    documents: int = 0
    peers: bool = True
    step: bool = False

    @property
    def sizes(self) -> str:
        """B, S, N, H."""
        return f"{self.B}, {self.S}, {self.N}, {self.H}" + (f", {self.documents} documents" if self.documents else "")


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Rows of `documents` documents, equal ones or `uneven`."""

    name: str
    B: int
    S: int
    N: int
    K: int
    H: int
    documents: int = 1
    uneven: bool = False

    @property
    def sizes(self) -> str:
        """Rows x tokens, query heads / key heads x head dim, documents in a row."""
        return f"{self.B} x {self.S}, {self.N} / {self.K} x {self.H}, {self.documents}{' uneven' * self.uneven}"


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Experts chosen at random; buffers of XLA's padded form hold twice the balanced load."""

    name: str
    R: int
    E: int
    D: int
    F: int
    multiple: int = 128  # what each expert's rows are filled up to

    @property
    def sizes(self) -> str:
        """Rows, experts, width in to width out."""
        return f"{self.R}, {self.E}, {self.D} to {self.F}"


@dataclasses.dataclass(frozen=True)
class Rows:
    name: str
    R: int
    W: int

    @property
    def sizes(self) -> str:
        """Rows, their width."""
        return f"{self.R}, {self.W}"


_LIGHTNING = [
    Lightning("1x32768x64", 1, 32768, 64),
    Lightning("4x8192x64", 4, 8192, 64),
    Lightning("1x8192x64", 1, 8192, 64),
    Lightning("1x131072x16", 1, 131072, 16),
    Lightning("8x2048x16", 8, 2048, 16),
    Lightning("packed", 1, 32768, 64, documents=64, peers=False),
    Lightning("1x32768x8", 1, 32768, 8),
    Lightning("decode1", 1, 1, 64, step=True),
    Lightning("decode16", 16, 1, 64, step=True),
    Lightning("decode128", 128, 1, 64, step=True),
    Lightning("1x1048576x8", 1, 2**20, 8, peers=False),
    Lightning("1x1048576x24", 1, 2**20, 24, peers=False),  # more than 2^31 elements in a tensor
    Lightning("head_dim64", 1, 8192, 64, H=64),
    Lightning("tiny", 2, 300, 3, H=64, documents=3, peers=False),
    Lightning("tiny_decode", 3, 1, 4, H=64, peers=False, step=True),
]
_SOFTMAX = [
    Softmax("bench_1b", 4, 8192, 8, 1, 128),  # configs/bench_1b.py
    Softmax("bench_1b_packed", 4, 8192, 8, 1, 128, documents=3),
    Softmax("bench_1b_packed16", 4, 8192, 8, 1, 128, documents=16),
    Softmax("bench_1b_uneven16", 4, 8192, 8, 1, 128, documents=16, uneven=True),
    Softmax("text_01", 1, 8192, 64, 8, 128),  # the released model's heads
    Softmax("text_01_packed16", 1, 8192, 64, 8, 128, documents=16),
    Softmax("small", 16, 2048, 16, 4, 64),  # configs/small.py
    Softmax("tiny", 2, 64, 4, 2, 64, documents=2),
]
_GROUPED = [
    Grouped("bench_1b", 65536, 32, 768, 768),
    Grouped("text_01", 16384, 8, 6144, 9216),  # the released model's experts over 4 expert shards
    Grouped("tiny", 256, 4, 64, 32, multiple=8),
]
_ROWS = [
    Rows("bench_1b", 32768, 1024),  # configs/bench_1b.py
    Rows("text_01", 8192, 8192),  # the released model's heads
    Rows("tiny", 64, 256),
]
CASES = {
    "lightning_attention": {case.name: case for case in _LIGHTNING},
    "softmax_attention": {case.name: case for case in _SOFTMAX},
    "grouped_matmul": {case.name: case for case in _GROUPED},
    "expert_ffn": {case.name: case for case in _GROUPED},
    "gated_norm": {case.name: case for case in _ROWS},
}


def names(operations: list[str]) -> list[str]:
    """Names of the shapes of these operations, each once."""
    return list(dict.fromkeys(name for operation in operations for name in CASES[operation]))


def select(operation: str, wanted: list[str] | None) -> list:
    """The cases of one operation by name; None is all but the tiny ones, which are for machines without speed."""
    cases = CASES[operation]
    if wanted is None:
        return [case for name, case in cases.items() if not name.startswith("tiny")]
    return [cases[name] for name in wanted if name in cases]
