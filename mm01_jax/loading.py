"""A model from any kind of directory on any mesh: each host reads what its devices hold, and little else."""

import dataclasses
import functools
import itertools
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mm01_jax import cluster, messages, sharding
from mm01_jax.checkpoint import FILES, Checkpoint, CheckpointError, check_finite, leaf_paths, open_checkpoint, place
from mm01_jax.checkpoint.errors import Unfit
from mm01_jax.checkpoint.reader import CHECKPOINTS
from mm01_jax.config import MESH_AXES, Config, ConfigError, MeshConfig, Problem, Rules, fields, mesh_sizes
from mm01_jax.config.causes import named_once
from mm01_jax.config.mesh import of_answers, weight_problems
from mm01_jax.convert import int8, parallel, table
from mm01_jax.convert.progress import Progress
from mm01_jax.convert.sources import TorchSource, check_buffers, is_checkpoint, with_dtype
from mm01_jax.data.tokenizer import TOKENIZER_FILE, Tokenizer, open_tokenizer
from mm01_jax.files import shown
from mm01_jax.model.abstract import abstract_model
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel
from mm01_jax.plan import automatic

DTYPES = ("bfloat16", "float32")
FORMS = ("int8", "int8_attention")
SHOWN_BYTES = 2**30  # from here on loading takes long enough to say how far it is


class Loaded(NamedTuple):
    """A model on its mesh, its tokenizer, and its config: as saved, with the mesh, dtype and tokenizer in use."""

    model: TextModel | VLModel
    tokenizer: Tokenizer
    config: Config


def load(
    path,
    mesh: Mesh | MeshConfig | str | None = None,
    dtype: str | None = None,
    *,
    tokenizer: str | None = None,
    allow_nonfinite: bool = False,
    quantize: str | None = None,
) -> Loaded:
    """The model, tokenizer and config in `path`: a run, one of its steps, a conversion, or a PyTorch directory.

    Config, tokenizer, mesh and weights are checked before any program of the model is made. Of several processes all
    call it, and each reads what its devices hold.

    Args:
      mesh: axes data, expert, tensor, sequence: a jax mesh, sizes ("data=2,tensor=4"), "auto" (plan/automatic.py), or
        None for one device.
      dtype: "bfloat16" or "float32", of weights and computation; None is what the run computes in.
      tokenizer: "bytes" or the path of a tokenizer.json; None is the checkpoint's own: `tokenizer.json` beside the
        weights, else what its config names.
      allow_nonfinite: take weights with NaN and infinity, too.
      quantize: "int8" keeps the experts' matrices as int8, "int8_attention" those of attention as well
        (docs/quantization.md); None keeps what is there.

    Raises:
      CheckpointError: there is nothing to load, it is damaged, or weights are not finite; names file and tensor.
      ConfigError: the mesh is none, not of these devices, or an axis does not divide a dim of the model.
      ValueError: a dtype or tokenizer that is none, or more ids than the model has; a tokenizer that is not named and
        not the one of the training.
    """
    opened = _open(path, dtype, quantize, of_computation=True)
    words = _tokenizer(pathlib.Path(path), opened.config, tokenizer)
    if not tokenizer:
        _check_tokenizer(opened, words)
    config = fields.replace(opened.config, "data.tokenizer", words.name)
    model, config = _onto(opened._replace(config=config), mesh, allow_nonfinite)
    return Loaded(model, words, config)


def load_as_asked(given) -> Loaded:
    """`load` with the flags of a command (`arguments.LOADING`), after the processes of its job have been joined."""
    cluster.join()
    cluster.let_the_first_print()
    options = {name: getattr(given, name) for name in ("tokenizer", "allow_nonfinite", "quantize")}
    return load(given.checkpoint, given.mesh, given.dtype, **options)


def load_tokenizer(path, tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer of `load` alone, for what needs no weights; errors as there."""
    opened = _open(path, None, None, of_computation=False)
    words = _tokenizer(pathlib.Path(path), opened.config, tokenizer)
    if not tokenizer:
        _check_tokenizer(opened, words)
    return words


def data_of(path) -> dict | None:
    """What the run in `path` was trained on (`Dataset.manifest`), None of what is no run."""
    if not is_checkpoint(path):
        return None
    data = open_checkpoint(path).manifest.meta.get("data")
    return data if isinstance(data, dict) else None


def digest_of(path) -> str | None:
    """The digest of the checkpoint in `path`; None of PyTorch's weights, which have none."""
    return open_checkpoint(path).manifest.tree_sha256() if is_checkpoint(path) else None


def is_without_run(path) -> bool:
    """Whether weights lie in `path` without the run they are of, which knows its data: PyTorch's, or converted."""
    if is_checkpoint(path):
        return open_checkpoint(path).manifest.step is None
    return any(pathlib.Path(path).glob("*.safetensors"))


def load_model(
    path,
    *,
    mesh: Mesh | MeshConfig | str | None = None,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    quantize: str | None = None,
) -> TextModel | VLModel:
    """The model alone, for what needs no text: `load` without a tokenizer, and None keeps the weights' own dtype."""
    return _onto(_open(path, dtype, quantize, of_computation=False), mesh, allow_nonfinite)[0]


class _Opened(NamedTuple):
    """A directory whose structure has been read; `config` has the dtype that is asked for, `quantize` what else is."""

    path: str
    source: Checkpoint | TorchSource
    config: Config
    quantize: str | None = None


def _open(path, dtype: str | None, quantize: str | None, *, of_computation: bool) -> _Opened:
    for key, got, names in (("dtype", dtype, DTYPES), ("quantize", quantize, FORMS)):
        if got not in (None, *names):
            near = fields.nearest_name(str(got), names) or names[0]
            raise ConfigError([Problem(key=key, got=got, allowed=f"{', '.join(names)} or None", nearest=near)])
    opened = _structure(path, dtype, of_computation=of_computation)
    if quantize and (form := opened.config.compute.quantize) != "none":
        raise ValueError(f"quantize={quantize!r}: the matrices of {path} are {form} already; leave it out")
    return opened._replace(quantize=quantize)


def _structure(path, dtype: str | None, *, of_computation: bool) -> _Opened:
    root = pathlib.Path(path)
    if is_checkpoint(root):
        checkpoint = open_checkpoint(root)
        if jax.process_index() == 0:
            messages.say_once(checkpoint.notice)
        config = checkpoint.config
        dtype = dtype or (config.compute.dtype if of_computation else None)
        return _Opened(str(path), checkpoint, with_dtype(config, dtype) if dtype else config)
    if root.is_dir() and not (root / "config.json").exists() and not any(root.glob("*.safetensors")):
        raise CheckpointError(f"{path}: no checkpoint here")
    source = TorchSource(root, rounds=dtype is not None)
    check_buffers(source)
    if source.dtype == "float16" and dtype is None:
        raise ValueError("dtype=None: the weights are float16; choose 'bfloat16' or 'float32'")
    return _Opened(str(path), source, with_dtype(source.config, dtype) if dtype else source.config)


def _onto(opened: _Opened, mesh, allow_nonfinite: bool) -> tuple[TextModel | VLModel, Config]:
    # A training step with rows beyond its bound refuses itself; an answer is not refused, and has no gradients to sum.
    config = opened.config
    for name, value in {"dropless_bound": None, "dropless_shard_bound": None, "reduce_dtype": "auto"}.items():
        config = fields.replace(config, f"compute.{name}", value)
    config, placed = _on_mesh(config, mesh)
    abstract = abstract_model(config, placed)
    nbytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    progress = Progress(nbytes // jax.process_count(), f"loading {opened.path}")
    shown = nbytes >= SHOWN_BYTES and jax.process_index() == 0
    count = progress.add if shown else lambda nbytes: None
    each = int8.each(config, placed, opened.quantize) if opened.quantize else lambda path, array: array
    if isinstance(opened.source, Checkpoint):
        # From our own format, whatever the mixers are: what conversion knows of them is not asked.
        model = opened.source.restore(abstract, cast=True, count=count, each=each)
    else:
        model = _convert(opened.source, abstract, count, each)
    if opened.quantize:
        config = int8.with_int8(config, opened.quantize)
        model = int8.assembled(config, placed, model)
    if not allow_nonfinite:
        check_finite(opened.path, model, placed, "; allow_nonfinite takes them as they are")
    with jax.set_mesh(placed):
        int8.check_scales(opened.path, config, model)
    return model, config


# The mesh.


def _on_mesh(config: Config, mesh: Mesh | MeshConfig | str | None) -> tuple[Config, Mesh]:
    """The config with the sizes of the mesh in it, and the mesh.

    Raises:
      ConfigError: no such mesh of these devices, or a dim of the model does not divide over it.
    """
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, rules=of_answers(config.mesh.rules)))
    sizes = _sizes(config, mesh)
    config = dataclasses.replace(config, mesh=sizes)
    problems = []
    if not isinstance(mesh, Mesh):
        problems = mesh_sizes.device_problems(sizes, jax.device_count(), jax.process_count(), key="mesh")
    if problems := problems or named_once(config, weight_problems):
        raise ConfigError(problems)
    if isinstance(mesh, Mesh):
        return config, mesh
    return config, sharding.make_mesh(sizes, jax.devices()[: sizes.size(MESH_AXES)])


def _sizes(config: Config, mesh: Mesh | MeshConfig | str | None) -> MeshConfig:
    """What was asked for, with the rules of `config` where it has none of its own."""
    if isinstance(mesh, MeshConfig):
        return mesh if mesh.rules != Rules() else dataclasses.replace(mesh, rules=config.mesh.rules)
    if mesh is None:
        return dataclasses.replace(config.mesh, **dict.fromkeys(MESH_AXES, 1))
    if isinstance(mesh, str):
        if mesh == mesh_sizes.AUTO:
            return automatic.choose(config, jax.devices())
        return mesh_sizes.parse(mesh, config.mesh, key="mesh", auto=True)
    if not isinstance(mesh, Mesh) or mesh.axis_names != MESH_AXES:
        allowed = f"a jax mesh with the axes {', '.join(MESH_AXES)}, a MeshConfig, text or None"
        nearest = "'auto'"
        raise ConfigError([Problem(key="mesh", got=mesh, allowed=allowed, nearest=nearest)])
    return dataclasses.replace(config.mesh, **mesh.shape)


# The tokenizer.


def _tokenizer(root: pathlib.Path, config: Config, asked: str | None) -> Tokenizer:
    name = asked or config.data.tokenizer
    # A step's lies with its run.
    folders = [root, *root.absolute().parents[1:2]] if root.absolute().parent.name == CHECKPOINTS else [root]
    beside = next((folder / TOKENIZER_FILE for folder in folders if os.path.lexists(folder / TOKENIZER_FILE)), None)
    if not asked and beside is not None:
        FILES.check(beside, root=beside.parent)
        name = str(beside)
    elif not asked and name != "bytes" and not os.path.isfile(name):
        raise ValueError(
            f"{root}: no {TOKENIZER_FILE} beside the weights, and data.tokenizer={name!r} is no file here: put the "
            "tokenizer of the model there"
        )
    try:
        words = open_tokenizer(name)
    except ValueError as error:
        raise error if asked else CheckpointError(str(error)) from None
    if words.vocab_size > config.model.vocab_size:
        raise (ValueError if asked else Unfit)(
            f"tokenizer {words.name!r} has ids up to {words.vocab_size - 1}; allowed: below "
            f"model.vocab_size={config.model.vocab_size} of {root}, so it is another model's"
        )
    return words


def _check_tokenizer(opened: _Opened, words: Tokenizer) -> None:
    """Raises Unfit where the weights were trained on the tokens of another one: its ids mean other words."""
    trained = opened.source.manifest.tokenizer if isinstance(opened.source, Checkpoint) else None
    if trained is not None and trained != words.fingerprint:
        raise Unfit(
            f"{opened.path}: trained with the tokenizer {shown(trained)}, and {words.name} is {words.fingerprint}: its "
            f"ids mean other words. Put the right one there, or go on knowingly: --tokenizer={words.name}"
        )


# Weights out of a PyTorch directory.


def _convert(source: TorchSource, abstract, count, each) -> TextModel | VLModel:
    chunks: dict[str, dict[tuple, table.Tensor]] = {}
    for tensor in source.tensors:
        chunks.setdefault(tensor.leaf, {})[tensor.index] = tensor
    stacks = {path: leaf.stack for path, leaf in table.leaves(source.tensors).items()}
    arrays = [
        each(path, place(shape, functools.partial(_read, source, chunks[path], stacks[path], shape.dtype, count)))
        for path, shape in zip(leaf_paths(abstract), jax.tree.leaves(abstract), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _read(source: TorchSource, chunks: dict[tuple, table.Tensor], stack: int, dtype, count, box) -> np.ndarray:
    """A box of a leaf, chunk by chunk."""
    out = np.empty([s.stop - s.start for s in box], dtype)

    def one(index: tuple[int, ...]) -> None:
        part = out[tuple(i - s.start for i, s in zip(index, box, strict=False))]
        part[...] = source.fitted(chunks[index], source.read_box(chunks[index], box[stack:]), dtype)
        count(part.nbytes)

    indices = list(itertools.product(*(range(s.start, s.stop) for s in box[:stack])))
    parallel.for_each(indices, lambda index: out.nbytes // len(indices), one)
    return out
