"""Ways to spoil one part of a PyTorch directory: a byte, a header, an index, config.json, tensors, a shard's place."""

import hashlib
import json
import pathlib
import re
import struct
from collections.abc import Callable

from safetensors.numpy import load_file, save_file

SHARD, OTHER = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def bytes_of(directory: pathlib.Path, name: str = SHARD) -> bytes:
    return (directory / name).read_bytes()


def edit_bytes(change: Callable[[bytes], bytes]):
    def spoil(directory):
        (directory / SHARD).write_bytes(change(bytes_of(directory)))

    return spoil


def header_of(raw: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(text: str | bytes, data: bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw + data


def edit_header(change: Callable[[dict], None]):
    """Changes the parsed header of the first shard; `__metadata__` is left out of reach."""

    def spoil(raw: bytes) -> bytes:
        header, data = header_of(raw)
        metadata = header.pop("__metadata__", None)
        change(header)
        return with_header(json.dumps(header | ({"__metadata__": metadata} if metadata else {})), data)

    return edit_bytes(spoil)


def first(header: dict) -> dict:
    return header[min(header, key=lambda name: header[name]["data_offsets"])]


def edit_json(name: str, change: Callable[[dict], None]):
    def spoil(directory):
        plain = json.loads((directory / name).read_text())
        change(plain)
        (directory / name).write_text(json.dumps(plain))

    return spoil


def edit_config(**fields):
    return edit_json("config.json", lambda plain: plain.update(fields))


def drop_field(name: str):
    return edit_json("config.json", lambda plain: plain.pop(name))


def shard_name(name: object):
    def change(plain):
        plain["weight_map"][next(iter(plain["weight_map"]))] = name

    return edit_json(INDEX, change)


def edit_tensors(change: Callable[[dict], None]):
    """Changes the tensors of the shard that has the final norm, and writes it anew with a matching index."""

    def spoil(directory):
        for path in sorted(directory.glob("*.safetensors")):
            found = load_file(path)
            if NORM in found:
                change(found)
                save_file(found, path)
                index = json.loads((directory / INDEX).read_text())
                others = {n: shard for n, shard in index["weight_map"].items() if shard != path.name}
                index["weight_map"] = others | dict.fromkeys(found, path.name)
                (directory / INDEX).write_text(json.dumps(index))

    return spoil


def outside(directory: pathlib.Path) -> pathlib.Path:
    """A shard beside the directory, whole and sound: reading it would go unnoticed."""
    target = directory.parent / "outside.safetensors"
    target.write_bytes(bytes_of(directory))
    return target


def replace_by(make: Callable[[pathlib.Path, pathlib.Path], None]):
    def spoil(directory):
        target = outside(directory)
        (directory / SHARD).unlink()
        make(directory / SHARD, target)

    return spoil


def only_pickles(directory):
    for path in directory.glob("*.safetensors"):
        path.unlink()
    (directory / INDEX).unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def duplicate_key(raw: bytes) -> bytes:
    header, data = header_of(raw)
    text = json.dumps(header)
    name = next(name for name in header if name != "__metadata__")
    return with_header(f'{{"{name}": {json.dumps(header[name])}, {text[1:]}', data)


def overlap(header):
    one, two, *_ = sorted(header.values(), key=lambda entry: entry["data_offsets"])
    size = two["data_offsets"][1] - two["data_offsets"][0]
    two["data_offsets"] = [one["data_offsets"][1] - 2, one["data_offsets"][1] - 2 + size]


def negative(header):
    entry = first(header)
    entry["data_offsets"] = [-2, entry["data_offsets"][1] - 2]


def flipped_in_name(raw: bytes) -> bytes:
    at = raw.index(b"layernorm")
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def swap_shapes(header):
    entry = next(e for e in header.values() if len(e["shape"]) == 2 and e["shape"][0] != e["shape"][1])
    entry["shape"] = entry["shape"][::-1]


def set_value(value: float):
    def change(found):
        found[NORM] = found[NORM].copy()
        found[NORM][3] = value

    return edit_tensors(change)


def rename(old: str, new: str):
    def change(found):
        found[new] = found.pop(old)

    return edit_tensors(change)


def truncated(n: int):
    return edit_bytes(lambda raw: raw[:n])


def swap_two(directory: pathlib.Path) -> None:
    """Two experts' matrices under each other's names, headers and index untouched."""
    for path in sorted(directory.glob("*.safetensors")):
        found = load_file(path)
        names = [name for name in found if re.search(r"layers\.0\.block_sparse_moe\.experts\.\d\.w1", name)]
        if len(names) > 1:
            found[names[0]], found[names[1]] = found[names[1]], found[names[0]]
            save_file(found, path)
            return
    raise AssertionError("no shard holds two experts")


def write_sha256s(directory: pathlib.Path) -> None:
    found = {name: w for path in directory.glob("*.safetensors") for name, w in load_file(path).items()}
    sha256s = {name: hashlib.sha256(w.tobytes()).hexdigest() for name, w in found.items()}
    (directory / "sha256.json").write_text(json.dumps({"tensors": sha256s}))
