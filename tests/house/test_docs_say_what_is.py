"""Tables in documents that restate what the code says are compared with the code."""

import re

import jax
from flax import nnx

from configs import tiny
from mm01_jax.config import Rules
from mm01_jax.model.decoder import TextModel
from tests.house.checkout import ROOT
from tests.model.jax_model import leaf_path

AXES = {"–": None}


def documented_leaves() -> dict[tuple[str, str | None], tuple]:
    """(leaf, the kind of its stack or None for any) -> logical axes without the stack's, of docs/architecture.md."""
    found = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if cells := re.fullmatch(r"\| (`.*) \| ([^|]*) \| ([^|]*) \|", line):
            axes = tuple(AXES.get(name, name) for name in cells[3].split())
            if any(axis not in (*Rules.__dataclass_fields__, None) for axis in axes):
                continue  # a row of another table
            for leaf, kind in re.findall(r"`([^`]+)`(?: \((\w+)\))?", cells[1]):
                found[leaf, kind or None] = axes
    return found


def test_the_table_of_leaves_in_architecture_md_is_the_model():
    config = tiny.get_config()
    model = jax.eval_shape(lambda: TextModel(config.model, config.compute, Rules(), rngs=nnx.Rngs(params=0)))
    documented, met = documented_leaves(), set()
    flat = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
    for path, weight in flat:
        leaf, kind, axes = leaf_path(path), None, weight.get_metadata()["axes"]
        if stacked := re.fullmatch(r"stacks/(\d+)/(.*)", leaf):
            leaf, kind = f"stacks/r/{stacked[2]}", config.model.stacks[int(stacked[1])][0]
            assert axes[:2] == ("period", "layer")
            axes = axes[2:]
        key = (leaf, kind) if (leaf, kind) in documented else (leaf, None)
        assert documented[key] == axes, leaf
        met.add(key)
    assert met == documented.keys()
