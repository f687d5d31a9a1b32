"""Where paths lead, of one or of very many: each folder and each link is looked at once. It imports none of ours.

The system and `os.path.realpath` walk through all folders above a file again, for every file and every link of a chain.
"""

import errno
import functools
import os
import pathlib

_MOST = 40  # links that a path leads over, as on Linux


class Links:
    """root: the directory that owns the paths; owners: the folders that they may lead into, with a slash at the end."""

    def __init__(self, root):
        self.root, self.owners = root, tuple(os.path.join(place, "") for place in _owners(root))
        self._ends: dict[str, tuple[str, int]] = {}  # of a name in a folder: where it leads, and over how many links
        self._folder = functools.cache(lambda folder: self._walk("/", os.path.join(os.getcwd(), folder), 0))

    def real(self, path) -> str:
        """Where a path leads; OSError where it leads nowhere."""
        folder, name = os.path.split(os.fspath(path))
        place, before = self._folder(folder)
        real, _ = self._walk(place, name, before)
        os.stat(real)
        return real

    def _walk(self, place: str, path: str, before: int) -> tuple[str, int]:
        """Along a path from a folder in which no link is left, over `before` links: (its end, over how many more)."""
        count = 0
        for name in path.split("/"):
            if name == "..":
                place = os.path.dirname(place)
            elif name not in ("", "."):
                place, more = self._end(os.path.join(place, name), before + count)
                count += more
        return place, count

    def _end(self, path: str, before: int) -> tuple[str, int]:
        if path not in self._ends:
            self._ends[path] = self._followed(path, before)
        real, count = self._ends[path]
        if before + count > _MOST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return real, count

    def _followed(self, path: str, before: int) -> tuple[str, int]:
        try:
            target = os.readlink(path)
        except OSError:  # no link; what else is wrong the system says of the whole
            return path, 0
        if before >= _MOST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        real, count = self._walk("/" if target.startswith("/") else os.path.dirname(path), target, before + 1)
        return real, count + 1


def _owners(root) -> tuple[pathlib.Path, ...]:
    """The directory itself; for links of a Hugging Face snapshot its blobs, too."""
    real = pathlib.Path(root).resolve()
    blobs = [place.parent.parent / "blobs" for place in (real, *real.parents) if place.parent.name == "snapshots"]
    return (real, *(place for place in blobs[:1] if place.is_dir() and not place.is_symlink()))
