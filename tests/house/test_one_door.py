"""Files that somebody else may have made are opened, read and deleted by `mm01_jax/files.py` alone."""

import ast

from tests.house.checkout import modules, tree
from tests.house.test_rooms import inside, product

OPENING = ("open", "os.open", "json.load", "json.loads", "shutil.rmtree", "shutil.copyfile")
METHODS = ("open", "read_text", "read_bytes", "write_text", "write_bytes", "rmtree", "copyfile", "fdopen")
DOOR = "mm01_jax.files"
# What opens something of its own: no file of a directory that somebody hands over.
OWN = {
    "mm01_jax.checkpoint.arrays": "arrays, by tensorstore, when the door has looked at their files",
    "mm01_jax.cluster": "the null device",
    "mm01_jax.command": "the null device",
    "mm01_jax.compile_cache": "the user's own cache, and what the system says of its processor",
    "mm01_jax.convert.torch.shard": "a new file that it writes, links not followed",
    "mm01_jax.data.template_process": "the pipe to the process that started it",
    "mm01_jax.data.renderings": "the pipe to a process that it started",
    "mm01_jax.data.tokenizer_process": "the pipe to the process that started it",
    "mm01_jax.guard": "what the system says of this process",
    "mm01_jax.inference.engine_processes": "what the first process of the same job says",
    "mm01_jax.inference.serve.channel": "the pair of sockets to a process that it started",
    "mm01_jax.inference.serve.page": "its own page",
    "mm01_jax.kept_programs": "its own package's sources, and what the system says of this process",
    "mm01_jax.scopes": "a trace that this machine has made",
    "mm01_jax.train.loop": "the config that it has just made",
    "mm01_jax.train.metrics_file": "the log of the run that this process has locked",
}
# `os.fdopen(files.update(...))` and the like: the descriptor came through the door.
FROM_THE_DOOR = ("FILES", "TYPED", "Door", "files", "update")


def opened(module: str) -> list[str]:
    calls = [node for node in ast.walk(tree(modules()[module])) if isinstance(node, ast.Call)]
    return [f"{module}, line {call.lineno}: {ast.unparse(call.func)}" for call in calls if opens(call)]


def opens(call: ast.Call) -> bool:
    called = ast.unparse(call.func)
    if called == "np.load":
        return ast.unparse(call.args[0]) not in ("file", "io.BytesIO(content)")  # what the door has opened or read
    if called in OPENING:
        return True
    if called == "Image.open":
        return False  # of bytes that came through the door
    method = called.rpartition(".")[2]
    if method == "savefig":
        return ast.unparse(call.args[0]) != "file"  # that `files.written` opened
    through = any(word in ast.unparse(call) for word in FROM_THE_DOOR)
    return "." in called and method in METHODS and not through


def test_files_of_others_are_opened_through_one_door():
    found = [
        line
        for name in product()
        if inside(name, "mm01_jax") and name != DOOR and name not in OWN
        for line in opened(name)
    ]
    assert not found, "\n".join(found)


def test_every_exception_is_still_needed():
    assert not [name for name in OWN if name not in modules() or not opened(name)]


def test_the_law_sees_what_opens_a_file():
    seen = {
        text: opens(ast.parse(text).body[0].value)
        for text in ("open(p)", "p.read_text()", "np.load(p)", "f.savefig(p)", "f.savefig(file)", "FILES.open(p)")
    }
    assert [text for text, is_seen in seen.items() if not is_seen] == ["f.savefig(file)", "FILES.open(p)"]
