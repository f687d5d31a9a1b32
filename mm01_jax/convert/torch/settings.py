"""config.json of a released checkpoint -> our Config: every field that changes the maths, by name, never by default.

Both vocabularies are read wherever they occur: the original's and transformers' own (4.x and 5.x). A field that is
missing, of the wrong type, or given twice with two values is a problem; all problems are reported at once.
"""

import dataclasses
import math
from typing import Any

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.config import Config, ConfigError, DataConfig, ModelConfig, TrainConfig, VisionConfig, rules
from mm01_jax.convert import table
from mm01_jax.convert.torch import unread
from mm01_jax.convert.torch.dialects import DIALECTS, Dialect
from mm01_jax.files import quoted

# Our field -> (type, the original's name, transformers' name or names).
FIELDS = {
    "vocab_size": (int, "vocab_size"),
    "embed_dim": (int, "hidden_size"),
    "num_heads": (int, "num_attention_heads"),
    "num_kv_heads": (int, "num_key_value_heads"),
    "head_dim": (int, "head_dim"),
    "rotary_dim": (int, "rotary_dim"),
    "rope_theta": (float, "rope_theta", "rope_parameters.rope_theta"),
    "num_experts": (int, "num_local_experts"),
    "num_experts_per_token": (int, "num_experts_per_tok"),
    "expert_dim": (int, "intermediate_size"),
    "norm_eps": (float, "rms_norm_eps"),
    "lightning_alpha": (float, "layernorm_linear_attention_alpha", "linear_attn_alpha_factor"),
    "lightning_beta": (float, "layernorm_linear_attention_beta", "linear_attn_beta_factor"),
    "softmax_alpha": (float, "layernorm_full_attention_alpha", "full_attn_alpha_factor"),
    "softmax_beta": (float, "layernorm_full_attention_beta", "full_attn_beta_factor"),
    "experts_alpha": (float, "layernorm_mlp_alpha", "mlp_alpha_factor"),
    "experts_beta": (float, "layernorm_mlp_beta", "mlp_beta_factor"),
}
VISION_FIELDS = {
    "embed_dim": (int, "hidden_size"),
    "num_layers": (int, "num_hidden_layers"),
    "num_heads": (int, "num_attention_heads"),
    "mlp_dim": (int, "intermediate_size"),
    "image_size": (int, "image_size"),
    "patch_size": (int, "patch_size"),
    "norm_eps": (float, "layer_norm_eps"),
}
KINDS = {mixer.original: kind for kind, mixer in table.MIXERS.items()}
KINDS |= {mixer.native: kind for kind, mixer in table.MIXERS.items()}
_MOST_LAYERS = 10_000
_MOST_GRIDS = 1_000
_MOST_BLOCK = 1_024  # whose square each head of each layer has as a buffer; transformers' is 256
# Fields with one value that this model can have; `None` in the tuple lets the field be absent.
_FIXED = {
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "sliding_window": (None,),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
}
_LAYERS = {"attn_type_list", "layer_types", "num_hidden_layers", "partial_rotary_factor", "rope_parameters"}
_NOT_NATIVE = {"postnorm", "shared_intermediate_size"}  # its class always is a post-norm without a shared expert
_TEXT = {name for _, *names in FIELDS.values() for name in names} | _FIXED.keys() | _LAYERS | _NOT_NATIVE
_VL_FIXED = {
    "projector_hidden_act": ("gelu",),
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("default",),
    "process_image_mode": (None, "anyres"),
    "vision_config.hidden_act": ("gelu",),
    "vision_config.num_channels": (3,),
    "vision_config.position_embedding_type": (None, "learned_absolute"),
}
_VISION = {name for _, name in VISION_FIELDS.values()} | {name.removeprefix("vision_config.") for name in _VL_FIXED}
_VL_TOP = {"text_config", "vision_config", "image_token_index", "image_grid_pinpoints", "tie_word_embeddings"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a config.json says: our config (its dtype still to be set), the dialect, the dtype it names, the rest."""

    config: Config
    dialect: Dialect
    dtype: str | None
    plain: dict[str, Any]


def read(plain: dict[str, Any], where: str) -> Settings:
    """The settings of a parsed config.json.

    Raises:
      CheckpointError: everything that is missing, of another type or beyond this model, by name.
    """
    problems: list[str] = []
    dialect = _dialect(plain, problems)
    text = plain.get("text_config") if dialect and dialect.vision else plain
    if dialect and isinstance(text, dict):
        values = {ours: _field(text, names, problems) for ours, (_, *names) in FIELDS.items()}
        values = {ours: _number(FIELDS[ours], values[ours], problems) for ours in FIELDS}
        values["period"], values["num_periods"] = _period(text, problems)
        _check_fixed(plain, text, dialect, problems)
        problems += _unknown(plain, text, dialect)
        if dialect.native and values["num_heads"]:
            problems += native_problems(values["num_heads"])
        block = text.get("block_size")
        if block is not None and (type(block) is not int or not 0 < block <= _MOST_BLOCK):
            problems.append(f"block_size={quoted(block)} is not a whole number from 1 to {_MOST_BLOCK:,}")
        vision = _vision(plain, problems) if dialect.vision else None
        dtypes = _dtypes(plain, text, problems)
    elif dialect:
        problems.append("text_config is missing")
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")
    try:
        model = ModelConfig(**values)
        config = Config(
            name=dialect.model_types[0],
            model=model,
            vision=vision,
            # The released tokenizer is a tokenizer.json; a training run on these weights names its own.
            data=DataConfig(tokenizer="tokenizer.json"),
            train=TrainConfig(steps=1, batch_size=1, sequence_length=8192, loss_chunk=512),
        )
        rules.check(config)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
    return Settings(config, dialect, dtypes[0] if dtypes else None, plain)


def _dialect(plain: dict, problems: list[str]) -> Dialect | None:
    for dialect in DIALECTS.values():
        if plain.get("model_type") in dialect.model_types:
            return dialect
    allowed = ", ".join(dialect.model_types[0] for dialect in DIALECTS.values())
    problems.append(f"model_type={quoted(plain.get('model_type'))}; allowed: {allowed}")
    return None


def _lookup(plain: dict, name: str) -> Any:
    for key in name.split("."):
        plain = plain.get(key) if isinstance(plain, dict) else None
    return plain


def _field(plain: dict, names: list[str], problems: list[str]) -> Any:
    """The one value under any of these names; None where it is missing or contradictory."""
    values = {name: _lookup(plain, name) for name in names}
    values = {name: value for name, value in values.items() if value is not None}
    if not values:
        problems.append(f"{' (or '.join(names)}{')' if len(names) > 1 else ''} is missing" + _missing_advice(names[0]))
        return None
    first = next(iter(values.values()))
    if any(value != first for value in values.values()):
        problems.append(" contradicts ".join(f"{name}={quoted(value)}" for name, value in values.items()))
        return None
    return first


def _missing_advice(name: str) -> str:
    if name == "rotary_dim":
        return " (64 for the released weights; transformers ignores it and rotates whole heads)"
    return ""


def _number(field: tuple, value: Any, problems: list[str]) -> Any:
    kind, name = field[:2]
    if value is None:
        return None
    right = type(value) in ((int,) if kind is int else (int, float)) and math.isfinite(value)
    if not right:
        problems.append(f"{name}={quoted(value)} is not a {'whole ' if kind is int else 'finite '}number")
        return None
    return kind(value)


def _period(text: dict, problems: list[str]) -> tuple[tuple[str, ...] | None, int | None]:
    """The shortest pattern of layers whose repetition is the whole, and how often it repeats."""
    kinds = {name: text[name] for name in ("attn_type_list", "layer_types") if text.get(name) is not None}
    if not kinds:
        problems.append("attn_type_list (or layer_types), the kind of every layer, is missing")
        return None, None
    lists = []
    for name, layer_kinds in kinds.items():
        if (
            not isinstance(layer_kinds, list)
            or not all(type(k) in (int, str) and k in KINDS for k in layer_kinds)
            or not layer_kinds
        ):
            problems.append(f"{name}={quoted(layer_kinds)} is not a list of {', '.join(map(repr, KINDS))}")
            return None, None
        if len(layer_kinds) > _MOST_LAYERS:
            problems.append(f"{name} lists {len(layer_kinds):,} layers; allowed: at most {_MOST_LAYERS:,}")
            return None, None
        lists.append(tuple(KINDS[kind] for kind in layer_kinds))
    if any(layer_kinds != lists[0] for layer_kinds in lists):
        problems.append(" contradicts ".join(kinds))
    layers = lists[0]
    count = text.get("num_hidden_layers")
    if count != len(layers):
        problems.append(f"num_hidden_layers={quoted(count)} contradicts {next(iter(kinds))}, which lists {len(layers)}")
    size = next(
        n for n in range(1, len(layers) + 1) if len(layers) % n == 0 and layers[:n] * (len(layers) // n) == layers
    )
    return layers[:size], len(layers) // size


def _check_fixed(plain: dict, text: dict, dialect: Dialect, problems: list[str]) -> None:
    fixed = {name: (text.get(name), allowed) for name, allowed in _FIXED.items()}
    if dialect.vision:
        fixed |= {name: (_lookup(plain, name), allowed) for name, allowed in _VL_FIXED.items()}
        if plain.get("tie_word_embeddings") is not None:
            fixed["tie_word_embeddings"] = (plain["tie_word_embeddings"], (False,))
    absent = (None,) if dialect.native else ()
    fixed["postnorm"] = (text.get("postnorm"), (*absent, True))
    fixed["shared_intermediate_size"] = (text.get("shared_intermediate_size"), (*absent, 0, [0]))
    for name, (value, allowed) in fixed.items():
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            got = "is missing" if value is None else f"= {quoted(value)}"
            words = " or ".join("none" if choice is None else repr(choice) for choice in allowed)
            problems.append(f"{name} {got}; this model has {words}")
    problems += unread.rope_problems(text)
    if isinstance(text.get("rope_parameters"), dict):
        text = text["rope_parameters"] | text
    share, rotary, head = (text.get(name) for name in ("partial_rotary_factor", "rotary_dim", "head_dim"))
    if share is not None and (type(share) not in (int, float) or share * _whole(head) != _whole(rotary)):
        problems.append(
            f"partial_rotary_factor={quoted(share)} contradicts rotary_dim={quoted(rotary)} of head_dim={quoted(head)}"
        )


def _unknown(plain: dict, text: dict, dialect: Dialect) -> list[str]:
    if not dialect.vision:
        return unread.problems("", text, _TEXT)
    vision = plain["vision_config"] if isinstance(plain.get("vision_config"), dict) else {}
    sections = (("", plain, _VL_TOP | _VL_FIXED.keys()), ("text_config.", text, _TEXT))
    return [said for section in (*sections, ("vision_config.", vision, _VISION)) for said in unread.problems(*section)]


def _whole(value: Any) -> int:
    """A size; 0 of what is none, which is told where it is read."""
    return value if type(value) is int else 0


def _vision(plain: dict, problems: list[str]) -> VisionConfig | None:
    vision = plain.get("vision_config")
    if not isinstance(vision, dict):
        problems.append("vision_config is missing")
        return None
    values = {ours: _field(vision, names, problems) for ours, (_, *names) in VISION_FIELDS.items()}
    values = {ours: _number(VISION_FIELDS[ours], value, problems) for ours, value in values.items()}
    if any(value is None or value <= 0 for value in values.values()):
        problems.append("vision_config: every size must be a number above 0")
        return None
    if values["embed_dim"] % values["num_heads"] or values["image_size"] % values["patch_size"]:
        problems.append("vision_config: hidden_size over num_attention_heads or image_size over patch_size is no whole")
        return None
    token = _number((int, "image_token_index"), _field(plain, ["image_token_index"], problems), problems)
    grids = _grids(plain.get("image_grid_pinpoints"), values["image_size"], problems)
    return None if grids is None or token is None else VisionConfig(**values, grids=grids, image_token=token)


def _grids(pinpoints: Any, side: int, problems: list[str]) -> tuple[tuple[int, int], ...] | None:
    """(columns, rows) of tiles of every resolution in `image_grid_pinpoints`, whose pairs are (width, height)."""
    pairs = pinpoints if isinstance(pinpoints, list) and 0 < len(pinpoints) <= _MOST_GRIDS else [None]
    for pair in pairs:
        sizes = pair if isinstance(pair, list) and len(pair) == 2 else [None]
        if any(type(size) is not int or size < side or size % side for size in sizes):
            got = "is missing" if pinpoints is None else f"has {quoted(pair)}"
            problems.append(f"image_grid_pinpoints {got}; allowed: pairs [width, height] of multiples of {side}")
            return None
    return tuple((width // side, height // side) for width, height in pairs)


def native_problems(num_heads: int) -> list[str]:
    """What transformers' own class cannot be: it knows the decay slopes of powers of two alone."""
    if num_heads & (num_heads - 1):
        return [f"num_attention_heads={num_heads} is no power of two: transformers' slopes are another model's"]
    return []


def _dtypes(plain: dict, text: dict, problems: list[str]) -> list[str]:
    """The dtypes that config.json names, as NumPy writes them: transformers' old name and its new one say the same."""
    found = []
    for settings in (plain,) if text is plain else (plain, text):
        named = {name: settings[name] for name in ("torch_dtype", "dtype") if settings.get(name) is not None}
        for name, value in named.items():
            if not isinstance(value, str):
                problems.append(f"{name}={quoted(value)} is not the name of a dtype")
        texts = [value.removeprefix("torch.") for value in named.values() if isinstance(value, str)]
        if len(set(texts)) > 1:
            problems.append(" contradicts ".join(f"{name}={quoted(value)}" for name, value in named.items()))
        found += texts
    return found
