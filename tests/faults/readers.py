"""The five things that others make and we read, as sound ones of the smallest size, and what reads each of them.

A reader is a function of a path that runs in a forked process (`forked.Server`) and returns an exit code.
"""

import atexit
import functools
import json
import os
import pathlib
import shutil
import tempfile

from tests.faults.forked import Server

PROMPT = "the tale of two cities, by 1859 é"


@functools.cache
def server() -> Server:
    """One for all kinds of a process; it ends with it."""
    modules = ("mm01_jax.loading", "mm01_jax.train.loop", "mm01_jax.convert.__main__", "mm01_jax.data.dataset")
    return Server(
        *modules, "mm01_jax.convert.from_torch", "tests.train.cheap_run", "tests.convert.samples", "tokenizers"
    )


@functools.cache
def sound(reader: str) -> pathlib.Path:
    """A sound directory for a reader, made once a process."""
    room = pathlib.Path(tempfile.mkdtemp(prefix=f"sound-{reader}-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    (room / "in").mkdir()
    made = server().call(f"tests.faults.readers:make_{reader}", str(room / "in"), room=room)
    if made.code:
        raise RuntimeError(f"{reader}: {made.complained}")
    return room / "in"


# What makes a sound one.


def _cheap() -> None:
    """Runs whose step costs nothing; the process ends with it."""
    from mm01_jax.train import loop
    from tests.train import cheap_run

    loop.step.train_step, loop.scoring.score = cheap_run.cheap_step, cheap_run.cheap_score
    loop.report.end = lambda *_: None  # its pictures cost more than all the rest


def _config(text: pathlib.Path | str, steps: int):
    from tests import small

    return small.config(text, train__steps=steps, train__eval_every=100, train__keep_checkpoints=2, data__held_out=0.2)


def make_run(path: str) -> None:
    from mm01_jax.train import loop
    from tests import small

    _cheap()
    # A resumed run's data lie where they lay: beside the sound run, whoever copies it.
    text = small.write_text(pathlib.Path(path) / "text")
    loop.run(_config(text, 4), f"{path}/run", log=lambda line: None)
    (pathlib.Path(path) / "source").write_text(str(text))


def make_step(path: str) -> None:
    make_run(path)
    steps = pathlib.Path(path) / "run" / "checkpoints"
    (steps / "00000004").rename(pathlib.Path(path) / "step")
    shutil.rmtree(pathlib.Path(path) / "run")
    shutil.rmtree(pathlib.Path(path) / "text")
    (pathlib.Path(path) / "source").unlink()


def make_torch(path: str) -> None:
    from tests.convert import samples

    samples.make(pathlib.Path(path) / "torch")
    make_tokenizer(f"{path}/torch")


def make_data(path: str) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = pathlib.Path(path) / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("def f(x):\n    return x\n" * 50)
    (folder / "more" / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"line {i}", "id": i}) + "\n" for i in range(40))
    )
    (folder / "more" / "d.txt").write_text("é" * 300)
    writer = ArrayRecordWriter(str(folder / "c.arrayrecord"), "group_size:1")
    for i in range(20):
        writer.write(f"record {i}".encode())
    writer.close()


def make_tokens(path: str) -> None:
    """Two tokenizations of a text in folders of many shards, and what the first one's rows are."""
    from tests.data.text_folder import tokenized, write_texts

    room = pathlib.Path(path)
    for name in ("tokens", "others"):
        source = write_texts(room / "texts", 12 if name == "tokens" else 13)
        tokenized(source, "bytes", room / name, shard_bytes=400)
        shutil.rmtree(source)
    (room / "source").write_text(_rows_of(room / "tokens"))


def make_texts(path: str) -> None:
    """A file of each kind that is unpacked, and what the documents of each are."""
    import gzip

    import pyarrow.parquet
    import zstandard

    room = pathlib.Path(path)
    texts = [f"a tale of {i} cities " * (i % 9 + 1) for i in range(60)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (room / "texts").mkdir()
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, room / "texts" / "a.parquet", row_group_size=20, write_page_checksum=True)
    (room / "texts" / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (room / "texts" / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(lines))
    (room / "source").write_text(_rows_of(room / "texts" / "a.parquet"))


def _rows_of(source: pathlib.Path) -> str:
    """The digest of an epoch's rows."""
    import hashlib

    from mm01_jax.config import DataConfig
    from mm01_jax.data.dataset import open_dataset

    rows = open_dataset(DataConfig(source=str(source), held_out=0.0), 64, 320, log=print).train
    sha = hashlib.sha256()
    for row in range(-(-rows.tokens_per_epoch // 64)):
        sha.update(rows.row(row)["tokens"].tobytes())
    return sha.hexdigest()


def make_tokenizer(path: str) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROMPT] * 3, trainer)
    tokenizer.save(f"{path}/tokenizer.json")


# What reads one, as a command would.


def run(path: str) -> int:
    """A run is gone on with."""
    from mm01_jax import command
    from mm01_jax.train import loop

    _cheap()
    config = _config((pathlib.Path(path) / "source").read_text(), 6)
    return command.run(lambda _: loop.run(config, f"{path}/run", log=print), [], name="mm01-train")


def step(path: str) -> int:
    """A step is looked at, then every chunk of it is read and verified."""
    from mm01_jax.convert.__main__ import main

    return main(["inspect", f"--source={path}/step"]) or main(["check", f"--source={path}/step"])


def torch(path: str) -> int:
    """A PyTorch directory is converted."""
    from mm01_jax.convert.__main__ import main

    out = pathlib.Path(path).parent / "out"
    out.mkdir(exist_ok=True)
    return main(["from-torch", f"--source={path}/torch", f"--target={out / 'ours'}", "--check-finite"])


def data(path: str) -> int:
    """A folder of text is opened, packed and read."""
    from mm01_jax import command
    from mm01_jax.config import DataConfig
    from mm01_jax.data.dataset import open_dataset

    def read(argv) -> None:
        del argv
        dataset = open_dataset(DataConfig(source=f"{path}/data", held_out=0.0), 64, 320, log=print)
        print(dataset.describe())
        for row in range(20):
            dataset.train.row(row)

    return command.run(read, [], name="mm01-train")


def tokens(path: str) -> int:
    """A folder of tokens is opened and read for an epoch; 1 where it is taken and gives other rows."""
    return _as_before([pathlib.Path(path) / "tokens"], pathlib.Path(path) / "source")


def texts(path: str) -> int:
    """Files that are unpacked are read, each alone; 1 where one is taken and gives other rows."""
    return _as_before(sorted((pathlib.Path(path) / "texts").glob("*")), pathlib.Path(path) / "source")


def _as_before(sources: list[pathlib.Path], kept: pathlib.Path) -> int:
    from mm01_jax import command

    found: list[str] = []
    code = command.run(lambda _: found.extend(map(_rows_of, sources)), [], name="mm01-train")
    return code or int(any(digest != kept.read_text() for digest in found))


def tokenizer(path: str) -> int:
    """A tokenizer is opened, encodes a text and decodes it."""
    from mm01_jax import command
    from mm01_jax.data.tokenizer import open_tokenizer

    def read(argv) -> None:
        del argv
        words = open_tokenizer(os.path.join(path, "tokenizer.json"))
        for text in (PROMPT, "a" * 3000, " " * 3000, "1" * 300, "\n\n\t" * 100, PROMPT * 20):
            words.decode(words.encode(text))

    return command.run(read, [], name="mm01-generate")
