"""Tiny PyTorch checkpoints of every dialect, made without our conversion: names and shapes from the tests' reference.

The vision tower is written out from docs/model.md B.3. Values are random bits of the dtype, or small normal numbers.
"""

import json
import pathlib

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
import numpy as np
from safetensors.numpy import save_file

from tests.reference.config import ReferenceConfig
from tests.reference.random_weights import random_weights

LIGHTNING, SOFTMAX = 0, 1
CONFIG = ReferenceConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=12,
    attn_type_list=(LIGHTNING, LIGHTNING, SOFTMAX) * 2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rotary_dim=4,
    num_local_experts=4,
    num_experts_per_tok=2,
    layernorm_linear_attention_alpha=1.75,
    layernorm_full_attention_alpha=1.5,
    layernorm_mlp_alpha=1.25,
)
BLOCK = 8  # of native's decay buffers
VISION = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
VISION |= {"image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-5, "num_channels": 3, "hidden_act": "gelu"}
DIALECTS = ("original", "m1", "native", "vl-01")


def settings(dialect: str, config: ReferenceConfig = CONFIG, dtype: str = "bfloat16") -> dict:
    """The config.json of a dialect."""
    plain = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rotary_dim": config.rotary_dim,
        "rope_theta": config.rope_theta,
        "num_local_experts": config.num_local_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "postnorm": True,
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "torch_dtype": dtype,
    }
    plain |= _layers(config, native=dialect == "native")
    if dialect == "vl-01":
        text = plain | {"shared_intermediate_size": [0]}
        return {
            "model_type": "minimax_vl_01",
            "text_config": text,
            "vision_config": VISION,
            "image_token_index": 31,
            "image_grid_pinpoints": [[28, 28], [28, 56], [56, 28]],
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "torch_dtype": dtype,
        }
    return plain | {"model_type": {"original": "minimax_text_01", "m1": "minimax_m1", "native": "minimax"}[dialect]}


def _layers(config: ReferenceConfig, *, native: bool) -> dict:
    kinds, ours, theirs = list(config.attn_type_list), "layernorm_{}_{}", "{}_{}_factor"
    if native:
        names = ("linear_attention", "full_attention")
        layers = {"layer_types": [names[kind] for kind in kinds], "block_size": BLOCK}
    else:
        layers = {"attn_type_list": kinds}
    for original, other in (("linear_attention", "linear_attn"), ("full_attention", "full_attn"), ("mlp", "mlp")):
        for part in ("alpha", "beta"):
            name = theirs.format(other, part) if native else ours.format(original, part)
            layers[name] = getattr(config, ours.format(original, part))
    return layers


def tensors(dialect: str, config: ReferenceConfig = CONFIG, dtype: str = "bfloat16", seed: int = 0) -> dict:
    """Name -> array of a whole checkpoint."""
    found = {name: w.astype(dtype) for name, w in random_weights(config, seed).items()}
    if dialect == "vl-01":
        found = {"language_model." + name: w for name, w in found.items()}
        stream = np.random.RandomState(seed + 1)
        shapes = vision_shapes(config.hidden_size)
        found |= {name: stream.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    if dialect == "native":
        found |= {name: w.astype(dtype) for name, w in decay_buffers(config).items()}
    return found


def random_bits(dialect: str, dtype: str, seed: int = 0) -> dict:
    """As `tensors`, every weight of random bits: NaN with any payload, infinities, both zeros among them."""
    stream = np.random.RandomState(seed)
    word = np.uint16 if dtype == "bfloat16" else np.uint32
    found = tensors(dialect, dtype=dtype)
    names = [name for name in found if "decay" not in name and "slope" not in name]
    high = np.iinfo(word).max
    bits = {name: stream.randint(0, high, found[name].shape, np.uint64).astype(word).view(dtype) for name in names}
    return found | bits


def vision_shapes(width_out: int) -> dict[str, tuple[int, ...]]:
    """Vision tower, projector and newline (model.md B.3)."""
    w, f, p = VISION["hidden_size"], VISION["intermediate_size"], VISION["patch_size"]
    tower = "vision_tower.vision_model."
    shapes = {
        tower + "embeddings.class_embedding": (w,),
        tower + "embeddings.patch_embedding.weight": (w, 3, p, p),
        tower + "embeddings.position_embedding.weight": ((VISION["image_size"] // p) ** 2 + 1, w),
        "image_newline": (width_out,),
    }
    linear = {tower + "pre_layrnorm": (w,), "multi_modal_projector.linear_1": (width_out, w)}
    linear["multi_modal_projector.linear_2"] = (width_out, width_out)
    for block in range(VISION["num_hidden_layers"]):
        prefix = f"{tower}encoder.layers.{block}."
        linear |= {prefix + f"self_attn.{name}_proj": (w, w) for name in ("q", "k", "v", "out")}
        linear |= {prefix + "layer_norm1": (w,), prefix + "layer_norm2": (w,)}
        linear |= {prefix + "mlp.fc1": (f, w), prefix + "mlp.fc2": (w, f)}
    return shapes | {f"{n}.weight": s for n, s in linear.items()} | {f"{n}.bias": s[:1] for n, s in linear.items()}


def decay_buffers(config: ReferenceConfig, block: int = BLOCK) -> dict[str, np.ndarray]:
    """Native's persistent buffers in float64, straight from the definition (model.md B.2, D3)."""
    n, layers = config.num_attention_heads, config.num_hidden_layers
    found = {}
    for layer, kind in enumerate(config.attn_type_list):
        if kind == LIGHTNING:
            slope = np.array([2.0 ** (-8 * (h + 1) / n) for h in range(n)]) * (1 - layer / (layers - 1 + 1e-5) + 1e-5)
            i = np.arange(1, block + 1.0)
            distance = i[:, None] - i[None, :]
            diagonal = np.where(distance >= 0, np.exp(-slope[:, None, None] * np.maximum(distance, 0)), 0.0)
            prefix = f"model.layers.{layer}.self_attn."
            found[prefix + "slope_rate"] = slope[:, None, None]
            found[prefix + "query_decay"] = np.exp(-slope[:, None, None] * i[:, None])
            found[prefix + "key_decay"] = np.exp(-slope[:, None, None] * (block - i[:, None]))
            found[prefix + "diagonal_decay"] = diagonal[None]
    return found


def write(directory: pathlib.Path, plain: dict, found: dict, shards: int = 3) -> pathlib.Path:
    """A PyTorch directory: config.json, `shards` files and their index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(plain))
    names = list(found)
    if shards == 1:
        save_file(found, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map = {}
    for i in range(shards):
        part = names[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: found[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(w.nbytes for w in found.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def make(directory: pathlib.Path, dialect: str = "original", dtype: str = "bfloat16", shards: int = 3) -> pathlib.Path:
    """A directory of a dialect with small normal weights."""
    return write(directory, settings(dialect, dtype=dtype), tensors(dialect, dtype=dtype), shards)
