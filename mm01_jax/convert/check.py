"""Compares a checkpoint with its config, with digests, or with another checkpoint; names everything that differs."""

import pathlib
from collections.abc import Callable

import numpy as np

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.config import ModelConfig
from mm01_jax.convert import decay, files, parallel, table
from mm01_jax.convert.progress import Progress, gigabytes
from mm01_jax.convert.sources import CheckpointSource, TorchSource, open_source

_SHOWN = 50


def check(source, against=None, *, check_finite: bool = False, say: Callable[[str], None] = print) -> None:
    """Checks the checkpoint in `source`, PyTorch's or ours.

    Without `against`: names, shapes and dtypes against its config, and every tensor whose digest is known.

    Args:
      against: a checkpoint of ours (tensors are compared with the SHA-256 of the source it was converted from, or
        chunk by chunk), a PyTorch directory, or a sha256.json.
      check_finite: read every tensor and refuse NaN and infinity.

    Raises:
      CheckpointError: it is damaged or differs; everything found is named.
    """
    found = open_source(source, check_finite=check_finite)
    say(f"{found.directory}: {len(found.tensors):,} tensors have the names, shapes and dtype of the config")
    problems = _buffer_problems(found)
    known = _known_sha256s(found, against)
    if known is not None:
        problems += _settings_differences(found, against)
        problems += _sha256_problems(found, known)
        what = f"the SHA-256 in {against}"
    elif against is not None:
        problems += _difference(found, open_source(against, check_finite=check_finite))
        what = str(against)
    else:
        what = _verify_itself(found, check_finite, problems)
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        raise CheckpointError(f"{found.directory}: {len(problems)} differences:{lines}{more}")
    say(f"{found.directory}: agrees with {what}")


def _buffer_problems(found) -> list[str]:
    problems = []
    for buffer in found.buffers if isinstance(found, TorchSource) else []:
        problem = decay.problem(buffer, found.files.rows(buffer.name, 0, buffer.shape[0]), found.config.model)
        if problem:
            problems.append(f"{found.files.where(buffer.name)}: {problem}")
    return problems


def _known_sha256s(found, against) -> dict[str, str] | None:
    """SHA-256 of the source's tensors by name, where `against` has them."""
    if against is None or not isinstance(found, TorchSource):
        return None
    path = pathlib.Path(against)
    if path.is_file():
        known = files.read_json(path).get("tensors")
        if not isinstance(known, dict):
            raise CheckpointError(f"{path}: no list of SHA-256 under 'tensors'")
        return known
    if not (path / "state").is_dir():
        return None
    known = CheckpointSource(path).checkpoint.manifest.source_sha256
    # From another dialect: names differ, so chunks are compared.
    return known if known.keys() == {found.dialect.torch_name(tensor) for tensor in found.tensors} else None


def _settings_differences(found: TorchSource, against) -> list[str]:
    """Fields of config.json that are not as the conversion `against` read them; further ones change no number."""
    if pathlib.Path(against).is_file():
        return []
    plain = CheckpointSource(against).plain
    problems = _config_differences(found.config.model, CheckpointSource(against).config.model)
    names = [name for name in plain if not isinstance(plain[name], dict) and plain[name] != found.plain.get(name)]
    return problems + [f"config.json: {name}={found.plain.get(name)!r} against {plain[name]!r}" for name in names]


def _sha256_problems(found: TorchSource, known: dict[str, str]) -> list[str]:
    names = {found.dialect.torch_name(tensor): tensor for tensor in found.tensors}
    buffers = {buffer.name for buffer in found.buffers}
    problems = [f"missing {name}" for name in known if name not in names and name not in buffers]
    problems += [f"surplus {name}" for name in names if name not in known]

    def one(tensor: table.Tensor) -> str | None:
        name = found.dialect.torch_name(tensor)
        if name not in known:
            return None
        try:
            sha256 = found.read_with_sha256(tensor)[1]
        except CheckpointError as error:
            return str(error)
        return None if sha256 == known[name] else f"{found.files.where(name)}: other bytes than the manifest's"

    return problems + [problem for problem in _each(found, one) if problem]


def _difference(found, other) -> list[str]:
    """Maths fields, then chunks, bit by bit; of another dtype both are compared as the wider one."""
    problems = _config_differences(found.config.model, other.config.model)
    if (found.config.vision is None) != (other.config.vision is None):
        problems.append(f"only one of {found.directory} and {other.directory} has vision weights")
    theirs = {(tensor.leaf, tensor.index): tensor for tensor in other.tensors}
    mine = {(tensor.leaf, tensor.index) for tensor in found.tensors}
    problems += [f"missing {leaf} {list(index)}" for leaf, index in sorted(theirs.keys() - mine)]
    problems += [f"surplus {leaf} {list(index)}" for leaf, index in sorted(mine - theirs.keys())]
    if found.dtype != other.dtype:
        problems.append(f"dtype {found.dtype} against {other.dtype}")

    def one(tensor: table.Tensor) -> str | None:
        twin = theirs.get((tensor.leaf, tensor.index))
        if twin is None:
            return None
        a, b = found.read(tensor), other.read(twin)
        name = f"{tensor.leaf} {list(tensor.index)} ({tensor.name})"
        if a.shape != b.shape:
            return f"{name}: shape {list(a.shape)} against {list(b.shape)}"
        if a.dtype == b.dtype:
            differ = np.count_nonzero(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}"))
        else:
            differ = np.count_nonzero(a.astype(np.float32) != b.astype(np.float32))
        return f"{name}: {differ:,} of {a.size:,} values differ" if differ else None

    return problems + [problem for problem in _each(found, one) if problem]


def _config_differences(mine: ModelConfig, theirs: ModelConfig) -> list[str]:
    names = [name for name in ModelConfig.__dataclass_fields__ if name not in ("dtype", "param_dtype", "remat")]
    pairs = [(name, getattr(mine, name), getattr(theirs, name)) for name in names]
    return [f"config: {name}={a!r} against {b!r}" for name, a, b in pairs if a != b]


def _verify_itself(found, check_finite: bool, problems: list[str]) -> str:
    """Reads what can be verified, adding to `problems`; says with what it was compared."""
    torch = isinstance(found, TorchSource)
    if torch and not found.sha256s and not check_finite:
        return f"its config; no {files.SHA256S} here, so the contents were not read (compare with --against=MANIFEST)"

    def one(tensor: table.Tensor) -> str | None:
        try:
            found.read(tensor)
        except CheckpointError as error:
            return str(error)
        return None

    problems += [problem for problem in _each(found, one) if problem]
    if not torch:
        return f"its manifest (tree {found.checkpoint.manifest.tree_sha256()[:16]})"
    return f"its {files.SHA256S}" if found.sha256s else "its config; every value is finite"


def _each(found, work: Callable[[table.Tensor], str | None]) -> list[str | None]:
    itemsize = np.dtype(found.dtype).itemsize

    def nbytes(tensor: table.Tensor) -> int:
        return table.num_elements(tensor) * itemsize

    progress = Progress(sum(map(nbytes, found.tensors)), "check")

    def counted(tensor: table.Tensor) -> str | None:
        result = work(tensor)
        progress.add(nbytes(tensor))
        return result

    return parallel.for_each(found.tensors, nbytes, counted)


def inspect(source, *, say: Callable[[str], None] = print) -> None:
    """Says what lies in a directory, without reading the weights.

    Raises:
      CheckpointError: it is no sound checkpoint.
    """
    found = open_source(source)
    elements = sum(map(table.num_elements, found.tensors))
    nbytes = elements * np.dtype(found.dtype).itemsize
    kind = "PyTorch directory" if isinstance(found, TorchSource) else "checkpoint of mm01_jax"
    say(f"{found.directory}: {kind}, dialect {found.dialect.name}")
    say(f"{len(found.tensors):,} tensors, {elements:,} parameters, {found.dtype}, {gigabytes(nbytes)}")
    if isinstance(found, TorchSource):
        shards = len(set(found.files.shard.values()))
        digests = f"{len(found.sha256s):,} SHA-256 listed" if found.sha256s else "no list of SHA-256"
        say(f"{shards} shards, {len(found.buffers)} decay buffers, {digests}")
    else:
        manifest = found.checkpoint.manifest
        say(f"step {manifest.step}, tree {manifest.tree_sha256()}, {len(manifest.source_sha256):,} source SHA-256")
    for name in ModelConfig.__dataclass_fields__:
        say(f"  {name} = {getattr(found.config.model, name)!r}")
    if found.config.vision:
        say(f"  {found.config.vision!r}")
    say("leaf: shape (stack axes in front)")
    for path, leaf in table.leaves(found.tensors).items():
        say(f"  {path}: {list(leaf.shape[: leaf.stack])} {list(leaf.shape[leaf.stack :])}")
