"""A folder with documents of every kind, a byte-level BPE for them, and its tokens: what tests of tokens begin with."""

import functools
import json
import pathlib

import tokenizers
from array_record.python.array_record_module import ArrayRecordWriter

from mm01_jax.data.tokenize import manifest, plan, work
from mm01_jax.data.tokenize.plan import Asked

SHARD_BYTES = 1500
VOCABULARY = 300


def write_texts(folder: pathlib.Path, count: int = 60) -> pathlib.Path:
    """`count` documents in each of three kinds of files; a line is skipped where one bad record is allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"a tale of {i} cities, by {i * i} é\n" * (i % 7 + 1) for i in range(count)]
    for i, text in enumerate(texts[:5]):
        (folder / f"b{i}.txt").write_text(text)
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": f"line {i} {t}"}) + "\n" for i, t in enumerate(texts)))
    writer = ArrayRecordWriter(str(folder / "a.arrayrecord"), "group_size:1")
    for text in texts:
        writer.write(f"record {text}".encode())
    writer.close()
    return folder


@functools.cache
def bpe() -> str:
    """tokenizer.json of a small vocabulary, as text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["a tale of two cities, line after line"] * 5, trainer)
    return made.to_str()


def write_tokenizer(folder: pathlib.Path) -> str:
    """The path of `bpe` in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(bpe())
    return str(folder / "tokenizer.json")


def tokenized(source, tokenizer: str, out, order=list, **asked) -> plan.Plan:
    """Makes a whole folder of tokens in this process, shards in any order."""
    made = plan.make(Asked(str(source), tokenizer, str(out), **({"shard_bytes": SHARD_BYTES} | asked)))
    plan.keep(made)
    for number in order(range(len(made.shards))):
        work.settle(made, number)
    manifest.finish(made)
    return made


def contents(folder) -> dict[str, bytes]:
    """Every file that is not hidden, by its name."""
    return {p.name: p.read_bytes() for p in sorted(pathlib.Path(folder).iterdir()) if not p.name.startswith(".")}
