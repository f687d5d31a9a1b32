"""What lies beside the weights and goes with them, either way: the tokenizer, and how it writes conversations.

A run names its tokenizer in its config, and a PyTorch directory has no such config: an export gets the file, and a
byte-level model one that says so (`tokenizer.bytes_json`), which comes back as bytes.
"""

import json
import os
import pathlib

from mm01_jax.checkpoint import FILES
from mm01_jax.data.tokenizer import MOST_BYTES, TOKENIZER_FILE, bytes_json, open_tokenizer
from mm01_jax.files import quoted, write

NAMES = (TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja")


def check(source: pathlib.Path) -> None:
    """CheckpointError where one of those that lie in `source` could not be copied: said before the weights are."""
    for name in _present(source):
        FILES.check(source / name, root=source, most=MOST_BYTES)


def _present(source: pathlib.Path) -> list[str]:
    """Also what is no file: left out, it would be missed when nobody looks any more."""
    return [name for name in NAMES if os.path.lexists(source / name)]


def copy(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies those that lie in `source`; their names.

    Raises:
      CheckpointError: one is no file, leads out of the directory, or is too large.
    """
    present = _present(source)
    for name in present:
        write(target / name, FILES.read(source / name, root=source, most=MOST_BYTES))
    return present


def export(source: pathlib.Path, target: pathlib.Path, named: str | None) -> str | None:
    """The same, and the tokenizer that the config of a run names (None: no run named one); what there is to say.

    A stranger's config may name any file of yours: what is no tokenizer does not go into what others shall read.
    """
    if TOKENIZER_FILE in copy(source, target):
        return None
    if named == "bytes":
        write(target / TOKENIZER_FILE, json.dumps(bytes_json()).encode())
        return None
    if named is None:
        return f"no {TOKENIZER_FILE} came along: there is none beside the weights"
    try:
        open_tokenizer(named)
    except ValueError as error:
        return f"no {TOKENIZER_FILE} came along: there is none beside the weights, and {error}"
    write(target / TOKENIZER_FILE, FILES.read(named, most=MOST_BYTES))
    return f"{TOKENIZER_FILE} is a copy of {quoted(named)}, which the config of the run names"
