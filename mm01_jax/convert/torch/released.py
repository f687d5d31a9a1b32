"""Our Config -> config.json of a released dialect, and the model card beside it.

Fields that change the maths come from the Config. The others (length limits, token ids, initialisers) come from the
config.json that the weights once came with, where the checkpoint remembers it, else from the published files.
"""

from typing import Any

from mm01_jax.config import Config, ModelConfig, VisionConfig
from mm01_jax.convert import table
from mm01_jax.convert.torch.dialects import VISION_CONSTANTS, VL_TEXT_CONSTANTS, Dialect
from mm01_jax.convert.torch.settings import FIELDS, VISION_FIELDS, native_problems

_NEVER_CARRIED = ("architectures", "model_type", "torch_dtype", "dtype", "rope_parameters")


def config_json(config: Config, dialect: Dialect, dtype: str, carried: dict[str, Any]) -> dict[str, Any]:
    """The config.json of `dialect` for this model.

    Args:
      dtype: of the weights, as NumPy writes it.
      carried: the config.json the weights came with, or {}.

    Raises:
      ValueError: the dialect cannot say this model.
    """
    if dialect.vision != (config.vision is not None):
        verb, other = ("holds", "only vl-01 keeps them") if config.vision else ("has no", "vl-01 needs them")
        raise ValueError(f"dialect={dialect.name}: the checkpoint {verb} vision weights; {other}")
    if dialect.native and native_problems(config.model.num_heads):
        raise ValueError(f"dialect=native: {native_problems(config.model.num_heads)[0]}")
    if config.model.lightning_norm_eps != 1e-6:
        allowed = "no dialect has a field for it: its code has 1e-6"
        raise ValueError(f"model.lightning_norm_eps={config.model.lightning_norm_eps}: {allowed}")
    top = {"architectures": [dialect.architecture], "model_type": dialect.model_types[0], "torch_dtype": dtype}
    same = carried.get("model_type") in dialect.model_types
    if not dialect.vision:
        return top | _text(config.model, dialect.native, _carry(dialect.constants, carried, same))
    text = _text(config.model, False, _carry(VL_TEXT_CONSTANTS, carried.get("text_config", {}), same))
    text = {
        "architectures": ["MiniMaxText01ForCausalLM"],
        "model_type": "minimax_text_01",
        "torch_dtype": dtype,
        **text,
    }
    vision = _carry(VISION_CONSTANTS, carried.get("vision_config", {}), same) | _vision(config.vision, config.model)
    sections = {"text_config": text, "vision_config": vision}
    return top | _carry(dialect.constants, carried, same) | _images(config.vision) | sections


def _carry(constants: dict[str, Any], carried: dict[str, Any], same: bool) -> dict[str, Any]:
    """Fields that change no number: all that the weights came with, or from another dialect those we know."""
    if not same:
        return {name: carried.get(name, value) if name != "auto_map" else value for name, value in constants.items()}
    return constants | {name: value for name, value in carried.items() if name not in _NEVER_CARRIED}


def _text(model: ModelConfig, native: bool, constants: dict[str, Any]) -> dict[str, Any]:
    mixers = [table.MIXERS[kind] for kind in model.period * model.num_periods]
    kinds = [mixer.native if native else mixer.original for mixer in mixers]
    fields = {}
    for ours, (_, original, *other) in FIELDS.items():
        # transformers 5 reads rope_theta where 4 wrote it.
        name = other[0] if native and other and "." not in other[0] else original
        value = getattr(model, ours)
        fields[name] = int(value) if name == "rope_theta" and value == int(value) else value
    layers = {"layer_types" if native else "attn_type_list": kinds, "num_hidden_layers": model.num_layers}
    return dict(sorted((constants | fields | layers).items()))


def _vision(vision: VisionConfig, model: ModelConfig) -> dict[str, Any]:
    fields = {name: getattr(vision, ours) for ours, (_, name) in VISION_FIELDS.items()}
    return fields | {"model_type": "clip_vision_model", "projection_dim": model.embed_dim}


def _images(vision: VisionConfig) -> dict[str, Any]:
    """How images enter the text, at the top of config.json."""
    pinpoints = [[columns * vision.image_size, rows * vision.image_size] for columns, rows in vision.grids]
    return {
        "image_grid_pinpoints": pinpoints,
        "image_seq_length": vision.num_patches,
        "image_token_index": vision.image_token,
    }


def model_card(config: Config, dialect: Dialect, num_tensors: int, nbytes: int, dtype: str) -> str:
    """README.md of an exported directory."""
    model = config.model
    parameters = f"{num_tensors:,} tensors, {nbytes:,} bytes, {dtype}"
    warning = (
        "\ntransformers' own MiniMax class rotates whole heads instead of the first "
        f"`rotary_dim` = {model.rotary_dim} dims\n(up to 5.23.0 at least) and keeps decays in the weights' dtype: "
        "limit its RoPE and load it in float32\nfor the numbers of this model.\n"
        if dialect.native
        else ""
    )
    return f"""---
library_name: transformers
tags: [minimax, lightning-attention, mixture-of-experts]
---
# {config.name}

Exported by `mm01-convert to-torch --dialect={dialect.name}` ({parameters}).
{model.num_layers} layers ({", ".join(f"{n} {kind}" for kind, n in model.stacks)} per period), width {model.embed_dim},
{model.num_experts} experts of which {model.num_experts_per_token} serve a token.

`sha256.json` has the SHA-256 of every tensor: `mm01-convert check --source=.` compares them.
The weights' licence is that of the checkpoint they came from.
{warning}"""
