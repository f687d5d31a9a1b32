"""A conversation's state on disk: what the engine remembers of its tokens, in the format of checkpoints.

Every array is digested (`checkpoint/digest.py`), and the weights that made it are part of what is written: loaded into
an engine with other weights, another config or another grid it is refused, as it is when it is damaged. Of images what
is seen at each token is written, not the pixels: they are found again by who shows the same ones.
"""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np

from mm01_jax.checkpoint import (
    MOST_LEAVES,
    CheckpointError,
    Checkpoints,
    check_finite,
    digest,
    leaf_paths,
    leaf_stacks,
    open_checkpoint,
    processes,
)
from mm01_jax.inference import engine_pieces as cuts
from mm01_jax.inference.asked import Shown, check_shown
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_images import MARK, Seen
from mm01_jax.inference.engine_memory import Memory
from mm01_jax.inference.engine_request import whole_numbers
from mm01_jax.inference.engine_sizes import check_kind
from mm01_jax.model.decoder import TextModel

_FIELD = "conversation"  # of the manifest's meta
_BEFORE = {"lanes": 1}  # of what was saved when that had no name


def save(engine: Engine, tokens, directory, content: bytes = b"", shows: Shown | None = None) -> int:
    """Writes what is remembered of the longest known beginning of `tokens`; how many tokens that is.

    Args:
      directory: new or empty. shows: the images of the conversation's last prompt, with which `tokens` begin.

    Raises:
      ValueError: the engine remembers nothing, or nothing of these; the directory holds something; images that are not
        those of the tokens.
      SaveFailed: the disk is full or broken.
    """
    memory, tokens = _memory(engine), whole_numbers("tokens", tokens, engine.limits.vocab_size)
    place = _place(directory)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "holds something" if place.is_dir() else "is a file"
        raise ValueError(f"directory: got {directory}, which {what}; allowed: a new or empty one")
    if not isinstance(content, bytes):
        raise ValueError(f"content: got {content!r}; allowed: bytes")
    marks = _marks(engine, tokens, shows)
    rest = cuts.rest(len(tokens) // engine.sizes.grid * engine.sizes.grid, engine.sizes)
    found = memory.prefix.find(content, np.append(tokens, np.int32(0)), marks, rest=rest, counted=False)
    if not found.pages:
        raise ValueError(f"tokens: nothing of these {len(tokens)} is remembered ({found.miss})")
    count = len(found.pages) * engine.sizes.grid
    told = {**_identity(engine), "tokens": count, "content": content.hex(), "images": marks is not None}
    with jax.set_mesh(engine.devices.mesh):
        arrays = [engine.devices.everywhere(array[:count]) for array in (tokens, marks) if array is not None]
        tree = _tree(found.pages, found.state, *arrays)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, tree, {"config": _config(engine), _FIELD: told})
    return count


def load(engine: Engine, directory) -> int:
    """Remembers what `save` wrote; how many tokens that is.

    Raises:
      ValueError: the engine remembers nothing, or an argument is of another kind.
      CheckpointError: it is damaged, no conversation, not finite, or of other weights, another config or another grid.
    """
    memory = _memory(engine)
    pages = engine.sizes.max_length // engine.sizes.grid * len(jax.tree.leaves(engine.devices.page_like))
    checkpoint = open_checkpoint(_place(directory), prefix="", most_leaves=MOST_LEAVES + pages)
    told = checkpoint.manifest.meta.get(_FIELD)
    if not isinstance(told, dict) or type(told.get("tokens")) is not int or not isinstance(told.get("content"), str):
        raise CheckpointError(f"{directory}: no saved conversation")
    for name, here in _identity(engine).items():
        if told.get(name, _BEFORE.get(name)) != here:
            raise CheckpointError(f"{directory}: saved with {name} {told.get(name)!r}, here it is {here!r}")
    if checkpoint.config_object != _config(engine):
        raise CheckpointError(f"{directory}: saved with another model config")
    count, grid = told["tokens"], engine.sizes.grid
    if not 0 < count <= engine.sizes.max_length or count % grid:
        raise CheckpointError(f"{directory}: of {count} tokens; allowed: whole pieces of {grid}, up to a slot's length")
    devices = engine.devices
    with jax.set_mesh(devices.mesh):
        arrays = [devices.array_like((count,), np.int32)]
        arrays += [devices.array_like((count, MARK), np.uint8)] if told.get("images") is True else []
        like = _tree([devices.page_like] * (count // grid), devices.state_like, *arrays)
        try:
            tree = checkpoint.restore(like)
            content = bytes.fromhex(told["content"])
        except ValueError as error:
            raise CheckpointError(f"{directory}: {error}") from None
    check_finite(directory, tree, devices.mesh, what="states")
    pages = [page for _, page in sorted(tree["pages"].items())]
    tokens, marks = (None if tree.get(name) is None else np.asarray(tree[name]) for name in ("tokens", "seen"))
    rest = cuts.rest(count, engine.sizes)
    memory.prefix.put(content, tokens, pages.__getitem__, lambda: tree["state"], marks, rest=rest)
    return count


def _place(directory: str | os.PathLike) -> pathlib.Path:
    check_kind("directory", directory, str | os.PathLike)
    return pathlib.Path(directory)


def _memory(engine: Engine) -> Memory:
    check_kind("engine", engine, Engine)
    if engine.memory is None:
        raise ValueError("prefix_bytes=0: the engine remembers nothing; nearest: Engine(prefix_bytes=1000000000)")
    return engine.memory


def _tree(pages: list, state, tokens, seen=None) -> dict:
    tree = {"pages": {f"{number:08d}": page for number, page in enumerate(pages)}, "state": state, "tokens": tokens}
    return tree if seen is None else tree | {"seen": seen}


def _marks(engine: Engine, tokens: np.ndarray, shows: Shown | None) -> np.ndarray | None:
    """What is seen at each token; None without images."""
    limits = engine.limits
    check_kind("shows", shows, Shown | None)
    count = len(tokens) if shows is None else len(shows.index)
    check_shown(tokens[:count], shows, limits.vision, limits.tiles)
    return None if shows is None else Seen(shows, limits.vision).marks_of(len(tokens))


def _config(engine: Engine) -> dict:
    model = engine.devices.model
    return {"model": json.dumps(dataclasses.asdict(model.config)), "dtype": model.compute.dtype}


def _identity(engine: Engine) -> dict:
    sizes = engine.sizes
    return {"grid": sizes.grid, "wide": sizes.wide, "lanes": sizes.lanes, "weights": _digest(engine.devices.model)}


def _digest(model: TextModel) -> str:
    """Of all weights, the same on every mesh."""
    arrays, paths, stacks = jax.tree.leaves(model), leaf_paths(model), leaf_stacks(model)
    lanes = processes.add([digest.array_digest(array, stack) for array, stack in zip(arrays, stacks, strict=True)])
    named = zip(paths, arrays, lanes, strict=True)
    return digest.tree_sha256(
        {path: digest.leaf_sha256(path, array.shape, array.dtype.name, lane) for path, array, lane in named}
    )
