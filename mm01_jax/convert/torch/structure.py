"""What is wrong with the names, shapes and dtypes of a checkpoint, all of it at once, before any data is read."""

import collections
import itertools
import re
from collections.abc import Callable

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.config import Config, ModelConfig
from mm01_jax.convert import table
from mm01_jax.convert.torch import decay, header
from mm01_jax.convert.torch.dialects import Dialect
from mm01_jax.convert.torch.files import TensorFiles
from mm01_jax.files import quoted
from mm01_jax.messages import grouped

_SHARED = re.compile(r"\.(shared_mlp|coefficient)\.")
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_WEIGHTS = ("bfloat16", "float32", "float16")
_MOST_EXPERTS = 30_000  # with the vision blocks; Text-01 has 2,560, and each is three tensors to list
_MOST_TOLD = 10_000  # names that are looked at one by one, so that those alike are told together
# Kind of layer -> its first tensor, which no other kind has.
_FIRST = {
    kind: re.compile(re.escape(mixer.rows[0].torch).replace(r"\{layer\}", r"([0-9]{1,6})") + "$")
    for kind, mixer in table.MIXERS.items()
}


def check_count(config: Config, where: str) -> None:
    """Raises CheckpointError where a config gives more tensors than any model has, before they are listed."""
    counts = {"layers": config.model.num_layers, "experts": config.model.num_experts}
    counts |= {"vision blocks": config.vision.num_layers} if config.vision else {}
    total = counts["layers"] * counts["experts"] + counts.get("vision blocks", 0)
    if total > _MOST_EXPERTS:
        got = " and ".join(f"{count:,} {name}" for name, count in counts.items())
        raise CheckpointError(f"{where}: {got}; allowed: at most {_MOST_EXPERTS:,} experts in all layers together")


def common_dtype(files: TensorFiles) -> str:
    """The dtype that most tensors have, as NumPy writes it."""
    counts = collections.Counter(entry.dtype for entry in files.entries.values())
    if not counts:
        raise CheckpointError(f"{files.directory}: no tensors")
    found = counts.most_common(1)[0][0]
    return header.DTYPES.get(found, found)


def decay_buffers(files: TensorFiles, model: ModelConfig, dialect: Dialect, plain: dict) -> list[decay.Buffer]:
    """The decay buffers that a native checkpoint should hold: all of them, or none if it holds none."""
    if not dialect.native:
        return []
    expected = list(decay.buffers(model, plain.get("block_size", 256)))
    return expected if any(buffer.name in files.entries for buffer in expected) else []


def problems(source) -> list[str]:
    """Layers of another kind, missing, surplus, mis-shaped tensors, wrong dtypes of a TorchSource."""
    entries, dialect = source.files.entries, source.dialect
    shapes = {dialect.torch_name(tensor): tensor.shape for tensor in source.tensors}
    shapes |= {buffer.name: buffer.shape for buffer in source.buffers}
    problems = _layer_kinds(entries, source.config.model)
    problems += _dtypes(source)
    problems += _grouped("missing", [name for name in shapes if name not in entries])
    surplus = [name for name in entries if name not in shapes]
    problems += _grouped("surplus", surplus, lambda name: f"{named(name)}{_surplus_advice(name)}")
    return problems + _shapes(source, shapes)


def _grouped(what: str, names: list[str], said: Callable[[str], str] = str) -> list[str]:
    """`grouped`, of very many names how many they are, and the first. said: what one is in words."""
    told = grouped(what, map(said, names[:_MOST_TOLD]))
    return [f"{what} {len(names):,} tensors", *told] if len(names) > _MOST_TOLD else told


def _shapes(source, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Tensors of another shape than config.json gives; of many, which one size of it has made, how many and one."""
    entries = source.files.entries
    other = [name for name, shape in shapes.items() if name in entries and entries[name].shape != shape]
    told = {
        name: f"tensor {name} has shape {list(entries[name].shape)}, config.json gives {list(shapes[name])} "
        f"({source.files.shard[name]})"
        for name in other
    }
    if len(other) <= 3:
        return list(told.values())
    plainest = min(other, key=lambda name: len(shapes[name]))
    return [f"{len(other):,} of {len(entries):,} tensors have other shapes than config.json gives: {told[plainest]}"]


def _dtypes(source) -> list[str]:
    """A dtype that weights cannot have, or most tensors have not; tensors of a dtype that is not theirs nor wider."""
    config = source.directory / "config.json"
    if source.dtype not in _WEIGHTS:
        return [f"{config}: torch_dtype (or dtype) = {quoted(source.dtype)}; allowed: {', '.join(_WEIGHTS)}"]
    most = common_dtype(source.files)
    if most != source.dtype:
        count = sum(header.DTYPES.get(e.dtype, e.dtype) == most for e in source.files.entries.values())
        got = f"{count:,} of {len(source.files.entries):,} tensors are {most}"
        return [f"{config}: torch_dtype (or dtype) = {source.dtype}, but {got}"]
    entries, shard = source.files.entries, source.files.shard
    others = [name for name, entry in entries.items() if header.DTYPES.get(entry.dtype) not in (most, "float32")]

    def said(name: str) -> str:
        return f"{named(name)} of {shard[name]} is {entries[name].dtype}, the weights are {source.dtype}"

    return _grouped("tensor", others, said)


def _layer_kinds(entries: dict, model: ModelConfig) -> list[str]:
    problems = []
    for name, (tensors, first) in itertools.product(entries, _FIRST.items()):
        match = first.search(name)
        if match and int(match[1]) < model.num_layers:
            kind = model.period[int(match[1]) % len(model.period)]
            if kind != tensors:
                what = f"the tensors are {tensors} attention's, attn_type_list (or layer_types) says {kind}"
                problems.append(f"layer {match[1]}: {what}")
    return problems


def named(name: str) -> str:
    """A tensor's name that may be anything: in quotes where a space, or what looks like a letter, would not be seen."""
    return name if len(name) < 200 and _PLAIN.fullmatch(name) else quoted(name)


def _surplus_advice(name: str) -> str:
    return " (a shared expert, which this model does not have)" if _SHARED.search(name) else ""


def leaf_problems(stored: dict, leaves: dict[str, table.Leaf]) -> list[str]:
    """Missing, surplus and mis-shaped leaves of one of our checkpoints."""
    problems = grouped("missing", (path for path in leaves if path not in stored))
    problems += grouped("surplus", (named(path) for path in stored if path not in leaves))
    for path in leaves.keys() & stored.keys():
        found, wanted = (f"shape {list(one.shape)}, {one.stack} of it stacked" for one in (stored[path], leaves[path]))
        if found != wanted:
            problems.append(f"{path} has {found}; the config gives {wanted}")
    dtypes = collections.Counter(leaf.dtype for leaf in stored.values())
    if len(dtypes) > 1 or not dtypes.keys() <= {"bfloat16", "float32"}:
        rarest = min(dtypes, key=dtypes.get)
        which = next(named(path) for path, leaf in stored.items() if leaf.dtype == rarest)
        said = f"leaves of dtype {', '.join(sorted(dtypes))}, the first of {rarest} {which}"
        problems.append(f"{said}; allowed: all bfloat16 or all float32")
    return sorted(problems)
