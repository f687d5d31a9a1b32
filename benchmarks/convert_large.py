"""Conversion at the released widths: memory over one whole period on sparse files, speed on random bits beside a copy.

    python -m benchmarks.convert_large period --room=DIR     8 layers, 32 experts, 200,064 rows: 95.6 GB of zeros
    python -m benchmarks.convert_large speed --room=DIR      2 layers, 6 experts: 9.7 GB of random bfloat16

`period`: the source is sparse. Converted files are written in full, zeros and checksums alike; a thread beside the
conversion gives the blocks of zeros back to the disk (`fallocate --dig-holes`, which changes no byte), so 191 GB pass
through a disk that has not that much. The check for free disk is told that there is room. RssAnon is read from
/proc every 20 ms.

`speed`: source and target on one disk, every file synced before the clock stops; a plain copy of the same files beside.
"""

import dataclasses
import json
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time

import numpy as np

from benchmarks.results import Report, add_json, processor
from configs import text_01
from mm01_jax.config import ModelConfig
from mm01_jax.convert import table
from mm01_jax.convert.torch import released
from mm01_jax.convert.torch.dialects import DIALECTS
from mm01_jax.convert.torch.files import INDEX
from tests.command_line import Parser, one_of, whole

SHARD_BYTES = 4_900_000_000
# What is not as released; "tiny" says that it works, nothing else.
SHAPES = {"text_01": {}, "tiny": {"embed_dim": 64, "num_experts": 4, "expert_dim": 32, "vocab_size": 512}}
# Runs one command with room on the disk asserted, as `mm01-convert` would.
COMMAND = """
import shutil, sys
from mm01_jax.convert.__main__ import main
if sys.argv[1] == "assume-room":
    shutil.disk_usage = lambda path: type("Usage", (), {"free": 10**15})()
sys.exit(main(sys.argv[2:]))
"""


def model(**changes) -> ModelConfig:
    """Text-01 with fewer layers, experts or rows; every width as released."""
    return dataclasses.replace(text_01.get_config().model, **changes)


def write_source(directory: pathlib.Path, config: ModelConfig, fill) -> int:
    """A PyTorch directory whose shards `fill(file, nbytes)` fills behind their headers; bytes of all tensors."""
    directory.mkdir(parents=True)
    whole = dataclasses.replace(text_01.get_config(), model=config)
    plain = released.config_json(whole, DIALECTS["original"], "bfloat16", {})
    (directory / "config.json").write_text(json.dumps(plain))
    groups, size = [[]], 0
    for tensor in table.tensors(config):
        nbytes = 2 * table.num_elements(tensor)
        if size + nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += nbytes
    weight_map, total = {}, 0
    for i, group in enumerate(groups):
        name, header, at = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors", {}, 0
        for tensor in group:
            stop = at + 2 * table.num_elements(tensor)
            header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, stop]}
            weight_map[tensor.name], at = name, stop
        raw = json.dumps(header).encode()
        with open(directory / name, "wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            fill(file, at)
        total += at
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return total


def hole(file, nbytes: int) -> None:
    """Zeros that take no disk."""
    file.truncate(file.tell() + nbytes)


def random_bits(file, nbytes: int) -> None:
    """Random bytes, synced."""
    stream = np.random.Generator(np.random.SFC64(nbytes))
    for start in range(0, nbytes, 2**26):
        file.write(stream.bytes(min(2**26, nbytes - start)))
    file.flush()
    subprocess.run(["sync", file.name], check=True)


class Watch:
    """Runs a command, reading its memory, and gives blocks of zeros under a directory back to the disk."""

    def __init__(self, arguments: list[str], room: pathlib.Path, dig: bool):
        self.peak_anonymous = self.peak_disk = 0
        start, before = time.monotonic(), _children_seconds()
        self._process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.DEVNULL)
        digger = threading.Thread(target=self._dig, args=(room,))
        if dig:
            digger.start()
        while self._process.poll() is None:
            self._read_memory()
            time.sleep(0.02)
        self.seconds, self.processor_seconds = time.monotonic() - start, _children_seconds() - before
        if dig:
            digger.join()
        if self._process.returncode:
            raise SystemExit(f"{arguments[1]} ended with exit code {self._process.returncode}")

    def _read_memory(self) -> None:
        try:
            lines = pathlib.Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
        self.peak_anonymous = max(self.peak_anonymous, *found, 0)

    def _dig(self, room: pathlib.Path) -> None:
        while True:
            last = self._process.poll() is not None
            # A file under its own name is complete; one still being written must not be touched.
            for path in [p for p in room.rglob("*") if p.is_file() and not p.name.endswith(("__lock", ".tmp"))]:
                try:
                    if path.stat().st_blocks * 512 > 2**20:
                        subprocess.run(["fallocate", "--dig-holes", path], check=False, stderr=subprocess.DEVNULL)
                except OSError:  # renamed between the listing and the look
                    continue
            self.peak_disk = max(self.peak_disk, disk(room))
            if last:
                return
            time.sleep(0.5)


def _children_seconds() -> float:
    """Processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def disk(room: pathlib.Path) -> int:
    """Bytes on disk under a directory."""
    total = 0
    for path in room.rglob("*"):
        try:
            total += path.stat().st_blocks * 512 if path.is_file() else 0
        except OSError:
            continue
    return total


def period(room: pathlib.Path, report: Report, config: ModelConfig) -> None:
    """One whole period at the released widths, both ways."""
    total = write_source(room / "in", config, hole)
    elements = sum(map(table.num_elements, table.tensors(config)))
    print(f"{elements:,} parameters, {total:,} bytes, {len(table.tensors(config))} tensors", flush=True)
    for way, source, target in (("from-torch", "in", "ours"), ("to-torch", "ours", "out")):
        arguments = ["assume-room", way, f"--source={room / source}", f"--target={room / target}"]
        watch = Watch(arguments, room, dig=True)
        written = sum(p.stat().st_size for p in (room / target).rglob("*") if p.is_file())
        anonymous, on_disk = watch.peak_anonymous / 2**30, watch.peak_disk / 1e9
        report.add(f"period {way}: seconds", watch.seconds, "s", device=processor())
        report.add(f"period {way}: peak RssAnon", anonymous, "GiB", device=processor())
        report.add(f"period {way}: bytes written", written, "bytes", device=processor())
        report.add(f"period {way}: most disk in use", on_disk, "GB", device=processor())
        print(
            f"{way}: {watch.seconds:.0f} s, peak RssAnon {anonymous:.2f} GiB, {written:,} bytes of files written, "
            f"at most {on_disk:.1f} GB of disk in use",
            flush=True,
        )


def speed(room: pathlib.Path, report: Report, config: ModelConfig, repeats: int) -> None:
    """Random weights both ways, beside `cp` of the same files."""
    total = write_source(room / "in", config, random_bits)
    print(f"{total:,} bytes of random bfloat16, {len(table.tensors(config))} tensors", flush=True)
    for _ in range(repeats):
        start, before = time.monotonic(), _children_seconds()
        subprocess.run(["cp", "-r", "--reflink=never", room / "in", room / "copy"], check=True)
        subprocess.run(["sync", *(room / "copy").iterdir()], check=True)
        tell(report, "copy", total, time.monotonic() - start, _children_seconds() - before)
        shutil.rmtree(room / "copy")
        for way, source, target in (("from-torch", "in", "ours"), ("to-torch", "ours", "out")):
            arguments = ["-", way, f"--source={room / source}", f"--target={room / target}"]
            watch = Watch(arguments, room, dig=False)
            report.add(f"speed {way}: peak RssAnon", watch.peak_anonymous / 2**30, "GiB", device=processor())
            tell(report, way, total, watch.seconds, watch.processor_seconds)
        shutil.rmtree(room / "ours")
        shutil.rmtree(room / "out")


def tell(report: Report, way: str, total: int, seconds: float, processor_seconds: float) -> None:
    """One measured line, and its rows."""
    rate, each = total / seconds / 1e9, processor_seconds / total * 1e9
    report.add(f"speed {way}: seconds", seconds, "s", device=processor())
    report.add(f"speed {way}: rate", rate, "GB/s", device=processor())
    report.add(f"speed {way}: processor seconds", each, "s/GB", device=processor())
    print(f"{way}: {seconds:.1f} s, {rate:.2f} GB/s, {each:.2f} processor seconds a GB", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.convert_large", __doc__)
    parser.add_argument("what", type=one_of("measurement", ("period", "speed")), help="period or speed")
    parser.add_argument("--room", required=True, type=pathlib.Path, help="a directory to make and remove")
    parser.add_argument("--label", default="", help="what else is said of these rows, such as quiet")
    parser.add_argument("--repeats", type=whole(1), default=2, help="rounds of speed")
    parser.add_argument(
        "--shapes", type=one_of("shapes", SHAPES), default="text_01", help="text_01, or tiny for a trial"
    )
    add_json(parser)
    arguments = parser.parse_args(argv)
    if arguments.room.exists():
        parser.error(f"argument --room: {arguments.room} exists; allowed: a directory to make")
    report = Report(arguments.json, "benchmarks.convert_large", argv, label=arguments.label)
    changes = {"num_periods": 1} | SHAPES[arguments.shapes]
    try:
        if arguments.what == "period":
            period(arguments.room, report, model(**changes))
        else:
            changes |= {"period": ("lightning", "softmax"), "num_experts": 6}
            speed(arguments.room, report, model(**changes), arguments.repeats)
    finally:
        shutil.rmtree(arguments.room, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
