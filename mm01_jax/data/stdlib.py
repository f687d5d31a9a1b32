"""The standard library as text: what every machine with Python has, the same for the same version."""

import pathlib
import platform
import sysconfig

from mm01_jax.data.text import Shard, TextFile, TextInMemory

# Not the library itself, or (tests) text that is broken on purpose.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def stdlib_shards() -> list[Shard]:
    """The standard library's non-empty `.py` files, one document each, and one document a `help()` topic."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    shards: list[Shard] = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        # _sysconfigdata* is written when Python is built and holds that machine's paths.
        generated = name.name.startswith("_sysconfigdata") or name.as_posix() == "pydoc_data/topics.py"
        if not generated and not SKIPPED_FOLDERS & set(name.parts) and path.stat().st_size:
            shards.append(TextFile(name.as_posix(), path))
    if not shards:
        raise ValueError(f"data.source='stdlib': Python {platform.python_version()} has no .py files under {root}.")
    from pydoc_data.topics import topics  # a large module that only this source needs

    return shards + [TextInMemory(f"pydoc_data/topics/{topic}", text) for topic, text in topics.items()]
