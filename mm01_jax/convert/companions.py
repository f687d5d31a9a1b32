"""What lies beside the weights and goes with them, either way: the tokenizer, and how it writes conversations.

A run names its tokenizer in its config, and a PyTorch directory has no such config: an export gets the file, and a
byte-level model one that says so (`tokenizer.bytes_json`), which comes back as bytes.
"""

import json
import pathlib
import shutil

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.data.tokenizer import TOKENIZER_FILE, bytes_json

NAMES = (TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja")


def copy(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies those that lie in `source`; their names.

    Raises:
      CheckpointError: one is a link out of the directory.
    """
    present = [name for name in NAMES if (source / name).is_file()]
    for name in present:
        if not (source / name).resolve().is_relative_to(source.resolve()):
            raise CheckpointError(f"{source / name}: a link out of the directory; copy the file into it")
        shutil.copyfile(source / name, target / name)
    return present


def export(source: pathlib.Path, target: pathlib.Path, named: str | None) -> str | None:
    """The same, and the tokenizer that the config of a run names (None: no run named one); what to say if none came."""
    if TOKENIZER_FILE in copy(source, target):
        return None
    if named == "bytes":
        (target / TOKENIZER_FILE).write_text(json.dumps(bytes_json()), encoding="utf-8")
        return None
    if named and pathlib.Path(named).is_file():
        shutil.copyfile(named, target / TOKENIZER_FILE)
        return None
    return f"no {TOKENIZER_FILE} came along: there is none beside the weights{f', nor at {named!r}' if named else ''}"
