"""What the mesh rules say of weights and activations is what the model says; new leaves need no word there."""

import ast
import dataclasses
import itertools
import pathlib

import jax
import pytest
from flax import nnx

from mm01_jax.config import Config, MeshConfig, Rules, VisionConfig, fields, rules
from mm01_jax.config import mesh as mesh_rules
from mm01_jax.model.abstract import abstract_model
from mm01_jax.model.layers import ones, param, shardings
from tests import small

ROOT = pathlib.Path(__file__).parents[2]
VISION = VisionConfig(embed_dim=48, num_layers=5, num_heads=6, mlp_dim=80, image_size=28, patch_size=14)
# Sizes that are all different, so that no dim passes for another.
SIZES = {
    "vocab_size": 704,
    "embed_dim": 96,
    "num_periods": 3,
    "period": ("lightning", "softmax", "lightning", "lightning"),
    "num_heads": 12,
    "num_kv_heads": 4,
    "head_dim": 16,
    "rotary_dim": 8,
    "num_experts": 10,
    "expert_dim": 112,
}
NEVER_CUT = {"period", "layer", "head_dim", "patch"}


def _config(vision: VisionConfig | None = None, **mesh) -> Config:
    model = dataclasses.replace(small.MODEL, **SIZES)
    return dataclasses.replace(small.config(), model=model, vision=vision, mesh=MeshConfig(**mesh))


def _abstract_mesh(config: Config) -> jax.sharding.AbstractMesh:
    names = ("data", "expert", "tensor", "sequence")
    return jax.sharding.AbstractMesh(tuple(getattr(config.mesh, name) for name in names), names)


def _weights(config: Config) -> dict[str, tuple[tuple[str | None, ...], tuple[int, ...]]]:
    """Path -> logical axes and shape of every weight."""
    model = abstract_model(config, _abstract_mesh(config))
    leaves, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {jax.tree_util.keystr(path): (leaf.get_metadata()["axes"], leaf.shape) for path, leaf in leaves}


TEXT, WHOLE = _weights(_config()), _weights(_config(VISION))


@pytest.mark.parametrize("path", WHOLE)
def test_two_logical_axes_of_one_weight_may_not_share_a_mesh_axis(path):
    axes, shape = WHOLE[path]
    assert len(axes) == len(shape)
    cut = [name for name in axes if name is not None and name not in NEVER_CUT]
    assert set(cut) <= {*fields.field_types(Rules)}
    assert all(mesh_rules.may_meet(*pair) for pair in itertools.combinations(cut, 2))


def test_two_logical_axes_of_one_activation_may_not_share_a_mesh_axis():
    """Those that the code states, in `sharding.spec`, `constrain` and `named`."""
    stated = set()
    for file in (ROOT / "mm01_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(getattr(node, "func", None), "attr", None)
            if isinstance(node, ast.Call) and name in ("spec", "constrain", "named"):
                stated.add(tuple(x.value for x in node.args if isinstance(x, ast.Constant) and x.value is not None))
    assert {("batch", "seq", "act_embed"), ("batch", "seq", "heads"), ("expert", "ffn")} <= stated
    for axes in stated:
        assert set(axes) <= {*fields.field_types(Rules)}
        assert all(mesh_rules.may_meet(*pair) for pair in itertools.combinations(axes, 2)), axes


@pytest.mark.parametrize("path", TEXT)
def test_every_cut_dim_of_the_text_model_is_the_one_that_the_rules_divide(path):
    for name, size in zip(*TEXT[path], strict=True):
        if name is not None and name not in NEVER_CUT:
            assert size == fields.get(_config(), mesh_rules._DIMS[name]), name


def test_every_rule_cuts_a_dim_of_a_weight_or_of_an_activation():
    in_weights = {name for axes, _ in WHOLE.values() for name in axes}
    assert {*fields.field_types(Rules)} == (in_weights | {"batch", "seq", "act_seq", "act_batch"}) - {None} - NEVER_CUT
    assert in_weights >= NEVER_CUT
    assert {*mesh_rules._DIMS} == {*fields.field_types(Rules)} - {"batch", "act_batch"}


@pytest.mark.parametrize("pair", [*itertools.combinations(fields.field_types(Rules), 2)], ids="-".join)
def test_a_config_that_lays_two_axes_on_one_is_refused_where_they_may_meet(pair):
    first, second = pair
    alone = Rules(**(dict.fromkeys(fields.field_types(Rules), ()) | dict.fromkeys(pair, ("sequence",))))
    refused = {p.key for p in rules.problems(dataclasses.replace(_config(), mesh=MeshConfig(rules=alone)))}
    assert refused == ({f"mesh.rules.{second}"} if mesh_rules.may_meet(first, second) else set())


class _Adapter(nnx.Module):
    """A leaf with logical axes that no weight of ours has together."""

    def __init__(self, *axes: str):
        self.adapter = param(nnx.Rngs(0), (96, 112), axes, ones, stack=(3, 1))


def _placed(axes: tuple[str, str], **mesh):
    config = _config(**mesh)
    return shardings(jax.eval_shape(lambda: _Adapter(*axes)), _abstract_mesh(config), config.mesh.rules)


def test_a_new_leaf_needs_no_word_in_the_mesh_rules():
    assert not any(axes[-2:] == ("vocab", "ffn") for axes, _ in WHOLE.values())
    apart = Rules(vocab=("data",))
    placed = _placed(("vocab", "ffn"), data=2, tensor=2, rules=apart)
    assert [leaf.spec for leaf in jax.tree.leaves(placed)] == [jax.P(None, None, "data", "tensor")]


@pytest.mark.parametrize(
    ("axes", "mesh", "why"),
    [
        (("vocab", "ffn"), {"tensor": 2}, "'tensor' would shard both 'vocab' and 'ffn'"),
        (("embed", "rank"), {}, "unknown logical axis 'rank'"),
        (("embed", "ffn"), {"tensor": 5}, "112"),
    ],
)
def test_a_new_leaf_that_the_rules_do_not_fit_is_refused_by_name_when_it_is_placed(axes, mesh, why):
    with pytest.raises(ValueError, match=f"weight adapter: .*{why}"):
        _placed(axes, **mesh)


def test_a_mesh_that_does_not_divide_the_tower_is_refused_by_the_name_of_the_leaf():
    """Its widths are in no rule: the text model's divide over four tensor shards, the tower's six heads do not."""
    assert rules.check(_config(tensor=4))
    with pytest.raises(ValueError, match="weight vision/blocks/.*: .*6"):
        _weights(_config(VISION, tensor=4))


def test_rules_name_no_axis_that_is_never_cut():
    for name in NEVER_CUT:
        assert getattr(Rules(), name) == ()
        with pytest.raises(TypeError):
            Rules(**{name: ("tensor",)})
