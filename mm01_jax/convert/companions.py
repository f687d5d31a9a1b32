"""What lies beside the weights and goes with them, either way: the tokenizer, and how it writes conversations.

A run names its tokenizer in its config, and a PyTorch directory has no such config: an export gets the file, and a
byte-level model one that says so (`tokenizer.bytes_json`), which comes back as bytes.
"""

import json
import os
import pathlib

from mm01_jax.checkpoint import FILES, CheckpointError
from mm01_jax.data.tokenizer import MOST_BYTES, TOKENIZER_FILE, bytes_json, fingerprint, open_tokenizer
from mm01_jax.files import quoted, shown, write

NAMES = (TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja")


def check(source: pathlib.Path, trained: str | None = None) -> None:
    """CheckpointError where one of those that lie in `source` could not be copied: said before the weights are.

    trained: the fingerprint of the tokenizer that the weights were trained with; what lies there may be no other.
    """
    for name in _present(source):
        FILES.read(source / name, root=source, most=MOST_BYTES)
    place = source / TOKENIZER_FILE
    if trained and os.path.lexists(place) and (found := fingerprint(place)) != trained:
        raise CheckpointError(f"{place}: is {found}, and the weights were trained with {shown(trained)}; remove it")


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


def export(source: pathlib.Path, target: pathlib.Path, named: str | None, trained: str | None = None) -> str | None:
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
    if trained not in (None, fingerprint(named)):
        return f"no {TOKENIZER_FILE} came along: {quoted(named)} is not the one that the weights were trained with"
    write(target / TOKENIZER_FILE, FILES.read(named, most=MOST_BYTES))
    return f"{TOKENIZER_FILE} is a copy of {quoted(named)}, which the config of the run names"
