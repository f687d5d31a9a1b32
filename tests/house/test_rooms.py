"""Who may import whom: arrows between rooms point down, and each outside library has one door."""

import ast
import re
import sys

from tests.house.checkout import ROOT, files, imports, inside, modules, tree

# From the ground up. A room imports what lies below it; a module belongs to the longest name that fits.
LEVELS = (
    ("mm01_jax.taken", "mm01_jax.holes", "mm01_jax.links"),
    ("mm01_jax.files", "mm01_jax.messages", "mm01_jax.job", "mm01_jax.signals", "mm01_jax.values"),
    (
        "pallas_kernels",
        "mm01_jax.config",
        "mm01_jax.chips",
        "mm01_jax.progress",
        "mm01_jax.guard",
        "mm01_jax.cluster",
        "mm01_jax.pulse",
    ),
    ("mm01_jax.command", "mm01_jax.flag"),
    ("mm01_jax.sharding", "mm01_jax.arguments", "mm01_jax.compile_cache", "mm01_jax.kept_programs", "mm01_jax.scopes"),
    ("mm01_jax.parallel",),
    ("mm01_jax.model",),
    ("mm01_jax.checkpoint", "mm01_jax.data"),
    ("mm01_jax.inference",),
    ("mm01_jax.train", "mm01_jax.evals", "mm01_jax.convert", "mm01_jax.plan"),
    ("mm01_jax", "train_main", "configs", "setup"),  # doors: the public names, programs, configs
    ("tests",),
    ("benchmarks",),  # may use what tests have; tests need no bench,
    ("tests.benchmarks", "tests.faults.__main__"),  # but for those of the benches, and what writes rows of results
)
HEIGHT = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
DOORS = HEIGHT["mm01_jax"]
PRODUCT = ("train_main", "configs", "mm01_jax", "pallas_kernels")

# A room -> the others on its own level that it may import. Doors may import each other.
BESIDE = {
    "mm01_jax.cluster": ("mm01_jax.pulse",),  # which it starts, and nobody else
    "mm01_jax.plan": ("mm01_jax.train",),  # it compiles the training step
}

# A room -> all of ours that it may import, though more lies below.
_GROUND = ("mm01_jax.config", *LEVELS[0], "mm01_jax.files", "mm01_jax.guard", "mm01_jax.messages", "mm01_jax.values")
ALONE = {
    "pallas_kernels": (),
    "mm01_jax.checkpoint": _GROUND,
    "mm01_jax.data": _GROUND,
    "configs": ("mm01_jax.config",),
}

# "module -> what it imports" that breaks a law of this page, and what will mend it. An entry that is no longer needed
# fails.
KNOWN: dict[str, str] = {}

# Outside library -> the only rooms that may import it.
OUTSIDE = {
    "orbax": ("mm01_jax.checkpoint",),
    "tensorstore": ("mm01_jax.checkpoint",),
    "grain": ("mm01_jax.data",),
    "array_record": ("mm01_jax.data",),
    "tokenizers": ("mm01_jax.data",),
    "apache_beam": ("mm01_jax.data.tokenize",),
    "pyarrow": ("mm01_jax.data.parquet_rows",),
    "fsspec": ("mm01_jax.data.remote",),
    "zstandard": ("mm01_jax.data.compressed",),
    "PIL": ("mm01_jax.data",),
    "jinja2": ("mm01_jax.data.template_process",),
    "starlette": ("mm01_jax.inference.serve",),
    "llguidance": ("mm01_jax.inference.grammars",),
    "uvicorn": ("mm01_jax.inference.serve",),
    "prometheus_client": ("mm01_jax.inference.serve.metrics",),
    "lm_eval": ("mm01_jax.evals.harness",),
    "safetensors": ("mm01_jax.convert",),
    "jax.experimental.pallas": ("pallas_kernels",),
    "difflib": ("mm01_jax.values", "pallas_kernels.dispatch"),  # the first bounds what is compared
    "absl": ("mm01_jax.arguments", "mm01_jax.command"),
}

NEVER_IMPORTED = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "torch", "jax._src")
NEVER_CALLED = ("eval", "exec", "compile", "__import__", "torch.load")
UNSAFE = ("allow_pickle", "trust_remote_code")  # keywords that may be False at most
# Called in one place alone.
ONE_CALLER = {
    "exec_module": "mm01_jax.config.command_line",  # a config file that a person names is the one thing that is run
    "nnx.Param": "mm01_jax.model.layers",
}


def product() -> list[str]:
    return [name for name in modules() if inside(name, PRODUCT)]


def room(module: str) -> str:
    if module.endswith(".__main__") and inside(module, "mm01_jax"):
        return "mm01_jax"  # a command is a door
    return max((name for name in HEIGHT if inside(module, name)), key=len, default="")


def ours(module: str) -> set[tuple[str, str]]:
    """(module, room) of whatever of ours that another room holds; a name in a module is that module."""
    found = {name if name in modules() else name.rpartition(".")[0] for name in imports(module)}
    found = {(name, room(name)) for name in found & modules().keys()}
    return {(name, place) for name, place in found if place != room(module)}


def is_upward(importer: str, imported: str) -> bool:
    if HEIGHT[importer] == HEIGHT[imported] != DOORS:
        return imported not in BESIDE.get(importer, ())
    return HEIGHT[importer] < HEIGHT[imported]


def test_every_module_stands_in_a_room():
    assert not [name for name in modules() if not room(name)]


def upward_imports() -> set[str]:
    return {f"{name} -> {other}" for name in modules() for other, place in ours(name) if is_upward(room(name), place)}


def benches_run() -> set[str]:
    """Strings in tests that name a module of `benchmarks`, docstrings left out: programs that a test starts."""
    found = set()
    for name in modules():
        if room(name) == "tests" and not inside(name, "tests.house"):
            nodes = list(ast.walk(tree(modules()[name])))
            prose = {node.value for node in nodes if isinstance(node, ast.Expr)}
            strings = [node.value for node in nodes if isinstance(node, ast.Constant) and node not in prose]
            named = re.findall(r"\bbenchmarks(?:\.\w+)+(?<!\.md)", " ".join(s for s in strings if isinstance(s, str)))
            found |= {f"{name} runs {bench}" for bench in named}
    return found


def test_imports_point_down():
    unnamed = sorted(upward_imports() - KNOWN.keys())
    assert not unnamed, "\n".join(["from above, or from beside:", *unnamed])


def test_tests_run_no_bench():
    assert not benches_run() - KNOWN.keys()


def test_every_known_exception_is_still_needed():
    assert not KNOWN.keys() - upward_imports() - benches_run()


def test_no_module_comes_back_to_itself():
    below = {name: imports(name) & modules().keys() for name in modules()}
    while ends := [name for name, needed in below.items() if not needed]:
        below = {name: needed.difference(ends) for name, needed in below.items() if name not in ends}
    assert not below, "\n".join(["in a circle, or above one:", *sorted(below)])


def test_ground_rooms_kernels_and_configs_import_little_of_ours():
    found = [
        f"{name} -> {other}"
        for name in modules()
        for other, place in ours(name)
        if room(name) in ALONE and place not in ALONE[room(name)]
    ]
    assert not found, "\n".join(sorted(found))


def test_outside_libraries_come_in_through_their_doors():
    found = [
        f"{name} imports {other}: that belongs in {' or '.join(doors)}"
        for name in product()
        for library, doors in OUTSIDE.items()
        for other in imports(name)
        if inside(other, library) and not inside(name, doors)
    ]
    assert not found, "\n".join(sorted(found))


def test_kernels_import_jax_numpy_and_the_standard_library_alone():
    allowed = {"jax", "numpy", "pallas_kernels", *sys.stdlib_module_names}
    found = {
        name: {other.split(".")[0] for other in imports(name)} - allowed
        for name in product()
        if inside(name, "pallas_kernels")
    }
    assert not {name: others for name, others in found.items() if others}


def test_configs_import_the_config_vocabulary_alone():
    allowed = ("configs", "mm01_jax.config", *sys.stdlib_module_names)
    assert not [
        f"{name} -> {other}"
        for name in product()
        for other in imports(name)
        if inside(name, "configs") and not inside(other, allowed)
    ]


def test_nothing_unpickles_or_runs_text_and_parameters_are_made_in_one_place():
    found = [f"{name} -> {other}" for name in product() for other in imports(name) if inside(other, NEVER_IMPORTED)]
    for name in product():
        calls = [node for node in ast.walk(tree(modules()[name])) if isinstance(node, ast.Call)]
        found += [f"{name}, line {call.lineno}: {ast.unparse(call.func)}" for call in calls if is_unsafe(call, name)]
    assert not found, "\n".join(found)


def is_unsafe(call: ast.Call, module: str) -> bool:
    called = ast.unparse(call.func)
    others = [caller for function, caller in ONE_CALLER.items() if f".{called}".endswith(f".{function}")]
    unsafe = [word for word in call.keywords if word.arg in UNSAFE and ast.unparse(word.value) != "False"]
    return called in NEVER_CALLED or bool(unsafe) or any(caller != module for caller in others)


def test_no_file_names_a_machine():
    # Spelt in two parts, so that this file passes itself.
    places = ["/" + place for place in ("root/", "home/", "Users/", "work/", "workspace/", "content/drive")]
    kinds = (".py", ".md", ".toml", ".json", ".ipynb", ".txt", ".yaml", "")
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in files() if path.suffix in kinds}
    found = [f"{path} names {place}" for path, text in texts.items() for place in places if place in text]
    assert not found, "\n".join(found)
