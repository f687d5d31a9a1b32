"""config.json of every dialect: one model in both vocabularies; a field that changes the maths is never guessed."""

import dataclasses

import pytest

from configs import text_01
from mm01_jax.checkpoint import CheckpointError
from mm01_jax.config import VisionConfig
from mm01_jax.convert.torch import released, unread
from mm01_jax.convert.torch.dialects import DIALECTS
from mm01_jax.convert.torch.settings import FIELDS, VISION_FIELDS, read
from tests.convert import samples

CONFIG = dataclasses.replace(text_01.get_config(), name="text")
VISION = VisionConfig(embed_dim=1024, num_layers=24, num_heads=16, mlp_dim=4096, image_size=336, patch_size=14)
ARITHMETIC = [*FIELDS, "period", "num_periods", "lightning_norm_eps"]


def maths(model) -> dict:
    return {name: getattr(model, name) for name in ARITHMETIC}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_released_config_is_read_back_as_the_same_model(dialect):
    config = dataclasses.replace(CONFIG, vision=VISION if dialect == "vl-01" else None)
    plain = released.config_json(config, DIALECTS[dialect], "bfloat16", {})
    found = read(plain, "config.json")
    assert maths(found.config.model) == maths(config.model) and found.config.vision == config.vision
    assert found.dialect.name == dialect and found.dtype == "bfloat16"


def test_released_vision_config_is_the_published_one():
    plain = released.config_json(dataclasses.replace(CONFIG, vision=VISION), DIALECTS["vl-01"], "bfloat16", {})
    assert plain["text_config"]["shared_intermediate_size"] == [0]
    assert plain["text_config"]["max_position_embeddings"] == 8192
    pairs = {tuple(pair) for pair in plain["image_grid_pinpoints"]}
    assert len(plain["image_grid_pinpoints"]) == len(pairs) == 28 and pairs == {(h, w) for w, h in pairs}
    assert plain["vision_config"]["projection_dim"] == 6144 and plain["vision_config"]["hidden_act"] == "gelu"


def test_layers_of_text_01_are_seven_lightning_and_one_softmax_ten_times():
    plain = released.config_json(CONFIG, DIALECTS["original"], "bfloat16", {})
    assert plain["attn_type_list"] == ([0] * 7 + [1]) * 10
    assert plain["layernorm_mlp_alpha"] == pytest.approx(160**0.25, abs=1e-15)
    native = released.config_json(CONFIG, DIALECTS["native"], "bfloat16", {})
    assert native["layer_types"] == (["linear_attention"] * 7 + ["full_attention"]) * 10


@pytest.mark.parametrize("value", [0, [0]])
def test_no_shared_expert_is_zero_or_a_list_of_zero(value):
    read(samples.settings("original") | {"shared_intermediate_size": value}, "config.json")


@pytest.mark.parametrize("dialect", samples.DIALECTS)
def test_every_field_of_the_maths_is_named_when_it_is_missing(dialect):
    names = [name for _, *names in FIELDS.values() for name in names] + ["hidden_act", "tie_word_embeddings"]
    names += ["attn_type_list", "layer_types", "num_hidden_layers"]
    tried = 0
    for name in names:
        plain = samples.settings(dialect)
        text = plain["text_config"] if dialect == "vl-01" else plain
        if text.pop(name, None) is not None:
            tried += 1
            with pytest.raises(CheckpointError, match=name):
                read(plain, "config.json")
    assert tried >= 20
    for _, name in VISION_FIELDS.values() if dialect == "vl-01" else ():
        plain = samples.settings(dialect)
        plain["vision_config"] = {key: value for key, value in plain["vision_config"].items() if key != name}
        with pytest.raises(CheckpointError, match=name):
            read(plain, "config.json")


def test_problems_of_a_config_are_reported_together():
    plain = samples.settings("original") | {"rotary_dim": "8", "postnorm": False, "sliding_window": 7}
    del plain["rope_theta"]
    with pytest.raises(CheckpointError) as error:
        read(plain, "config.json")
    assert all(name in str(error.value) for name in ("rotary_dim", "postnorm", "sliding_window", "rope_theta"))


def test_transformers_5_rope_parameters_are_read_and_must_not_contradict():
    plain = samples.settings("native")
    theta = plain.pop("rope_theta")
    plain["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
    assert read(plain, "config.json").config.model.rope_theta == theta
    with pytest.raises(CheckpointError, match="contradicts rope_parameters.rope_theta"):
        read(plain | {"rope_theta": 1e4}, "config.json")
    with pytest.raises(CheckpointError, match="rope_type='yarn'"):
        read(plain | {"rope_parameters": {"rope_theta": theta, "rope_type": "yarn"}}, "config.json")


def test_heads_that_transformers_slopes_cannot_be_are_refused_in_native_alone():
    fields = {"num_attention_heads": 6, "num_key_value_heads": 2}
    read(samples.settings("original") | fields, "config.json")
    with pytest.raises(CheckpointError, match="num_attention_heads=6 is no power of two"):
        read(samples.settings("native") | fields, "config.json")


def test_norm_eps_that_no_dialect_can_say_is_refused_on_export():
    model = dataclasses.replace(CONFIG.model, lightning_norm_eps=1e-5)
    with pytest.raises(ValueError, match="lightning_norm_eps=1e-05"):
        released.config_json(dataclasses.replace(CONFIG, model=model), DIALECTS["original"], "bfloat16", {})


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        (YARN, "rope_parameters.rope_type='yarn'"),
        ({"type": "yarn", "factor": 4.0}, "rope_parameters.type='yarn'"),
        ({"rope_type": ["yarn"]}, r"rope_parameters.rope_type=\['yarn'\]"),
        ({"rope_type": "default", "factor": 4.0}, "rope_parameters.factor=4.0; allowed: rope_type, type, rope_theta"),
        ({"full_attention": YARN}, "rope_parameters.full_attention="),
        ([YARN], "rope_parameters=.* is not an object"),
        ("yarn", "rope_parameters='yarn' is not an object"),
    ],
)
@pytest.mark.parametrize("dialect", samples.DIALECTS)
def test_rope_parameters_that_scale_in_any_spelling_are_refused(dialect, rope, said):
    plain = samples.settings(dialect)
    (plain["text_config"] if dialect == "vl-01" else plain)["rope_parameters"] = rope
    with pytest.raises(CheckpointError, match=said):
        read(plain, "config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_qk_norm", True), ("norm_topk_prob", False), ("final_logit_softcapping", 20.0), ("mlp_bias", True)]
    + [("quantization", {"bits": 4}), ("rope_type", "yarn"), ("attn_window_size", 0), ("pruned_heads", {"0": [1]})],
)
@pytest.mark.parametrize("section", [None, "text_config", "vision_config", "top"])
def test_a_field_that_is_not_known_to_change_no_number_is_refused_by_name(section, name, value):
    plain = samples.settings("vl-01" if section else "original")
    if section in (None, "top"):
        plain[name] = value
    else:
        plain[section] = plain[section] | {name: value}
    inner = "" if section in (None, "top") or name == "mlp_bias" else f"{section}."
    with pytest.raises(CheckpointError, match=f"{inner}{name}"):
        read(plain, "config.json")


def test_fields_that_change_no_number_are_taken_and_so_are_unknown_ones_that_are_null():
    plain = samples.settings("original")
    plain |= {"transformers_version": "4.45.2", "_name_or_path": "x", "pad_token_id": 0, "temperature": 1.0}
    read(plain | {"rope_scaling": None, "pruned_heads": {}, "is_decoder": False, "use_qk_norm": None}, "config.json")
    vision = samples.settings("vl-01")
    vision["vision_config"] = vision["vision_config"] | {"projection_dim": 16, "vocab_size": 32000, "pruned_heads": {}}
    read(vision | {"image_seq_length": 4, "ignore_index": -100}, "config.json")


def test_very_many_unknown_fields_are_one_problem(monkeypatch):
    told = []
    monkeypatch.setattr(unread, "quoted", lambda value, quoted=unread.quoted: told.append(value) or quoted(value))
    plain = samples.settings("original") | {f"unknown_{i}": i for i in range(100_000)}
    with pytest.raises(CheckpointError, match="unknown_0=0, .* and 99,988 more: not known") as error:
        read(plain, "config.json")
    assert len(str(error.value)) < 1000 and told == list(range(12))
