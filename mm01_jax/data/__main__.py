"""mm01_jax.data: what a source of data holds: documents, tokens, lengths, samples, what was skipped and why.

  python -m mm01_jax.data inspect --source=tokens
  python -m mm01_jax.data inspect --source=texts --picture=lengths.svg

Exit codes: 0 done, 2 what was typed is wrong, 3 bad checkpoint or data, 74 a full or broken disk,
130 interrupted.
"""

import importlib.util
import pathlib
import sys
import types
from collections.abc import Sequence

from mm01_jax import arguments, command
from mm01_jax.flag import Command, Flag, Task


def _inspect(given: types.SimpleNamespace) -> None:
    _check_picture(given.picture)
    from mm01_jax.data import inspection

    options = {"samples": given.samples, "verify": given.verify, "text_field": given.text_field}
    found = inspection.inspect(given.source, **options)
    print("\n".join(inspection.report(found)))
    if given.picture:
        inspection.draw(found, given.picture)
        print(f"wrote {given.picture}")


def _check_picture(path: str | None) -> None:
    if path is None:
        return
    if pathlib.Path(path).suffix not in (".svg", ".png", ".pdf"):
        raise arguments.refused("--picture", path, "a file that ends in .svg, .png or .pdf", "--picture=lengths.svg")
    if not importlib.util.find_spec("matplotlib"):
        raise ValueError("--picture needs the `plots` extra: pip install 'mm01_jax[plots]'.")


COMMAND = Command(
    name="mm01_jax.data",
    doc=__doc__,
    tasks={
        "inspect": Task(
            "what a folder of tokens or a text holds",
            (
                Flag("source", "a folder of tokens, or whatever data.source takes", example="tokens", required=True),
                Flag("samples", "documents whose beginning is shown", int, 3, least=0, most=1000),
                Flag("verify", "look at every byte of the tokens, too", bool, default=False),
                Flag(
                    "picture",
                    "a file for the histogram of lengths: .svg, .png, .pdf",
                    example="lengths.svg",
                    writes=True,
                ),
                Flag("text_field", "the key of the text in lines of JSON, the column of Parquet", default="text"),
            ),
            _inspect,
        )
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return command.run(_run, argv, name=COMMAND.name)


def _run(argv: Sequence[str]) -> None:
    given = arguments.read(COMMAND, argv)
    COMMAND.tasks[given.task].run(given)


if __name__ == "__main__":
    sys.exit(main())
