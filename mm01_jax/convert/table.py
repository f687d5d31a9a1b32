"""THE table: one row per kind of PyTorch tensor, read both ways (docs/model.md B.1, B.3).

A row names a tensor in the released files, the leaf of our parameter tree that holds it, and the axes on both sides.
`{layer}`, `{expert}` and `{block}` run over the layers of a kind, the experts and the vision blocks; on our side they
are the stack axes in front, so one PyTorch tensor is one logical chunk of one leaf. Nothing else is done to a tensor.

    layer = period index * layers in a period + layers of the period's earlier stacks + layer inside the stack
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mm01_jax.config import ModelConfig, VisionConfig
from mm01_jax.convert import axes


class Row(NamedTuple):
    """`torch` and `ours` are templates of names; the axes are those of one tensor, without the stack."""

    torch: str
    ours: str
    torch_axes: str
    our_axes: str


_HEADS, _KV = "(heads head_dim) embed", "(kv_heads head_dim) embed"
_ATTN, _MOE = "model.layers.{layer}.self_attn.", "model.layers.{layer}.block_sparse_moe."

WHOLE = (
    Row("model.embed_tokens.weight", "embed", "vocab embed", "vocab embed"),
    Row("model.norm.weight", "final_norm", "embed", "embed"),
    Row("lm_head.weight", "head", "vocab embed", "embed vocab"),
)
EVERY_LAYER = (
    Row("model.layers.{layer}.input_layernorm.weight", "input_norm", "embed", "embed"),
    Row("model.layers.{layer}.post_attention_layernorm.weight", "post_norm", "embed", "embed"),
    Row(_MOE + "gate.weight", "experts/router", "expert embed", "embed expert"),
    Row(_MOE + "experts.{expert}.w1.weight", "experts/gate", "ffn embed", "embed ffn"),
    Row(_MOE + "experts.{expert}.w3.weight", "experts/up", "ffn embed", "embed ffn"),
    Row(_MOE + "experts.{expert}.w2.weight", "experts/down", "embed ffn", "ffn embed"),
)


class Mixer(NamedTuple):
    """What conversion knows of a kind of layer: its weights, its names in config.json, what comes beside its weights.

    original: its number in `attn_type_list`. native: its name in `layer_types`. decays: transformers keeps four decay
    buffers of each layer. state: after a text a layer holds a state (B, N, H, H) that `certify` compares.
    """

    rows: tuple[Row, ...]
    original: int
    native: str
    decays: bool
    state: bool


_LIGHTNING = (
    Row(_ATTN + "qkv_proj.weight", "mixer/qkv", "(heads three head_dim) embed", "embed heads three head_dim"),
    Row(_ATTN + "output_gate.weight", "mixer/output_gate", _HEADS, "embed heads head_dim"),
    Row(_ATTN + "norm.weight", "mixer/norm", "(heads head_dim)", "heads head_dim"),
    Row(_ATTN + "out_proj.weight", "mixer/out", "embed (heads head_dim)", "heads head_dim embed"),
)
_SOFTMAX = (
    Row(_ATTN + "q_proj.weight", "mixer/query", _HEADS, "embed heads head_dim"),
    Row(_ATTN + "k_proj.weight", "mixer/key", _KV, "embed kv_heads head_dim"),
    Row(_ATTN + "v_proj.weight", "mixer/value", _KV, "embed kv_heads head_dim"),
    Row(_ATTN + "o_proj.weight", "mixer/out", "embed (heads head_dim)", "heads head_dim embed"),
)
MIXERS = {
    "lightning": Mixer(_LIGHTNING, original=0, native="linear_attention", decays=True, state=True),
    "softmax": Mixer(_SOFTMAX, original=1, native="full_attention", decays=False, state=False),
}

_TOWER, _BLOCK = "vision_tower.vision_model.", "vision_tower.vision_model.encoder.layers.{block}."


def _with_bias(torch: str, ours: str, torch_axes: str, our_axes: str, out: str) -> tuple[Row, Row]:
    """A linear map: its weight, and its bias along the axes `out`."""
    bias = Row(torch + ".bias", ours + "_bias", f"({out})" if " " in out else out, out)
    return Row(torch + ".weight", ours, torch_axes, our_axes), bias


def _projection(name: str, ours: str) -> tuple[Row, Row]:
    maps = "(heads head_dim) width", "width heads head_dim", "heads head_dim"
    return _with_bias(f"{_BLOCK}self_attn.{name}_proj", f"vision/blocks/{ours}", *maps)


def _norm(torch: str, ours: str) -> tuple[Row, Row]:
    return _with_bias(torch, ours, "width", "width", "width")


VISION = (
    Row(_TOWER + "embeddings.class_embedding", "vision/class_token", "width", "width"),
    Row(
        _TOWER + "embeddings.patch_embedding.weight",
        "vision/patches",
        "width channel row column",
        "row column channel width",
    ),
    Row(_TOWER + "embeddings.position_embedding.weight", "vision/positions", "patch width", "patch width"),
    *_norm(_TOWER + "pre_layrnorm", "vision/input_norm"),  # spelt so in the released files
    *_norm(_BLOCK + "layer_norm1", "vision/blocks/mixer_norm"),
    *_projection("q", "query"),
    *_projection("k", "key"),
    *_projection("v", "value"),
    *_with_bias(
        _BLOCK + "self_attn.out_proj", "vision/blocks/out", "width (heads head_dim)", "heads head_dim width", "width"
    ),
    *_norm(_BLOCK + "layer_norm2", "vision/blocks/mlp_norm"),
    *_with_bias(_BLOCK + "mlp.fc1", "vision/blocks/up", "ffn width", "width ffn", "ffn"),
    *_with_bias(_BLOCK + "mlp.fc2", "vision/blocks/down", "width ffn", "ffn width", "width"),
    *_with_bias("multi_modal_projector.linear_1", "projector/first", "embed width", "width embed", "embed"),
    *_with_bias("multi_modal_projector.linear_2", "projector/second", "embed inner", "inner embed", "embed"),
    Row("image_newline", "image_newline", "embed", "embed"),
)


class Tensor(NamedTuple):
    """One tensor of a PyTorch checkpoint and the chunk `index` of the leaf that holds it."""

    name: str
    leaf: str
    index: tuple[int, ...]
    row: Row
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the PyTorch checkpoint."""
        return axes.shape(self.row.torch_axes, self.sizes)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of the chunk in ours."""
        return axes.shape(self.row.our_axes, self.sizes)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of our parameter tree: its whole shape and the number of stack axes in front."""

    shape: tuple[int, ...]
    stack: int


def tensors(model: ModelConfig, vision: VisionConfig | None = None) -> list[Tensor]:
    """Every tensor of the model, in the order of the layers; names without a dialect's prefix."""
    sizes = text_sizes(model)
    text_tensors = [Tensor(row.torch, row.ours, (), row, sizes) for row in WHOLE[:1]]
    places = [(stack, place) for stack, (_, count) in enumerate(model.stacks) for place in range(count)]
    for layer in range(model.num_layers):
        text_tensors += _layer(layer, model, sizes, places)
    text_tensors += [Tensor(row.torch, row.ours, (), row, sizes) for row in WHOLE[1:]]
    if vision is None:
        return text_tensors
    text = [tensor._replace(leaf="text/" + tensor.leaf) for tensor in text_tensors]
    return text + list(_vision(vision, model))


def _layer(layer: int, model: ModelConfig, sizes: Mapping[str, int], places: list[tuple[int, int]]) -> Iterator[Tensor]:
    """places: (stack, layer inside it) of each layer of a period."""
    period, place = divmod(layer, len(model.period))
    stack, inside = places[place]
    for row in (*EVERY_LAYER, *mixer(model, layer).rows):
        index = (period, inside)
        for expert in range(model.num_experts) if "{expert}" in row.torch else [None]:
            name = row.torch.format(layer=layer, expert=expert)
            yield Tensor(name, f"stacks/{stack}/{row.ours}", index if expert is None else (*index, expert), row, sizes)


def mixer(model: ModelConfig, layer: int) -> Mixer:
    """What one layer is.

    Raises:
      ValueError: conversion has no row for layers of this kind.
    """
    kind = model.period[layer % len(model.period)]
    if kind not in MIXERS:
        raise ValueError(
            f"layers of kind {kind!r} have no row in convert/table.py: conversion knows {', '.join(MIXERS)}"
        )
    return MIXERS[kind]


def _vision(vision: VisionConfig, model: ModelConfig) -> Iterator[Tensor]:
    sizes = vision_sizes(vision, model)
    for row in VISION:
        for block in range(vision.num_layers) if "{block}" in row.torch else [None]:
            index = () if block is None else (block,)
            yield Tensor(row.torch.format(block=block), row.ours, index, row, sizes)


def text_sizes(model: ModelConfig) -> dict[str, int]:
    """Axis -> size in the text model."""
    return {
        "vocab": model.vocab_size,
        "embed": model.embed_dim,
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "three": 3,
        "expert": model.num_experts,
        "ffn": model.expert_dim,
    }


def vision_sizes(vision: VisionConfig, model: ModelConfig) -> dict[str, int]:
    """Axis -> size in the vision tower and the projector, whose `embed` is the text model's."""
    return {
        "width": vision.embed_dim,
        "channel": 3,
        "row": vision.patch_size,
        "column": vision.patch_size,
        "patch": vision.num_patches + 1,  # and the class token
        "heads": vision.num_heads,
        "head_dim": vision.embed_dim // vision.num_heads,
        "ffn": vision.mlp_dim,
        "embed": model.embed_dim,
        "inner": model.embed_dim,
    }


def leaves(tensors: list[Tensor]) -> dict[str, Leaf]:
    """Leaf path -> shape and stack, of the tree that these tensors fill."""
    stacks: dict[str, tuple[int, ...]] = {}
    shapes = {tensor.leaf: tensor.chunk_shape for tensor in tensors}
    for tensor in tensors:
        last = stacks.get(tensor.leaf, tensor.index)
        stacks[tensor.leaf] = tuple(map(max, last, tensor.index))
    return {path: Leaf(tuple(i + 1 for i in stacks[path]) + shape, len(stacks[path])) for path, shape in shapes.items()}


def num_elements(tensor: Tensor) -> int:
    """Numbers in a tensor."""
    return math.prod(tensor.shape)
