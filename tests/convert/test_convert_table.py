"""The table: the published lists of names, our parameter tree, and a bijection between the two."""

import hashlib
import math

import jax
import numpy as np
import pytest
from flax import nnx

from configs import text_01
from mm01_jax.checkpoint import leaf_paths, leaf_stacks, manifest
from mm01_jax.config import ComputeConfig, ModelConfig, Rules, VisionConfig
from mm01_jax.convert import axes, table
from mm01_jax.convert.torch import structure
from mm01_jax.convert.torch.dialects import DIALECTS
from mm01_jax.model.decoder import TextModel
from mm01_jax.model.multimodal import VLModel
from tests.convert import samples
from tests.model.jax_model import model_config
from tests.reference import leaves as reference

TEXT = text_01.get_config().model
VISION = VisionConfig(embed_dim=1024, num_layers=24, num_heads=16, mlp_dim=4096, image_size=336, patch_size=14)
# dialect -> vision, SHA-256 of the sorted names (model.md B.1, B.3), number of tensors, of parameters.
PUBLISHED = {
    "original": (None, "bf57bd0e64fa6e9bb2412c73dad77effdfd91aa645578e2b5928f0499c579a8c", 8243, 456_089_655_296),
    "vl-01": (VISION, "d0caf1b714cdfc4caa65b56cbec591668d77b0e2a5d6cf3b5af169531311c886", 8637, 456_437_219_328),
}


@pytest.mark.parametrize("dialect", PUBLISHED)
def test_names_of_the_released_model_are_the_published_list(dialect):
    vision, sha256, count, parameters = PUBLISHED[dialect]
    found = table.tensors(TEXT, vision)
    names = sorted(DIALECTS[dialect].torch_name(tensor) for tensor in found)
    assert len(set(names)) == len(names) == count
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == sha256
    assert sum(map(table.num_elements, found)) == parameters


@pytest.mark.parametrize("vision", [None, VISION], ids=["text", "vl-01"])
def test_tensors_fill_every_leaf_of_the_model_exactly_once(vision):
    def build():
        rngs = nnx.Rngs(params=0)
        how = (TEXT, ComputeConfig(), Rules())
        return TextModel(*how, rngs=rngs) if vision is None else VLModel(*how, vision, rngs=rngs)

    model = jax.eval_shape(build)
    shapes = {path: leaf.shape for path, leaf in zip(leaf_paths(model), jax.tree.leaves(model), strict=True)}
    found = table.tensors(TEXT, vision)
    leaves = table.leaves(found)
    assert {path: leaf.shape for path, leaf in leaves.items()} == shapes
    stacks = dict(zip(leaf_paths(model), leaf_stacks(model), strict=True))
    assert {path: leaf.stack for path, leaf in leaves.items()} == stacks
    chunks = {(tensor.leaf, tensor.index) for tensor in found}
    assert len(chunks) == len(found) == sum(math.prod(leaf.shape[: leaf.stack]) for leaf in leaves.values())


def test_chunks_are_those_of_the_reference_mapping():
    # The reference states the same mapping in other words, one lambda a leaf.
    weights = samples.random_weights(samples.CONFIG, 3)
    want = {path: leaf.stack(weights) for path, leaf in reference.leaves(samples.CONFIG, 3).items()}
    for tensor in table.tensors(model_config(samples.CONFIG, 3)):
        row = tensor.row
        got = axes.rearrange(weights[tensor.name], row.torch_axes, row.our_axes, tensor.sizes)
        np.testing.assert_array_equal(got, want[tensor.leaf][tensor.index], err_msg=tensor.name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rearranging_back_gives_the_bits_again(dtype):
    model = model_config(samples.CONFIG, 3)
    stream = np.random.RandomState(0)
    for tensor in table.tensors(model, VISION_TINY):
        row = tensor.row
        x = stream.bytes(table.num_elements(tensor) * np.dtype(dtype).itemsize)
        x = np.frombuffer(x, dtype).reshape(tensor.shape)
        ours = axes.rearrange(x, row.torch_axes, row.our_axes, tensor.sizes)
        assert ours.shape == tensor.chunk_shape and ours.flags.c_contiguous
        assert axes.rearrange(ours, row.our_axes, row.torch_axes, tensor.sizes).tobytes() == x.tobytes()


VISION_TINY = VisionConfig(embed_dim=8, num_layers=2, num_heads=2, mlp_dim=12, image_size=28, patch_size=14)


def test_any_pattern_of_layers_maps_each_layer_to_its_own_place():
    stream = np.random.RandomState(1)
    for _ in range(50):
        period = tuple(stream.choice(["lightning", "softmax"], stream.randint(1, 9)))
        model = ModelConfig(
            vocab_size=8, embed_dim=4, num_periods=int(stream.randint(1, 4)), period=period, num_heads=2,
            num_kv_heads=1, head_dim=2, rotary_dim=2, num_experts=3, num_experts_per_token=1, expert_dim=5,
        )  # fmt: skip
        norms = [t for t in table.tensors(model) if t.leaf.endswith("input_norm")]
        order = [(t.index[0], int(t.leaf.split("/")[1]), t.index[1]) for t in norms]
        assert order == sorted(order) and len(set(order)) == model.num_layers
        names = [name for name in (t.name for t in table.tensors(model)) if "qkv_proj" in name]
        kinds = period * model.num_periods
        assert names == [
            f"model.layers.{i}.self_attn.qkv_proj.weight" for i, kind in enumerate(kinds) if kind == "lightning"
        ]


def test_a_leaf_of_ours_with_other_stack_axes_is_named_with_both():
    shape = (2, 3, 4)
    stored = {"a": manifest.Leaf(shape=shape, dtype="float32", stack=1, file=shape, block=(1, 3, 4))}
    (problem,) = structure.leaf_problems(stored, {"a": table.Leaf(shape, 2)})
    assert problem == "a has shape [2, 3, 4], 1 of it stacked; the config gives shape [2, 3, 4], 2 of it stacked"
    assert not structure.leaf_problems(stored, {"a": table.Leaf(shape, 1)})
