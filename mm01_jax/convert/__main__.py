"""mm01-convert: weights between PyTorch directories and our checkpoints (docs/conversion.md).

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, and what `check` finds to differ or `certify`
not to agree, 130 interrupted.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax

from mm01_jax import command
from mm01_jax.convert import check, from_torch, to_torch
from mm01_jax.convert.certify import judge, logits
from mm01_jax.convert.torch.dialects import DIALECTS

_DTYPES = ("bfloat16", "float32")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    advice = "interrupted; a conversion goes on with the same command"
    return command.run(_run, argv, name="mm01-convert", interrupted=advice)


def _run(argv: Sequence[str] | None) -> int | None:
    arguments = _parser().parse_args(argv)
    # Conversion needs no accelerator, and must not take one from a training run beside it.
    jax.config.update("jax_platforms", "cpu")
    _check_paths(arguments)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    description, exit_codes = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(prog="mm01-convert", description=description, epilog=exit_codes)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = _command(commands, "from-torch", "a PyTorch directory into our format", _from_torch, target=True)
    one.add_argument("--check-finite", action="store_true", help="refuse NaN and infinity")
    one = _command(commands, "to-torch", "our format into a PyTorch directory", _to_torch, target=True)
    one.add_argument("--dialect", choices=tuple(DIALECTS), help="default: the one the weights came from")
    gigabytes = to_torch.SHARD_BYTES / 1e9
    one.add_argument("--shard-gb", type=float, default=gigabytes, help="largest shard, at most 5 (default %(default)s)")
    one = _command(commands, "check", "against its config, its digests, or --against", _check)
    one.add_argument("--against", help="a directory of either kind, a state/manifest.json or a sha256.json")
    one.add_argument("--check-finite", action="store_true", help="refuse NaN and infinity")
    _command(commands, "inspect", "say what lies in a directory", _inspect)
    one = _command(commands, "logits", "float32 logits and states on token ids", _logits)
    one.add_argument("--ids", required=True, help=".npy of token ids (batch, time)")
    one.add_argument("--out", required=True, help=".npz to write")
    one = _command(commands, "certify", "compare the maths with another checkpoint's or implementation's", _certify)
    one.add_argument("--against", required=True, help="a checkpoint directory, or an .npz with logits and states")
    one.add_argument("--ids", help=".npy of token ids (batch, time); default those in the .npz")
    return parser


def _command(commands, name: str, words: str, run, *, target: bool = False) -> argparse.ArgumentParser:
    one = commands.add_parser(name, help=words, description=words)
    one.set_defaults(run=run)
    one.add_argument("--source", required=True, help="a directory with a checkpoint")
    if target:
        one.add_argument("--target", required=True, help="a directory to make; must not exist")
        one.add_argument("--dtype", choices=_DTYPES, help="cast every weight; default: keep the bits")
        one.add_argument("--dry-run", action="store_true", help="only say what would be done")
    return one


def _check_paths(a) -> None:
    """A mistyped path is a mistake in the command, not a damaged checkpoint."""
    for option in ("source", "against", "ids"):
        path = getattr(a, option, None)
        if path is not None and not pathlib.Path(path).exists():
            raise ValueError(f"--{option}={path}: no such file or directory")


def _from_torch(a) -> None:
    from_torch.from_torch(a.source, a.target, dtype=a.dtype, check_finite=a.check_finite, dry_run=a.dry_run)


def _to_torch(a) -> None:
    if not 0 < a.shard_gb <= 5:
        raise ValueError(f"--shard-gb={a.shard_gb}; allowed: above 0, at most 5")
    shard_bytes = int(a.shard_gb * 1e9)
    options = {"dialect": a.dialect, "dtype": a.dtype, "shard_bytes": shard_bytes, "dry_run": a.dry_run}
    to_torch.to_torch(a.source, a.target, **options)


def _check(a) -> None:
    check.check(a.source, a.against, check_finite=a.check_finite)


def _inspect(a) -> None:
    check.inspect(a.source)


def _logits(a) -> None:
    if not pathlib.Path(a.out).absolute().parent.is_dir():  # said before hours of work, not after
        raise ValueError(f"--out={a.out}: {pathlib.Path(a.out).parent} is no directory")
    arrays = logits.compute(a.source, _ids(a.ids))
    logits.save(a.out, arrays)
    print(f"{a.out}: " + ", ".join(f"{name}{list(array.shape)}" for name, array in arrays.items()))


def _certify(a) -> int:
    verdict = judge.certify(a.source, a.against, ids=_ids(a.ids) if a.ids else None)
    return 0 if verdict.agrees else 3


def _ids(path: str):
    arrays = logits.read_arrays(path)
    if "ids" not in arrays:
        raise ValueError(f"--ids={path}: no array 'ids'")
    return arrays["ids"]


if __name__ == "__main__":
    sys.exit(main())
