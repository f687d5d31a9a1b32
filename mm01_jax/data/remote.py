"""Files on an object store or a web server, by URL, through fsspec: each is fetched whole into the folder for temporary
files, read there as a file of its kind, and deleted.

What answers late, wrong or not at all is asked again, a bounded number of times; then it is refused by its URL.
"""

import contextlib
import os
import pathlib
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mm01_jax.data.copied import Copied
from mm01_jax.data.text import DataError, Record, Seen, Shard
from mm01_jax.files import quoted, shown, why

TRIES, SECONDS = 5, 60.0  # of one request, and how long one may take
PAUSE = 0.5  # seconds before the second try, twice as long before each further one
_BLOCK = 8 << 20  # bytes of one request
MOST_FILES = 2_000_000
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.DOTALL)
# Of those that the library knows the ones that read a store, and not through another one, an archive or a shell.
PROTOCOLS = ("gs", "gcs", "s3", "s3a", "az", "abfs", "adl", "oci", "oss", "hf", "hdfs", "webhdfs", "http", "https")
PROTOCOLS += ("file", "memory")


def is_remote(source: str) -> bool:
    """Whether a source is a URL."""
    return _URL.fullmatch(source) is not None


def find(source: str, open_shard: Callable[[str, str], Shard]) -> list[tuple[str, Shard]]:
    """(URL, shard) of each file that a URL, a folder's or a glob's names, sorted; none where there is nothing.

    open_shard: the shard of (name, path), once a file has been fetched.

    Raises:
      ValueError: a protocol that is unknown or not installed.
      DataError: the store does not answer.
    """
    files = _file_system(source)
    listed = _asked(source, lambda: _listed(files, source))
    if len(listed) > MOST_FILES:
        raise DataError(f"{shown(source)}: {len(listed):,} files; allowed: at most {MOST_FILES:,}.")
    root = os.path.join(os.path.commonpath([os.path.dirname(path) for path in listed]), "") if listed else ""
    shards = []
    for path, size in sorted(listed.items()):
        url = files.unstrip_protocol(path)
        shards.append((url, Fetched(path.removeprefix(root), url, size, open_shard)))
    return shards


def _listed(files: Any, source: str) -> dict[str, int]:
    """Path -> bytes of the files that a URL names; hidden ones and those in hidden folders are left out."""
    path = files._strip_protocol(source)
    if any(letter in path for letter in "*?["):
        found = files.glob(path, detail=True)
    elif files.isfile(path):
        found = {path: files.info(path)}
    else:
        found = files.find(path, detail=True)
    base = len(path.rstrip("/")) if not any(letter in path for letter in "*?[") else 0
    hidden = re.compile(r"(^|/)\.")
    return {
        name: _size(source, name, info)
        for name, info in found.items()
        if info.get("type", "file") == "file" and not hidden.search(name[base:])
    }


def _size(source: str, name: str, info: dict[str, Any]) -> int:
    if not isinstance(size := info.get("size"), int) or size < 0:
        raise DataError(f"{shown(source)}: the store says no size of {shown(name)}.")
    return size


def _file_system(source: str) -> Any:
    """fsspec's file system of a URL."""
    protocol = _URL.fullmatch(source)[1]
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(f"{shown(source)} needs the `remote` extra: pip install 'mm01_jax[remote]'.") from error
    if protocol not in PROTOCOLS or "::" in source:
        raise ValueError(
            f"data.source={quoted(source)}: {protocol}:// is not read; allowed are {', '.join(PROTOCOLS)}."
        )
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:  # s3fs, gcsfs and the like, which the message names
        raise ValueError(f"data.source={quoted(source)}: {' '.join(str(error).split())}.") from error


class Fetched(Copied):
    """A file at a URL."""

    def __init__(self, name: str, url: str, size: int, open_shard: Callable[[str, str], Shard]):
        self.name, self.size = name, size
        self._url, self._open_shard = url, open_shard

    def documents(self, seen: Seen) -> Iterator[tuple[Record, bytes]]:
        with self._fetched() as path:
            yield from self._open_shard(self.name, path).documents(seen)

    @contextlib.contextmanager
    def _fetched(self) -> Iterator[str]:
        """A context with the path of a copy, of its suffix."""
        with tempfile.TemporaryDirectory(prefix="mm01-fetched-") as folder:
            # Named by its suffix alone: what a stranger calls a file is no name for one here.
            path = pathlib.Path(folder) / f"file{''.join(re.findall(r'[.][a-z]+', self.name)[-2:])}"
            with tempfile.NamedTemporaryFile(dir=folder, delete=False, buffering=0) as file:
                for block in self._blocks():
                    file.write(block)
            os.rename(file.name, path)
            yield str(path)

    def _blocks(self) -> Iterator[bytes]:
        files = _file_system(self._url)
        path = files._strip_protocol(self._url)
        for start in range(0, self.size, _BLOCK):
            stop = min(start + _BLOCK, self.size)

            def read(start=start, stop=stop) -> bytes:
                block = files.cat_file(path, start=start, end=stop)
                if len(block) != stop - start:
                    raise OSError(f"{len(block):,} bytes came of {stop - start:,}")
                return block

            yield _asked(self._url, read)
        now = _asked(self._url, lambda: files.info(path).get("size"))
        if now != self.size:
            raise DataError(f"{shown(self._url)} changed while in use: {self.size:,} bytes were listed, now {now}.")


def _asked(url: str, request: Callable[[], Any]) -> Any:
    """What a request gives; DataError with the URL when it has failed `TRIES` times."""
    for tried in range(TRIES):
        if tried:
            time.sleep(PAUSE * 2 ** (tried - 1))
        answers: queue.Queue = queue.Queue()
        # A library's own time limits are many or none, so a request that is late is left behind.
        threading.Thread(target=_answer, args=(request, answers), daemon=True).start()
        try:
            value, error = answers.get(timeout=SECONDS)
        except queue.Empty:
            value, error = None, TimeoutError(f"no answer in {SECONDS:.0f} s")
        if error is None:
            return value
        if isinstance(error, DataError | FileNotFoundError | PermissionError):
            break  # asked again, it says the same
    if isinstance(error, DataError):
        raise error
    times = f", {tried + 1} times" if tried else ""
    raise DataError(f"{shown(url)} cannot be read{times}: {shown(why(error))}.") from error


def _answer(request: Callable[[], Any], answers: queue.Queue) -> None:
    try:
        answers.put((request(), None))
    except Exception as error:  # whatever a store's library raises: it is said, with the URL
        answers.put((None, error))
