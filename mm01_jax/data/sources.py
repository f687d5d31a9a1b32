"""From `data.source` to a sorted list of shards.

`stdlib` is real text that every machine with Python has: the standard library's own source, and the language
reference that `help()` prints; `recall:SIZE` are documents that teach to find and to copy. Anything else is a path, a
directory or a glob of a user's files.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

from mm01_jax.data import globs, recall, remote
from mm01_jax.data.compressed import CompressedLines
from mm01_jax.data.conversation_files import ConversationLines, ConversationShard, Packed
from mm01_jax.data.json_lines import JsonLines
from mm01_jax.data.parquet import ParquetText
from mm01_jax.data.stdlib import stdlib_shards
from mm01_jax.data.text import FILES, PROGRESS_SECONDS, Shard, TextFile, Unreadable
from mm01_jax.data.token_files import MANIFEST, is_token_folder
from mm01_jax.files import quoted, shown, why
from mm01_jax.links import Links
from mm01_jax.values import similar

_MOST_BESIDE = 1000  # names of a folder that are looked at for a near one
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrayrecord")


def find_shards(
    source: str, text_field: str, records: str = "text", log: Callable[[str], None] = lambda line: None
) -> list[Shard]:
    """The shards that `source` names, sorted by name; ValueError when it names none. records: of `DataConfig`."""
    if source == "stdlib":
        return sorted(stdlib_shards(), key=lambda shard: shard.name)
    if source.startswith(recall.PREFIX):
        return [recall.RecallShard(source)]
    if remote.is_remote(source):
        return _find_remote(source, text_field, records)
    paths = _find_paths(source, log)
    root = os.path.join(os.path.commonpath({os.path.dirname(path) for path in paths}), "")
    named = sorted((path.removeprefix(root), path) for path in paths)
    if records != "text":
        return [_open_conversations(name, pathlib.Path(path), records == "pairs") for name, path in named]
    return [_open_shard(name, path, text_field) for name, path in named]


def _find_remote(source: str, text_field: str, records: str) -> list[Shard]:
    if records != "text":
        raise ValueError(f"data.source={quoted(source)}: data.records={records!r} is read from a local disk; copy it.")
    found = remote.find(source, lambda name, path: _open_shard(name, path, text_field))
    if any(url.endswith(f"/{MANIFEST}") for url, _ in found):
        raise ValueError(f"data.source={quoted(source)}: a folder of tokens is read from a local disk; copy it there.")
    found = [(url, shard) for url, shard in found if _is_data(os.path.basename(url))]
    if not found:
        raise ValueError(f"data.source={quoted(source)} names no file.")
    _check_kinds(source, [url for url, _ in found])
    return [shard for _, shard in found]


def _find_paths(source: str, log: Callable[[str], None]) -> list[str]:
    """Absolute paths, each file once; of a million files in strings, which are many times faster than pathlib's."""
    if "\0" in source:
        raise ValueError("data.source has a NUL; allowed: 'stdlib', or a path or glob")
    try:
        os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        pass  # a glob, or nothing
    except OSError as error:
        raise Unreadable(f"data.source={quoted(source)}: {why(error)}") from None
    if folder := os.path.isdir(source):
        paths = list(_below(source))
    elif os.path.lexists(source):
        FILES.check(source, root=None)
        paths = [source]
    else:
        paths = [p for p in globs.find(source, log, lambda name: name.endswith(SUFFIXES)) if not os.path.isdir(p)]
    links, real_folder = Links(source), functools.cache(os.path.realpath)
    unique, names, clock = {}, {}, time.monotonic()
    for path in sorted(paths):
        # A folder is taken as a whole, so its links stay inside it; a path or glob was chosen by a person.
        if not _is_utf8(path):  # a digest is made of names, and a run's manifest has them
            raise Unreadable(f"{shown(path)}: a name that is no UTF-8; rename it")
        is_link = os.path.islink(path)
        FILES.check(path, root=links if folder and is_link else None)
        # One file under two names (links of both kinds, a glob that overlaps) is one file.
        place, name = os.path.split(path)
        real = links.real(path) if is_link else os.path.join(real_folder(place), name)
        with FILES.errors(path):
            status = os.stat(real)
        if status.st_nlink > 1:
            real = names.setdefault((status.st_dev, status.st_ino), real)
        unique[real] = os.path.abspath(path)
        if time.monotonic() - clock > PROGRESS_SECONDS:
            clock = time.monotonic()
            log(f"data: looked at {len(unique):,} of {len(paths):,} files of {shown(source)}")
    if not unique:
        raise ValueError(_nothing_found(source))
    _check_kinds(source, unique.values())
    return list(unique.values())


def _check_kinds(source: str, paths: Iterable[str]) -> None:
    has_tokens = functools.cache(is_token_folder)
    for path in paths:
        if has_tokens(os.path.dirname(path)):
            raise ValueError(
                f"{shown(path)} lies in a folder of tokens, which are no text; data.source alone names it."
            )
        if not path.endswith(SUFFIXES):
            suffix = os.path.splitext(path)[1]
            raise ValueError(
                f"data.source={source!r}: {shown(path)} has the suffix {quoted(suffix)}; allowed are "
                f"{', '.join(SUFFIXES)}. "
                "A glob such as 'folder/**/*.txt' chooses among the files of a folder."
            )


def _below(folder: str) -> Iterator[str]:
    """Every file of a folder that is not hidden; nor are those in hidden folders taken.

    Nor `_SUCCESS` and the like, which programs that write Parquet leave beside it.
    """
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (os.path.join(place, name) for name in names if name[0] != "." and _is_data(name))
        for name in folders:
            if os.path.islink(link := os.path.join(place, name)):
                what = f"{shown(link)}: a link to a folder, which would be left out; name its files by a glob"
                raise ValueError(f"data.source={quoted(folder)}: {what}")


def _is_data(name: str) -> bool:
    return name[0] != "_" or name.endswith(SUFFIXES)


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _refuse(error: OSError) -> None:
    """A folder that cannot be read is not one without files."""
    raise Unreadable(f"{shown(error.filename)}: {why(error)}")


def _nothing_found(source: str) -> str:
    if os.path.isdir(source):
        return f"data.source={source!r} is a directory without {', '.join(SUFFIXES)} files."
    parent, names = pathlib.Path(source).parent, ["stdlib"]
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        names += [str(parent / entry.name) for entry in itertools.islice(entries, _MOST_BESIDE)]
    near = similar(source, names, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"data.source={source!r} is neither 'stdlib' nor a path or glob of {', '.join(SUFFIXES)} files.{hint}"


def _open_shard(name: str, path: str, text_field: str) -> Shard:
    place = pathlib.Path(path)
    if path.endswith(".txt"):
        return TextFile(name, path)
    if path.endswith(".jsonl"):
        return JsonLines(name, place, text_field)
    if path.endswith((".gz", ".zst")):
        return CompressedLines(name, place, text_field)
    if path.endswith(".parquet"):
        return ParquetText(name, place, text_field)
    from mm01_jax.data.array_record import ArrayRecordFile  # loads a native library that only this kind needs

    return ArrayRecordFile(name, place)


def _open_conversations(name: str, path: pathlib.Path, pairs: bool) -> Shard:
    if path.suffix not in (".jsonl", ".arrayrecord"):
        what = "pairs" if pairs else "conversations"
        raise ValueError(f"{path} holds no conversations; data.records='{what}' reads .jsonl and .arrayrecord.")
    kind = ConversationLines if path.suffix == ".jsonl" else Packed
    return ConversationShard(kind(name, path), path.parent, pairs)
