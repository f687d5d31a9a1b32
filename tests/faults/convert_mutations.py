"""Random damage to a PyTorch directory of several shards: each takes the directory and a random stream."""

import json
import pathlib
import random
import shutil

from tests.faults import convert_spoil as spoil


def shard_of(directory: pathlib.Path, stream: random.Random) -> pathlib.Path:
    return stream.choice(sorted(directory.glob("*.safetensors")))


def flip(path: pathlib.Path, start: int, stop: int, stream: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[stream.randrange(start, stop)] ^= 1 << stream.randrange(8)
    path.write_bytes(raw)


def header_stop(path: pathlib.Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def flip_length(directory, stream):
    flip(shard_of(directory, stream), 0, 8, stream)


def flip_header(directory, stream):
    path = shard_of(directory, stream)
    flip(path, 8, header_stop(path), stream)


def flip_data(directory, stream):
    path = shard_of(directory, stream)
    flip(path, header_stop(path), path.stat().st_size, stream)


def flip_small_file(directory, stream):
    path = directory / stream.choice(["config.json", spoil.INDEX])
    flip(path, 0, path.stat().st_size, stream)


def truncate(directory, stream):
    path = shard_of(directory, stream)
    path.write_bytes(path.read_bytes()[: stream.randrange(path.stat().st_size)])


def append(directory, stream):
    path = shard_of(directory, stream)
    path.write_bytes(path.read_bytes() + stream.randbytes(stream.randrange(1, 64)))


def change_header(directory, stream, change):
    path = shard_of(directory, stream)
    header, data = spoil.header_of(path.read_bytes())
    names = [name for name in header if name != "__metadata__"]
    path.write_bytes(spoil.with_header(change(header, names), data))


def duplicate(directory, stream):
    def change(header, names):
        return f'{{"{stream.choice(names)}": {json.dumps(header[names[0]])}, {json.dumps(header)[1:]}'

    change_header(directory, stream, change)


def other_dtype(directory, stream):
    def change(header, names):
        header[stream.choice(names)]["dtype"] = stream.choice(["F16", "I16", "U16", "F32", "I64"])
        return json.dumps(header)

    change_header(directory, stream, change)


def transpose(directory, stream):
    def change(header, names):
        name = stream.choice([n for n in names if len(set(header[n]["shape"])) > 1])
        header[name]["shape"].reverse()
        return json.dumps(header)

    change_header(directory, stream, change)


def swap_names(directory, stream):
    def change(header, names):
        one, two = stream.sample(names, 2)
        header[one], header[two] = header[two], header[one]
        return json.dumps(header)

    change_header(directory, stream, change)


def lose_shard(directory, stream):
    shard_of(directory, stream).unlink()


def gain_shard(directory, stream):
    shutil.copy(shard_of(directory, stream), directory / f"model-{stream.randrange(10**5):05d}.safetensors")


def misplace(directory, stream):
    index = json.loads((directory / spoil.INDEX).read_text())
    name = stream.choice(sorted(index["weight_map"]))
    others = sorted(set(index["weight_map"].values()) - {index["weight_map"][name]})
    index["weight_map"][name] = stream.choice(others)
    (directory / spoil.INDEX).write_text(json.dumps(index))


MUTATIONS = (flip_length, flip_header, flip_data, flip_small_file, truncate, append, duplicate, other_dtype, transpose)
MUTATIONS += (swap_names, lose_shard, gain_shard, misplace)
