"""mm01-convert: weights between PyTorch directories and our checkpoints, on the CPU (docs/conversion.md).

  mm01-convert from-torch --source=MiniMax-Text-01 --target=text_01
  mm01-convert to-torch --source=text_01 --target=back
  mm01-convert check --source=MiniMax-Text-01 --against=text_01
  mm01-convert quantize --source=text_01 --target=text_01_int8 --report=int8.json

`python -m mm01_jax.convert` is the same.

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, and what `check` finds to differ or `certify`
not to agree, 74 a full or broken disk,
130 interrupted.
"""

import pathlib
import sys
from collections.abc import Sequence

from mm01_jax import arguments, command, compile_cache
from mm01_jax.flag import Command, Flag, Task

_SOURCE = Flag("source", "a directory with a checkpoint", example="DIR", required=True, reads="a directory")
_TARGET = Flag("target", "a directory to make; must not exist", example="DIR", required=True)
# As in convert.torch.dialects, which imports NumPy: a command is read before anything is imported.
_DIALECTS = ("original", "m1", "native", "vl-01")
FORMS = ("int8", "int8_attention")  # as in loading.py
_DTYPE = Flag("dtype", "cast every weight; otherwise the bits are kept", ("bfloat16", "float32"))
_DRY_RUN = Flag("dry_run", "only say what would be done", bool, default=False)
_CHECK_FINITE = Flag("check_finite", "refuse NaN and infinity", bool, default=False)
_IDS = Flag("ids", ".npy of token ids (batch, time)", example="FILE", reads="a file")
_IMAGES = (
    Flag(
        "pixels", ".npy of the images' normalised tiles, float32 (tiles, 3, side, side)", example="FILE", reads="a file"
    ),
    Flag("image_sizes", ".npy of the images' [[height, width], ...]", example="FILE", reads="a file"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one task; returns the exit code."""
    advice = "interrupted; a conversion goes on with the same command"
    return command.run(_convert, argv, name="mm01-convert", interrupted=advice)


def _convert(argv: Sequence[str]) -> int | None:
    given = arguments.read(COMMAND, argv)
    import jax

    if not getattr(given, "mesh", None):
        # Conversion needs no accelerator, and must not take one from a training run beside it.
        jax.config.update("jax_platforms", "cpu")
    if given.compile_cache:
        compile_cache.use()
    return COMMAND.tasks[given.task].run(given)


def _from_torch(a) -> None:
    from mm01_jax.convert import from_torch

    from_torch.from_torch(a.source, a.target, dtype=a.dtype, check_finite=a.check_finite, dry_run=a.dry_run)


def _to_torch(a) -> None:
    if not 0 < a.shard_gb <= 5:
        raise ValueError(f"--shard-gb={a.shard_gb}; allowed: above 0, at most 5")
    from mm01_jax.convert import to_torch

    shard_bytes = int(a.shard_gb * 1e9)
    options = {"dialect": a.dialect, "dtype": a.dtype, "shard_bytes": shard_bytes, "dry_run": a.dry_run}
    to_torch.to_torch(a.source, a.target, **options)


def _check(a) -> None:
    from mm01_jax.convert import check

    check.check(a.source, a.against, check_finite=a.check_finite)


def _inspect(a) -> None:
    from mm01_jax.convert import check

    check.inspect(a.source)


def _quantize(a) -> None:
    from mm01_jax.convert import quantize

    errors = quantize.quantize(a.source, a.target, form=a.format, dtype=a.dtype)
    if a.report:  # two models may not fit in memory, and the target is there now
        quantize.write_report(pathlib.Path(a.report), errors, [])
    layers = _layers_of_both(a) if a.tokens else []
    for line in quantize.lines(errors, layers):
        print(line)
    if a.report:
        quantize.write_report(pathlib.Path(a.report), errors, layers)


def _layers_of_both(a) -> list:
    """What `quantize.compare` finds on ids of a fixed seed."""
    import numpy as np

    from mm01_jax.convert import int8_layers
    from mm01_jax.loading import load_model

    loaded = [load_model(path, dtype="float32") for path in (a.source, a.target)]
    model, other = (getattr(model, "text", model) for model in loaded)  # a tower's matrices are none of int8
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, a.tokens), np.int32)
    return int8_layers.compare(model, other, ids)


def _logits(a) -> None:
    from mm01_jax.convert.certify import logits

    ids, images = _ids(a.ids), _images(a)
    if a.mesh and images is not None:
        raise ValueError("--mesh: images are seen in NumPy alone; leave --mesh or the images out")
    arrays = _logits_on_mesh(a, ids) if a.mesh else logits.compute(a.source, ids, images, a.ids)
    if arrays is None:
        return
    logits.save(a.out, arrays)
    print(f"{a.out}: " + ", ".join(f"{name}{list(array.shape)}" for name, array in arrays.items()))


def _logits_on_mesh(a, ids):
    """The model itself instead of NumPy's layer by layer; None in all processes but the first, which writes."""
    from mm01_jax import cluster
    from mm01_jax.convert.certify import logits
    from mm01_jax.inference.logits import logits_and_states
    from mm01_jax.loading import load_model

    cluster.join()
    model = load_model(a.source, mesh=a.mesh, dtype="float32")
    logits.check_ids(ids, model.config.vocab_size, a.ids)
    arrays = {"ids": ids, **logits_and_states(model, ids)}
    return arrays if cluster.is_first() else None


def _certify(a) -> int:
    from mm01_jax.convert.certify import judge

    given = {"ids": _ids(a.ids), "where": a.ids} if a.ids else {}
    verdict = judge.certify(a.source, a.against, images=_images(a), **given)
    return 0 if verdict.agrees else 3


def _ids(path: str):
    from mm01_jax.checkpoint import CheckpointError
    from mm01_jax.convert.certify import logits

    arrays = logits.read_arrays(path)
    if "ids" not in arrays:
        raise CheckpointError(f"{path}: no array 'ids'")
    return arrays["ids"]


def _images(a):
    """The images that two flags name, None where neither is given."""
    if a.pixels is None and a.image_sizes is None:
        return None
    if a.pixels is None or a.image_sizes is None:
        absent = "--pixels" if a.pixels is None else "--image-sizes"
        raise ValueError(f"{absent} is missing: the tiles of images and their sizes go together")
    from mm01_jax.convert.certify import images

    return images.read(a.pixels, a.image_sizes)


COMMAND = Command(
    name="mm01-convert",
    doc=__doc__,
    flags=(arguments.COMPILE_CACHE,),
    tasks={
        "from-torch": Task(
            "a PyTorch directory into our format", (_SOURCE, _TARGET, _DTYPE, _CHECK_FINITE, _DRY_RUN), _from_torch
        ),
        "to-torch": Task(
            "our format into a PyTorch directory",
            (
                _SOURCE,
                _TARGET,
                _DTYPE,
                Flag("dialect", "otherwise the one the weights came from", _DIALECTS),
                Flag("shard_gb", "largest shard in GB, at most 5", float, default=4.9),
                _DRY_RUN,
            ),
            _to_torch,
        ),
        "check": Task(
            "against its config, its digests, or --against",
            (
                _SOURCE,
                Flag(
                    "against",
                    "a directory of either kind, a state/manifest.json or a sha256.json",
                    example="PATH",
                    reads="a file or directory",
                ),
                _CHECK_FINITE,
            ),
            _check,
        ),
        "quantize": Task(
            "matrices of experts as int8, one scale a column (docs/quantization.md)",
            (
                _SOURCE,
                _TARGET,
                Flag("format", "int8: the experts'; int8_attention: the attention's as well", FORMS, default=FORMS[0]),
                _DTYPE,
                Flag(
                    "report",
                    "error of each layer's matrices, agreement of the routers, as JSON",
                    example="int8.json",
                    writes=True,
                ),
                Flag(
                    "tokens",
                    "on which both models are run, in memory; 0: neither is",
                    int,
                    default=256,
                    least=0,
                    most=1 << 20,
                ),
            ),
            _quantize,
        ),
        "inspect": Task("say what lies in a directory", (_SOURCE,), _inspect),
        "logits": Task(
            "float32 logits and states on token ids, one layer in memory at a time",
            (
                _SOURCE,
                _IDS._replace(required=True),
                *_IMAGES,
                Flag("out", ".npz to write", example="logits.npz", required=True, writes=True),
                arguments.MESH._replace(words="run the model itself, in float32 on these devices, or auto"),
            ),
            _logits,
        ),
        "certify": Task(
            "compare the maths with another checkpoint's or implementation's",
            (
                _SOURCE,
                Flag(
                    "against",
                    "a checkpoint directory, or an .npz with logits and states",
                    example="PATH",
                    required=True,
                    reads="a file or directory",
                ),
                _IDS._replace(words=f"{_IDS.words}; otherwise those in the .npz"),
                *_IMAGES,
            ),
            _certify,
        ),
    },
)


if __name__ == "__main__":
    sys.exit(main())
