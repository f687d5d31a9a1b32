"""Fields of config.json that are not read, because they change no number; one that is neither is refused by name."""

from collections.abc import Iterable
from typing import Any

from mm01_jax.files import quoted, shown
from mm01_jax.messages import listing

_OF_TRAINING = """attention_dropout dropout initializer_factor initializer_range output_router_logits
router_aux_loss_coef router_jitter_noise use_cache ignore_index chunk_size_feed_forward gradient_checkpointing
pretraining_tp"""
_OF_TEXT = frozenset({"block_size", "max_position_embeddings", "max_model_len", "shared_moe_mode", "image_seq_length"})
_OF_VISION = frozenset({"projection_dim", "vocab_size"})
# What transformers' PretrainedConfig has for any model, 4.x and 5.x.
_OF_ANY_MODEL = """architectures auto_map model_type torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss
transformers_version transformers.js_config tokenizer_class bos_token_id eos_token_id pad_token_id sep_token_id
decoder_start_token_id prefix finetuning_task id2label label2id num_labels task_specific_params problem_type return_dict
output_attentions output_hidden_states is_decoder tie_encoder_decoder cross_attention_hidden_size"""
_OF_SAMPLING = """max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups
diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
begin_suppress_tokens"""
_OFF = {"pruned_heads": {}, "add_cross_attention": False, "is_encoder_decoder": False}  # as this model has them
_ANYWHERE = frozenset(f"{_OF_TRAINING} {_OF_ANY_MODEL} {_OF_SAMPLING}".split())


def problems(section: str, plain: dict[str, Any], read: Iterable[str]) -> list[str]:
    """Fields of a section (`""`, `text_config.`, `vision_config.`) whose meaning is unknown, as one problem.

    A field that is null says nothing, and a name that begins with `_` is transformers' own. read: what is looked at.
    """
    known = _ANYWHERE | (_OF_VISION if section == "vision_config." else _OF_TEXT) | set(read)
    said = {name: value for name, value in plain.items() if name not in known and not name.startswith("_")}
    unknown = [name for name, value in said.items() if value is not None and value != _OFF.get(name)]
    if not unknown:
        return []
    what = listing(unknown, ", ", lambda name: f"{section}{shown(name)}={quoted(plain[name])}")
    return [f"{what}: not known to leave every number as it is; take out of config.json what does"]


def rope_problems(text: dict[str, Any]) -> list[str]:
    """`rope_parameters` that say anything but an unscaled base, which stands in `rope_theta`."""
    rope = text.get("rope_parameters")
    if rope is None:
        return []
    if not isinstance(rope, dict):
        return [f"rope_parameters={quoted(rope)} is not an object"]
    allowed = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
    found = [
        f"rope_parameters.{name}={quoted(rope[name])}; this model has 'default'"
        for name in allowed[:2]
        if rope.get(name) not in (None, "default")
    ]
    other = [name for name in rope if name not in allowed]
    what = listing(other, ", ", lambda name: f"rope_parameters.{shown(name)}={quoted(rope[name])}")
    return found + ([f"{what}; allowed: {', '.join(allowed)}"] if other else [])
