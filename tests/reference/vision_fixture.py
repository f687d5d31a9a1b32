"""Tiny VL models whose outputs the original code produced once (docs/model.md H): their shapes, weights and outputs.

`vl_tiny_a` has small tiles and eight texts of no, one or two images; `vl_geom336` the released tiles and thin widths.
"""

import functools
import json
import pathlib

import numpy as np

from tests.reference.config import ReferenceConfig
from tests.reference.vision import VLReferenceConfig

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures"
TEXT_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
TEXT_FIELDS += ("head_dim", "rotary_dim", "num_local_experts", "num_experts_per_tok", "rope_theta", "rms_norm_eps")
TEXT_FIELDS += tuple(f"layernorm_{part}_alpha" for part in ("linear_attention", "full_attention", "mlp"))
VISION_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
VISION_FIELDS += ("image_size", "patch_size", "layer_norm_eps")
CASES = ("text", "start", "middle", "end", "two", "adjacent", "only", "same_twice")
WITH_IMAGES = CASES[1:]


@functools.cache
def load(name: str = "vl_tiny_a") -> dict[str, np.ndarray]:
    """Weights as `w:<name>`, `vit0`, `proj0`, `packed0` ... of each image, `<case>:expanded`, `<case>:logits` ..."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def meta(name: str = "vl_tiny_a") -> dict:
    return json.loads(str(load(name)["meta"]))


@functools.cache
def plain(name: str = "vl_tiny_a") -> dict:
    """The config.json."""
    return json.loads(str(load(name)["config"]))


@functools.cache
def config(name: str = "vl_tiny_a") -> VLReferenceConfig:
    whole = plain(name)
    text = {field: whole["text_config"][field] for field in TEXT_FIELDS}
    return VLReferenceConfig(
        text=ReferenceConfig(**text, attn_type_list=tuple(whole["text_config"]["attn_type_list"])),
        **{field: whole["vision_config"][field] for field in VISION_FIELDS},
        image_token_index=whole["image_token_index"],
        image_grid_pinpoints=tuple(map(tuple, whole["image_grid_pinpoints"])),
    )


def weights(name: str = "vl_tiny_a") -> dict[str, np.ndarray]:
    return {key[2:]: array for key, array in load(name).items() if key.startswith("w:")}


def post_norm() -> tuple[np.ndarray, np.ndarray]:
    """Gain and bias of the norm that the class has and the released features do not see."""
    prefix = "unused:vision_tower.vision_model.post_layernorm"
    return load()[f"{prefix}.weight"], load()[f"{prefix}.bias"]


def size(index: int, name: str = "vl_tiny_a") -> tuple[int, int]:
    """(width, height) of an image."""
    return tuple(meta(name)["images"][index]["size_wh"])


def image(index: int) -> np.ndarray:
    return load()[f"image{index}"]


def images_of(case: str, name: str = "vl_tiny_a") -> list[int]:
    return load(name)[f"{case}:images"].tolist()


def synth(width: int, height: int, k: int = 0) -> np.ndarray:
    """The images that `vl_geom336` does not hold, uint8 (height, width, 3): ramps, hard edges where bytes overflow."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    ramps = [x * (7 + 2 * c + k) + y * (11 - 3 * c + 2 * k) + x * y // (5 + c + k) for c in range(3)]
    blocks = [40 * c * ((x // 16 + y // 16) % 2) + 13 * k for c in range(3)]
    return ((np.stack(ramps, -1) + np.stack(blocks, -1)) % 256).astype(np.uint8)
