"""The one door for what comes from a directory that anybody may have made.

Regular files alone are opened, of a bounded size, without waiting; links stay inside the directory that owns them.
JSON takes linear time and bounded memory. What is written appears whole; neither it nor a deletion follows a link.
"""

import codecs
import contextlib
import errno
import json
import math
import os
import pathlib
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from mm01_jax.links import Links

SMALL = 32 * 2**20  # bytes of a file that is read whole: the manifest of 456 B parameters has 808,252
MEMORY, DEPTH = 160 * 2**20, 64  # that the values of one JSON text may take; lists and objects inside one another
_TAKES = {b"[": 250, b"{": 250, b",": 110, b":": 170}  # bytes at most: a list, an object, a value, its name besides
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # no fault of who named the file
_TEXT, _TEXTS = (re.compile(rb'(?s)(?:"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)' + end) for end in (b")", rb'[^"]*+){1,4096}+'))
_KINDS = {"-": "a regular file", "d": "a directory", "p": "a FIFO", "s": "a socket"}  # as `ls` tells them
POINTER, UNFETCHED = b"version https://git-lfs", "is git-lfs's pointer to a file: `git lfs pull` fetches the file"
_DIGITS, _LONG, _SHOWN = 40, re.compile(rb"[0-9]{40}"), 200  # of a whole number; characters of a name in a message
_EDGE = re.compile(rb"[eE]\+?0*+[1-9][0-9]{2}")  # without one, and without a long number, no number is beyond float64


class FileError(Exception):
    """A file of a directory cannot be taken; the message names it."""

    exit_code = 3


class Door(NamedTuple):
    """How a room reads files: `error` is what it raises, with a message that names the file.

    `root`, of its methods, is the directory that owns the file, or, for very many files, `Links` of it: links are
    followed as far as they stay inside it.
    """

    error: type[Exception] = FileError

    def open(self, path, *, root=None, most: int | None = None, buffering: int = -1) -> BinaryIO:
        """A regular file, open for reading; one of more than `most` bytes is refused."""
        with self.errors(path):
            real = _inside(path, root)
            _check_kind(os.stat(real), most)  # before it is opened: that alone makes some devices act
            fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                _check_kind(os.fstat(fd), most)
                return os.fdopen(fd, "rb", buffering=buffering)
            except BaseException:
                os.close(fd)
                raise

    def read(self, path, *, root=None, most: int = SMALL) -> bytes:
        """The bytes of a file of at most `most` bytes."""
        with self.open(path, root=root, most=most) as file, self.errors(path):  # a read allocates what it is asked for
            raw = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
            if len(raw) > most or raw.startswith(POINTER):
                raise ValueError(UNFETCHED if raw.startswith(POINTER) else "grew while it was read")
        return raw

    def text(self, path, *, root=None, most: int = SMALL) -> str:
        """The text of a file in UTF-8."""
        raw = self.read(path, root=root, most=most)
        with self.errors(path):
            return utf8(raw)

    def json(self, path, *, root=None, most: int = SMALL) -> dict:
        """The JSON object of a file."""
        return self.parse(path, self.read(path, root=root, most=most))

    def parse(self, path, raw: bytes) -> dict:
        """The JSON object in the bytes of `path`; each key once, numbers finite."""
        with self.errors(path, "not valid JSON: "):
            plain = parse_json(raw)
        if isinstance(plain, dict):
            return plain
        with self.errors(path):
            raise ValueError(f"JSON of a {type(plain).__name__}, not of an object")

    def check(self, path, *, root, most: int | None = None) -> int:
        """Refuses what `open` would, for a library that opens files itself; the bytes of the file."""
        with self.errors(path):
            _check_kind(status := os.stat(_inside(path, root)), most)
        return status.st_size

    def inside(self, path, root) -> None:
        """Refuses a directory that is missing, is none or leads out of `root`."""
        with self.errors(path):
            _check_kind(os.stat(_inside(path, root)), None, "a directory")

    def folder(self, path) -> pathlib.Path:
        """A directory to write and delete in, made where there is none; a link is no such directory."""
        made = pathlib.Path(path)
        try:
            _check_kind(made.stat(), None, "a directory") if made.exists() else made.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            of_the_disk = getattr(error, "errno", None) in OF_THE_DISK
            raise error if of_the_disk else self.error(f"{shown(path)}: {why(error)}; allowed: a directory") from None
        self.refuse_link(path)
        return made

    def refuse_link(self, path) -> None:
        if os.path.islink(path):
            raise self.error(f"{shown(path)}: is a link; allowed: a directory, since files are deleted in it")

    @contextlib.contextmanager
    def errors(self, path, doing: str = "") -> Iterator[None]:
        """A context in which what is wrong with a file becomes this room's error."""
        try:
            yield
        except (OSError, ValueError) as error:
            refused = self.error(f"{shown(path)}: {doing}{why(error)}")
            if getattr(error, "errno", None) not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):  # it is there
                refused.exit_code = FileError.exit_code
            raise refused from None


def _inside(path, root) -> str:
    """Where a path leads. ValueError where that is outside its directory."""
    if root is None:
        return os.fspath(path)
    links = root if isinstance(root, Links) else Links(root)
    if not os.path.join(real := links.real(path), "").startswith(links.owners):
        raise ValueError(f"a link out of the directory {shown(links.root)}; copy the file into it")
    return real


def _check_kind(status: os.stat_result, most: int | None, wanted: str = "a regular file") -> None:
    if (what := _KINDS.get(stat.filemode(status.st_mode)[0], "a device")) != wanted:
        raise ValueError(f"is {what}, not {wanted}")
    if most is not None and status.st_size > most:
        raise ValueError(f"has {status.st_size:,} bytes; allowed: at most {most:,}")


def why(error: BaseException) -> str:
    """An error in one line, without the name of the file, which the message has already."""
    if isinstance(error, FileNotFoundError):
        return "missing (No such file or directory)"
    if getattr(error, "strerror", None) == os.strerror(errno.ELOOP):
        return "missing (a link that leads to itself, or over very many others)"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def shown(name: object) -> str:
    """A name that stands in a file or is one, for a message: nothing in it moves a cursor or begins a line."""
    ends = (whole := str(name))[:_SHOWN] + whole[max(_SHOWN, len(whole) - _SHOWN) :]  # of a text of megabytes
    text = ends if ends.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in ends)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def quoted(value: object) -> str:
    """`shown`, text in quotes."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(repr(value))


def utf8(raw: bytes) -> str:
    """Text in UTF-8; ValueError says what else it is."""
    if raw.startswith(codecs.BOM_UTF8):
        raise ValueError("it starts with a byte order mark (EF BB BF); allowed: UTF-8 without one")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (at byte {error.start}: {error.reason})") from None


def parse_json(raw: bytes, pairs: Callable | None = None, most: int = MEMORY, guard=lambda read: read) -> Any:
    """What a JSON text says, numbers finite; `pairs` makes an object of pairs, by default one where no name is twice.

    ValueError: it is none, more than `DEPTH` deep, or would take over `most` bytes. guard: wraps what reads a number.
    """
    if len(raw) > 2**20:  # less takes less than MEMORY, whatever it says
        each = 1 if raw.isascii() else 4 if re.search(rb"[\xf0-\xff]", raw) else 2  # bytes a character will take
        needed = len(raw) + 2 * each * len(raw.translate(None, bytes(range(0x80, 0xC0)))) + _takes(raw)
        if needed > most:  # some is in texts, taken out piece by piece: of all of it the parts take hundreds of MiB
            needed -= sum(_takes(match[0]) - _takes(_TEXT.sub(b"", match[0])) for match in _TEXTS.finditer(raw))
        if needed > most:
            raise ValueError(f"its values would take {needed >> 20} MiB, too many")
    finite, whole = guard(_finite), guard(_whole) if (long := _LONG.search(raw)) else None
    hooks = {"parse_constant": finite, "parse_float": finite if long or _EDGE.search(raw) else None, "parse_int": whole}
    try:
        return _checked_depth(json.JSONDecoder(object_pairs_hook=pairs or _once, **hooks).decode(utf8(raw)))
    except RecursionError:
        raise ValueError(f"lists and objects are more than {DEPTH} deep") from None


def _takes(raw: bytes) -> int:
    return sum(each * raw.count(mark) for mark, each in _TAKES.items())


def _once(pairs: list) -> dict:
    if len(plain := dict(pairs)) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {quoted(twice)} occurs twice")
    return plain


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):  # `1e400` is JSON, and would be read as infinity; `NaN` is neither
        raise ValueError(f"{text[:40]} is {'beyond float64' if text[-1].isdigit() else 'not JSON'}")
    return float(text)


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits; allowed: at most {_DIGITS}")
    return int(text)


def _checked_depth(plain: Any) -> Any:
    level = [plain]
    for _ in range(DEPTH + 1):
        if not (level := [value for value in level if isinstance(value, dict | list)]):
            return plain
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    raise ValueError(f"lists and objects are more than {DEPTH} deep")


def write(path, data: bytes) -> None:
    """Writes a file that appears under its name whole and durable, or not at all; a link of that name is replaced."""
    with written(path) as file:
        file.write(data)


@contextlib.contextmanager
def written(path) -> Iterator[BinaryIO]:
    """A context with the file that `write` writes, under its name till then; an OSError names it."""
    temporary = pathlib.Path(f"{os.fspath(path)}.{uuid.uuid4().hex}.tmp")  # another host has the same process ids
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(temporary, "w+b", opener=lambda *_: fd) as file:  # its `name` is a path, which os.fdopen's is not
            yield file
            file.flush()
            os.fsync(fd)
        temporary.rename(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            error.filename = os.fspath(path)
        raise
    sync_directory(temporary.parent)


def update(path, flags: int = 0) -> int:
    """The descriptor of a regular file to read and write in place, made where there is none; of one name, no link."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "is a link, not a regular file", os.fspath(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o644)
    try:
        _check_kind(status := os.fstat(fd), None)
        if status.st_nlink > 1:
            raise ValueError("has another name, too (a hard link), and would change there: put a copy in its place")
    except ValueError as error:
        os.close(fd)
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    return fd


def sync_directory(path) -> None:
    """Makes renames inside a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has it for files alone
            raise
    finally:
        os.close(fd)


def remove(path, root) -> None:
    """Deletes a directory with all that is in it, or a file, directly inside `root`; of a link, the link.

    OSError: it cannot be deleted, or `root` is a link, whose files are another directory's.
    """
    path, root = pathlib.Path(path), pathlib.Path(root)
    if path.parent != root or root.is_symlink():
        raise OSError(errno.EINVAL, f"not deleted: it does not lie in the directory {shown(root)}", os.fspath(path))
    try:
        (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink)(path)  # neither follows a link
    except RecursionError:
        raise OSError(errno.ENAMETOOLONG, "not deleted: its folders are too deep", os.fspath(path)) from None


def remove_unfinished(folder) -> None:
    """Deletes what a killed `written` left in a folder that no other process writes in, a thousand at most."""
    for _, path in zip(range(1000), pathlib.Path(folder).glob(f"*.{'[0-9a-f]' * 32}.tmp"), strict=False):
        remove(path, path.parent)
