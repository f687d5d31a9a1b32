"""Compares a checkpoint with its config, with digests, or with another checkpoint; names everything that differs."""

import pathlib
from collections.abc import Callable

import numpy as np

from mm01_jax.checkpoint import FILES, CheckpointError, Leaf, Manifest, digest, read_manifest
from mm01_jax.config import ModelConfig
from mm01_jax.convert import parallel, table
from mm01_jax.convert.progress import Progress, gigabytes
from mm01_jax.convert.sources import CheckpointSource, Origin, TorchSource, buffer_problems, open_source, read_origin
from mm01_jax.convert.torch import decay, files, structure
from mm01_jax.convert.torch.settings import Settings
from mm01_jax.messages import listing, say, together


def check(source, against=None, *, check_finite: bool = False, log: Callable[[str], None] = say) -> None:
    """Checks the checkpoint in `source`, PyTorch's or ours.

    Without `against`: names, shapes and dtypes against its config, and every tensor whose digest is known.

    Args:
      against: a directory of either kind, or a list of digests alone: a manifest.json or a sha256.json. Where a
        manifest has the SHA-256 of the source's tensors, those are compared; else chunks.
      check_finite: read every tensor and refuse NaN and infinity.

    Raises:
      CheckpointError: it is damaged or differs; what differs alike is told together.
    """
    checkpoint = open_source(source, check_finite=check_finite)
    log(f"{checkpoint.directory}: {len(checkpoint.tensors):,} tensors have the names, shapes and dtype of the config")
    problems = buffer_problems(checkpoint)
    if against is None:
        what = _verify_itself(checkpoint, check_finite, problems)
    else:
        what = _compare(checkpoint, pathlib.Path(against), check_finite, problems)
    if problems:
        count = "1 difference" if len(problems) == 1 else f"{len(problems):,} differences"
        raise CheckpointError(f"{checkpoint.directory}: {count}:\n  " + listing(together(problems), "\n  "))
    log(f"{checkpoint.directory}: agrees with {what}")


def _compare(source, against: pathlib.Path, check_finite: bool, problems: list[str]) -> str:
    """Adds what differs to `problems`; says with what it was compared."""
    manifest = origin = None
    if against.is_file():
        plain = FILES.json(against)
        if "sha256" not in plain:  # with which a manifest begins
            problems += _sha256_problems(source, files.check_sha256s(against, plain)["tensors"])
            return f"the SHA-256 in {against}"
        manifest = read_manifest(against)
        origin = read_origin(manifest, against)
    elif (against / "state").is_dir() and isinstance(source, TorchSource):
        other = CheckpointSource(against)
        manifest, origin = other.checkpoint.manifest, other.origin
    known = manifest.source_sha256 if manifest else {}
    names = {source.dialect.torch_name(tensor) for tensor in source.tensors}
    if isinstance(source, TorchSource) and known and known.keys() <= names:
        problems += _settings_differences(source, origin.settings)
        problems += _sha256_problems(source, known, manifest.weights())
        return f"the SHA-256 in {against}"
    if against.is_file() and isinstance(source, TorchSource):
        what = f"lists no SHA-256 of the tensors of {source.directory}; give the checkpoint's directory"
        raise CheckpointError(f"{against}: {what}")
    if against.is_file():
        problems += _digest_problems(source, manifest, origin)
        return f"the digests in {against}"
    problems += _difference(source, open_source(against, check_finite=check_finite))
    return str(against)


def _settings_differences(source: TorchSource, origin: Settings) -> list[str]:
    """Fields of config.json that are not as the conversion read them; of another dialect, those of the maths."""
    plain = origin.plain
    problems = _config_differences(source.config.model, origin.config.model)
    if origin.dialect is not source.dialect:
        return problems
    names = [name for name in plain if not isinstance(plain[name], dict) and plain[name] != source.plain.get(name)]
    return problems + [f"config.json: {name}={source.plain.get(name)!r} against {plain[name]!r}" for name in names]


def _sha256_problems(source, known: dict[str, str], leaves: dict[str, Leaf] | None = None) -> list[str]:
    """Tensors whose bytes, in PyTorch's layout, have not the SHA-256 listed under their name.

    Args:
      leaves: of a conversion, which lists no SHA-256 of tensors in another dtype than most: their chunks are compared.
    """
    names = {source.dialect.torch_name(tensor): tensor for tensor in source.tensors}
    made = {buffer.name for buffer in decay.buffers(source.config.model, 1)}
    problems = [f"missing {structure.named(name)}" for name in known if name not in names and name not in made]
    problems += [f"surplus {name}" for name in names if name not in known and leaves is None]

    def one(tensor: table.Tensor) -> str | None:
        name = source.dialect.torch_name(tensor)
        if name not in known and leaves is None:
            return None
        try:
            if name not in known:
                return _chunk_problem(source, tensor, leaves)
            sha256 = source.sha256(tensor)
        except CheckpointError as error:
            return str(error)
        return None if sha256 == known[name] else f"{source.where(tensor)}: other bytes than the list's"

    return problems + [problem for problem in _each(source, one) if problem]


def _chunk_problem(source: TorchSource, tensor: table.Tensor, leaves: dict[str, Leaf]) -> str | None:
    leaf = leaves.get(tensor.leaf)
    if leaf is None:
        return f"surplus {source.dialect.torch_name(tensor)}"
    lanes = digest.chunk_digest(source.read(tensor).astype(leaf.dtype))
    same = (lanes == leaf.lanes[tensor.index]).all()
    return None if same else f"{source.where(tensor)}: other values than those of the conversion"


def _digest_problems(source: CheckpointSource, manifest: Manifest, origin: Origin | None) -> list[str]:
    """Leaves and chunks of one of our checkpoints that are not those of another's manifest."""
    leaves, other_leaves = source.checkpoint.manifest.weights(), manifest.weights()
    problems = _origin_differences(source, manifest, origin)
    problems += [f"missing {structure.named(path)}" for path in other_leaves if path not in leaves]
    problems += [f"surplus {structure.named(path)}" for path in leaves if path not in other_leaves]
    for path in sorted(leaves.keys() & other_leaves.keys()):
        a, b = ((x.dtype, list(x.shape), x.stack) for x in (leaves[path], other_leaves[path]))
        if a != b:
            problems.append(f"{path}: {a[0]}{a[1]} with {a[2]} stack axes against {b[0]}{b[1]} with {b[2]}")
            del other_leaves[path]

    def one(tensor: table.Tensor) -> str | None:
        try:
            source.read(tensor)  # as its own manifest says, or an error
        except CheckpointError as error:
            return str(error)
        if tensor.leaf not in other_leaves:
            return None
        same = (leaves[tensor.leaf].lanes[tensor.index] == other_leaves[tensor.leaf].lanes[tensor.index]).all()
        return None if same else f"{source.where(tensor)}: another digest than the manifest's"

    return problems + [problem for problem in _each(source, one) if problem]


def _origin_differences(source: CheckpointSource, manifest: Manifest, origin: Origin | None) -> list[str]:
    """Fields of the maths, where the manifest is a conversion's; of a training step it knows config.json's digest."""
    if origin:
        return _config_differences(source.config.model, origin.settings.config.model)
    same = source.checkpoint.manifest.files == manifest.files
    return [] if same else ["config.json: another file than the manifest's"]


def _difference(source, other) -> list[str]:
    """Maths fields, then chunks, bit by bit; of another dtype both are compared as the wider one."""
    problems = _config_differences(source.config.model, other.config.model)
    if (source.config.vision is None) != (other.config.vision is None):
        problems.append(f"only one of {source.directory} and {other.directory} has vision weights")
    other_chunks = {(tensor.leaf, tensor.index): tensor for tensor in other.tensors}
    chunks = {(tensor.leaf, tensor.index) for tensor in source.tensors}
    problems += [f"missing {leaf} {list(index)}" for leaf, index in sorted(other_chunks.keys() - chunks)]
    problems += [f"surplus {leaf} {list(index)}" for leaf, index in sorted(chunks - other_chunks.keys())]
    if source.dtype != other.dtype:
        problems.append(f"dtype {source.dtype} against {other.dtype}")

    def one(tensor: table.Tensor) -> str | None:
        twin = other_chunks.get((tensor.leaf, tensor.index))
        if twin is None:
            return None
        a, b = source.read(tensor), other.read(twin)
        name = f"{tensor.leaf} {list(tensor.index)} ({tensor.name})"
        if a.shape != b.shape:
            return f"{name}: shape {list(a.shape)} against {list(b.shape)}"
        if a.dtype == b.dtype:
            differ = np.count_nonzero(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}"))
        else:
            differ = np.count_nonzero(a.astype(np.float32) != b.astype(np.float32))
        return f"{name}: {differ:,} of {a.size:,} values differ" if differ else None

    return problems + [problem for problem in _each(source, one) if problem]


def _config_differences(model: ModelConfig, other: ModelConfig) -> list[str]:
    pairs = [(name, getattr(model, name), getattr(other, name)) for name in ModelConfig.__dataclass_fields__]
    return [f"config: {name}={a!r} against {b!r}" for name, a, b in pairs if a != b]


def _verify_itself(source, check_finite: bool, problems: list[str]) -> str:
    """Reads what can be verified, adding to `problems`; says with what it was compared."""
    torch = isinstance(source, TorchSource)
    if torch and not source.sha256s and not check_finite:
        return f"its config; no {files.SHA256S} here, so the contents were not read (compare with --against=MANIFEST)"

    def one(tensor: table.Tensor) -> str | None:
        try:
            source.read(tensor)
        except CheckpointError as error:
            return str(error)
        return None

    problems += [problem for problem in _each(source, one) if problem]
    if not torch:
        return f"its manifest (tree {source.checkpoint.manifest.tree_sha256()[:16]})"
    return f"its {files.SHA256S}" if source.sha256s else "its config; every value is finite"


def _each(source, work: Callable[[table.Tensor], str | None]) -> list[str | None]:
    itemsize = np.dtype(source.dtype).itemsize

    def nbytes(tensor: table.Tensor) -> int:
        return table.num_elements(tensor) * itemsize

    progress = Progress(sum(map(nbytes, source.tensors)), "check")

    def counted(tensor: table.Tensor) -> str | None:
        progress.start(source.dialect.torch_name(tensor), nbytes(tensor))
        result = work(tensor)
        progress.add(nbytes(tensor))
        return result

    return parallel.for_each(source.tensors, nbytes, counted)


def inspect(source, *, log: Callable[[str], None] = say) -> None:
    """Says what lies in a directory, without reading the weights.

    Raises:
      CheckpointError: it is no sound checkpoint.
    """
    checkpoint = open_source(source)
    elements = sum(map(table.num_elements, checkpoint.tensors))
    nbytes = elements * np.dtype(checkpoint.dtype).itemsize
    kind = "PyTorch directory" if isinstance(checkpoint, TorchSource) else "checkpoint of mm01_jax"
    log(f"{checkpoint.directory}: {kind}, dialect {checkpoint.dialect.name}")
    log(f"{len(checkpoint.tensors):,} tensors, {elements:,} parameters, {checkpoint.dtype}, {gigabytes(nbytes)}")
    if isinstance(checkpoint, TorchSource):
        shards = len(set(checkpoint.files.shard.values()))
        digests = f"{len(checkpoint.sha256s):,} SHA-256 listed" if checkpoint.sha256s else "no list of SHA-256"
        log(f"{shards} shard{'s' * (shards > 1)}, {len(checkpoint.buffers)} decay buffers, {digests}")
    else:
        manifest = checkpoint.checkpoint.manifest
        log(f"step {manifest.step}, tree {manifest.tree_sha256()}, {len(manifest.source_sha256):,} source SHA-256")
    for name in ModelConfig.__dataclass_fields__:
        log(f"  {name} = {getattr(checkpoint.config.model, name)!r}")
    if checkpoint.config.vision:
        log(f"  {checkpoint.config.vision!r}")
    log("leaf: shape (stack axes in front)")
    for path, leaf in table.leaves(checkpoint.tensors).items():
        log(f"  {path}: {list(leaf.shape[: leaf.stack])} {list(leaf.shape[leaf.stack :])}")
