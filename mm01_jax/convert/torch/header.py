"""The header of one safetensors file, read and believed in nothing (docs/model.md B.4).

The format is 8 bytes of length, JSON, data. The library guards memory, not content: it loads duplicate names, and a
flipped bit in a name is another tensor. So the header is parsed here, strictly, before the library opens the file.
Cost: the header's own bytes, whatever the file.
"""

import hashlib
import math
import os
import pathlib
import struct
from typing import NamedTuple

from mm01_jax.checkpoint import FILES, CheckpointError
from mm01_jax.files import POINTER, UNFETCHED, quoted, shown

# Of all files of a directory: the 8,637 tensors of VL-01 take 1.4 MB; more is an attack on the parser.
MAX_HEADER_BYTES = 16_000_000
_MAX_DIMS = 16
DTYPES = {"BF16": "bfloat16", "F32": "float32", "F16": "float16", "F64": "float64", "I64": "int64", "I32": "int32"}
_BYTES = {"BF16": 2, "F32": 4, "F16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES |= {"U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}


class Entry(NamedTuple):
    """One tensor of a file: dtype as the format writes it (BF16, F32, ...), shape, where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """The tensors of a file by name, the SHA-256 of the header's bytes, and where in the file the data begin."""

    entries: dict[str, Entry]
    sha256: str
    data: int


def read(path: pathlib.Path, directory: pathlib.Path, before: int = 0) -> Header:
    """The header of a file of a directory, whose other files' headers have taken `before` bytes.

    Raises:
      CheckpointError: not a regular file, cut, longer than its header says, or a header that contradicts itself.
    """
    with FILES.open(path, root=directory) as file, FILES.errors(path):
        size, raw = os.fstat(file.fileno()).st_size, file.read(8)
        if len(raw) < 8:
            raise ValueError(f"{size} bytes are no safetensors file")
        if POINTER.startswith(raw):
            raise ValueError(UNFETCHED)
        length = struct.unpack("<Q", raw)[0]
        if length > (most := min(MAX_HEADER_BYTES - before, size - 8)):
            after = f" after {before} of the others" if before else ""
            raise ValueError(f"header of {length} bytes{after}; allowed here: at most {most}")
        body = file.read(length)
    entries = _parse(path, body)
    _check_layout(path, entries, size - 8 - length)
    return Header(entries, hashlib.sha256(raw + body).hexdigest(), 8 + length)


def _parse(path: pathlib.Path, raw: bytes) -> dict[str, Entry]:
    plain = FILES.parse(path, raw)
    metadata = plain.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is {shown(str(metadata)[:80])}; allowed: an object of texts")
    return {name: _entry(path, name, value) for name, value in plain.items()}


def _entry(path: pathlib.Path, name: str, value: object) -> Entry:
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: an entry has dtype, shape and data_offsets, got {shown(str(value)[:80])}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise CheckpointError(f"{where}: dtype {quoted(str(dtype)[:40])}; known are {', '.join(_BYTES)}")
    if not _whole_numbers(shape, _MAX_DIMS) or not _whole_numbers(offsets, 2) or len(offsets) != 2:
        got = f"shape {quoted(shape)} and data_offsets {quoted(offsets)}"
        allowed = f"at most {_MAX_DIMS} dims and two offsets, whole numbers >= 0 and < 2**63"
        raise CheckpointError(f"{where}: {got}; allowed: {allowed}")
    start, stop = offsets
    if stop - start != math.prod(shape) * _BYTES[dtype]:
        needs = math.prod(shape) * _BYTES[dtype]
        raise CheckpointError(f"{where}: {dtype} {shape} needs {needs} bytes, data_offsets give {stop - start}")
    return Entry(dtype, tuple(shape), start, stop)


def _whole_numbers(value: object, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(path: pathlib.Path, entries: dict[str, Entry], nbytes: int) -> None:
    """The tensors' bytes follow one another without gap or overlap and end with the file."""
    at, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != at:
            what = "overlaps" if entry.start < at else "leaves a gap after"
            raise CheckpointError(f"{path}: tensor {quoted(name)} at {entry.start} {what} {before}, which ends at {at}")
        at, before = entry.stop, quoted(name)
    if at != nbytes:
        what = "cut" if at > nbytes else "followed by bytes that belong to no tensor"
        raise CheckpointError(f"{path}: is {what}: tensors end at byte {at}, the data of the file at {nbytes}")
