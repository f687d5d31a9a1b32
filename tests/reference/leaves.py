"""Which released weights make up each leaf of a parameter tree whose layers are stacked by (period, stack).

A *stack* is a maximal stretch of layers of one kind inside a period; the leaves of stack r are `stacks/r/...` with two
leading dims (period, layer of the stack). Everything here is a permutation of numbers, so it maps gradients' directions
as it maps weights.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from tests.reference.config import LIGHTNING


@dataclasses.dataclass(frozen=True)
class Leaf:
    """`names`: an array of released names, one per leading index; `turn`: one released weight -> its chunk."""

    names: np.ndarray
    turn: Callable[[np.ndarray], np.ndarray]

    def stack(self, weights) -> np.ndarray:
        chunks = [self.turn(weights[name]) for name in self.names.ravel()]
        return np.stack(chunks).reshape(*self.names.shape, *chunks[0].shape)


def leaves(config, period: int) -> dict[str, Leaf]:
    """Leaf path -> Leaf, for a model whose layer pattern repeats every `period` layers."""
    found = {
        "embed": Leaf(np.array("model.embed_tokens.weight"), lambda w: w),
        "final_norm": Leaf(np.array("model.norm.weight"), lambda w: w),
        "head": Leaf(np.array("lm_head.weight"), np.transpose),
    }
    start = 0
    for stack, (kind, group) in enumerate(itertools.groupby(config.attn_type_list[:period])):
        count = len(list(group))
        first_M1 = np.arange(0, config.num_hidden_layers, period)[:, None] + start
        for path, (part, turn) in parts(config, kind).items():
            found[f"stacks/{stack}/{path}"] = Leaf(released_names(config, first_M1 + np.arange(count), part), turn)
        start += count
    return found


def released_names(config, layers_Mn, part: str) -> np.ndarray:
    """Names of `part` in these layers; with `{e}` in it, of every expert, in one more dim."""
    experts = range(config.num_local_experts) if "{e}" in part else [None]
    names = [
        [[f"model.layers.{layer}.{part.format(e=e)}.weight" for e in experts] for layer in layers]
        for layers in layers_Mn
    ]
    return np.array(names) if "{e}" in part else np.array(names)[..., 0]


def parts(config, kind: int) -> dict[str, tuple[str, Callable]]:
    """Path inside a stack -> (part of the released name, released weight -> chunk of the leaf)."""
    head = config.head_dim

    def into_heads(w):  # (N*H, D) -> (D, N, H)
        return w.reshape(-1, head, w.shape[1]).transpose(2, 0, 1)

    def into_qkv(w):  # (N*3*H, D) -> (D, N, 3, H)
        return w.reshape(-1, 3, head, w.shape[1]).transpose(3, 0, 1, 2)

    def out_of_heads(w):  # (D, N*H) -> (N, H, D)
        return w.reshape(w.shape[0], -1, head).transpose(1, 2, 0)

    mixer = {
        "mixer/qkv": ("self_attn.qkv_proj", into_qkv),
        "mixer/output_gate": ("self_attn.output_gate", into_heads),
        "mixer/norm": ("self_attn.norm", lambda w: w.reshape(-1, head)),
        "mixer/out": ("self_attn.out_proj", out_of_heads),
    }
    if kind != LIGHTNING:
        mixer = {f"mixer/{ours}": (f"self_attn.{name}_proj", into_heads) for ours, name in QKV.items()}
        mixer["mixer/out"] = ("self_attn.o_proj", out_of_heads)
    experts = {"gate": "w1", "up": "w3", "down": "w2"}
    return {
        "input_norm": ("input_layernorm", lambda w: w),
        "post_norm": ("post_attention_layernorm", lambda w: w),
        **mixer,
        "experts/router": ("block_sparse_moe.gate", np.transpose),
        **{f"experts/{ours}": (f"block_sparse_moe.experts.{{e}}.{w}", np.transpose) for ours, w in experts.items()},
    }


QKV = {"query": "q", "key": "k", "value": "v"}
