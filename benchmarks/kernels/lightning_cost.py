"""Bytes and FLOPs of lightning attention, counted on paper (pallas_kernels/lightning_attention/README.md)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one call and the bytes of an element of q, k, v."""

    B: int
    S: int
    N: int
    H: int
    itemsize: int = 2

    @property
    def tensor_bytes(self) -> int:
        return self.B * self.S * self.N * self.H * self.itemsize

    @property
    def state_bytes(self) -> int:
        return self.B * self.N * self.H * self.H * 4


# Sequence tensors moved. The floor counts each tensor once: q, k, v, o; backward q, k, v, do, dq, dk, dv.
# Streaming backward: v, k, do in and dq out, then q, k, v, do in and dk, dv out.
FLOOR_TENSORS = {"forward": 4, "backward": 7}
STREAMED_TENSORS = {"forward": 4, "backward": 10}


def floor_bytes(shape: Shape, passes: tuple[str, ...]) -> int:
    """Least bytes of the given passes: each sequence tensor once. States are small, and a call may have none."""
    return sum(FLOOR_TENSORS[name] * shape.tensor_bytes for name in passes)


def streamed_bytes(shape: Shape, passes: tuple[str, ...]) -> int:
    """Bytes that the streaming passes move, states in and out included."""
    return sum(STREAMED_TENSORS[name] * shape.tensor_bytes + 2 * shape.state_bytes for name in passes)


def flops(shape: Shape, chunk: int, passes: tuple[str, ...]) -> int:
    """Multiplications and additions of the matmuls at a chunk length, the half above the diagonal included."""
    intra, inter = 2 * chunk * shape.H, 2 * shape.H * shape.H
    # forward: scores, values | read, write. dq is the same; dk and dv: 2 scores, 2 values | 2 reads, 1 write.
    per_token = {"forward": 2 * intra + 2 * inter, "backward": 6 * intra + 5 * inter}
    return shape.B * shape.S * shape.N * sum(per_token[name] for name in passes)


def step_bytes(shape: Shape) -> int:
    """Decode: the state in and out, q, k, v in, o out; S is 1."""
    return 2 * shape.state_bytes + 4 * shape.tensor_bytes


def step_flops(shape: Shape) -> int:
    """Decode: decay, outer product and its addition, and the read: five operations per element of the state."""
    return 5 * shape.B * shape.N * shape.H * shape.H
