"""The manifest of a folder of tokens, when all its shards are there."""

import hashlib
import json
from typing import Any

from mm01_jax.data import token_files
from mm01_jax.data.corpus import FileSummary, check_duplicates, fingerprint
from mm01_jax.data.text import DataError
from mm01_jax.data.token_files import LISTED, MANIFEST
from mm01_jax.data.tokenize.plan import Plan
from mm01_jax.data.tokenize.shard import check_bad, read_summary
from mm01_jax.files import write


def missing(plan: Plan) -> list[int]:
    """Shards that have not been made."""
    return [number for number in range(len(plan.shards)) if not token_files.paths(plan.out, number).summary.exists()]


def finish(plan: Plan) -> dict[str, Any]:
    """Writes the manifest; it is the same whoever writes it, and however often.

    Raises:
      DataError: more bad records than are allowed, the same file of records twice, no text at all.
    """
    summaries = [read_summary(plan.out, number) for number in range(len(plan.shards))]
    bad = [label for summary in summaries for label in summary["bad_records"]]
    check_bad(sum(summary["bad"] for summary in summaries), bad, plan.asked.max_bad_records)
    files = _files(plan, summaries)
    check_duplicates(files)
    total = {name: sum(summary[name] for summary in summaries) for name in token_files.TOTALS}
    if not total["documents"]:
        raise DataError(f"No document is left of {len(files)} files: {'; '.join(bad[:5])}.")
    listed = {name: [file.documents, file.size, file.digest] for name, file in files.items()}
    columns = ("documents", "tokens", "tokens_bytes", "tokens_sha256", "index_sha256")
    facts = {key: plan.facts[key] for key in token_files.PLANNED}
    manifest = (
        facts
        | total
        | {
            "fingerprint": fingerprint(files),
            "num_files": len(files),
            "files": listed if len(listed) <= LISTED else {},
            "bad_records": bad[:LISTED],
            "shards": [[summary[name] for name in columns] for summary in summaries],
        }
    )
    write(plan.out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _files(plan: Plan, summaries: list[dict[str, Any]]) -> dict[str, FileSummary]:
    """What each file of the source holds, as a look at the text itself finds it."""
    files: dict[str, FileSummary] = {}
    name, documents, size, sha = None, 0, 0, hashlib.sha256()

    def end() -> None:
        if name is not None:
            files[name] = FileSummary(documents=documents, size=size, digest=sha.hexdigest())

    for number, summary in enumerate(summaries):
        index = None
        if summary["documents"]:
            index = token_files.read_index(plan.out, number, summary["documents"], summary["index_sha256"])
        for place, piece in enumerate(plan.shards[number]):
            if piece.shard.name != name:
                end()
                name, documents, size, sha = piece.shard.name, 0, 0, hashlib.sha256()
            if index is not None:
                first, last = index["file"].searchsorted([place, place + 1])
                rows = index[first:last]
                documents, size = documents + len(rows), size + int(rows["size"].sum())
                sha.update(rows["text"].tobytes())
    end()
    return files
