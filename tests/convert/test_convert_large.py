"""What a PyTorch directory that somebody made on purpose costs whoever opens it."""

import os

import numpy as np
import pytest

from mm01_jax.checkpoint import CheckpointError
from mm01_jax.config import ModelConfig
from mm01_jax.convert import table
from mm01_jax.convert.check import check
from mm01_jax.convert.sources import open_source
from mm01_jax.convert.torch import decay, files, structure
from mm01_jax.convert.torch.settings import read
from mm01_jax.loading import load_model
from tests.convert import samples

QUIET = {"log": lambda line: None}


def test_a_layer_of_any_number_of_digits_is_a_surplus_tensor_by_its_name(tmp_path):
    name = f"model.layers.{'1' * 5000}.self_attn.qkv_proj.weight"
    found = samples.tensors("original") | {name: np.zeros(0, np.float32)}
    source = samples.write(tmp_path / "in", samples.settings("original"), found, shards=1)
    with pytest.raises(CheckpointError, match=r"in: .*surplus 'model.layers.111+\.\.\.1+.self_attn"):
        open_source(source)


def test_an_index_of_very_many_shards_is_refused_before_one_is_opened(tmp_path, monkeypatch):
    source = samples.make(tmp_path / "in", shards=3)
    os.truncate(source / "model-00001-of-00003.safetensors", 0)
    monkeypatch.setattr(files, "_MOST_SHARDS", 2)
    with pytest.raises(CheckpointError, match=r"index.json: names 3 shards; allowed: at most 2"):
        open_source(source)


def test_of_very_many_surplus_names_the_first_are_looked_at_and_their_number_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, "_MOST_TOLD", 10)
    found = samples.tensors("original")
    found |= {f"a{n}.shared_mlp.\x1b": np.zeros(0, np.uint8) for n in range(2 * len(found))}
    source = samples.write(tmp_path / "in", samples.settings("original"), found, shards=1)
    many, every = len(found) * 2 // 3, len(found)
    with pytest.raises(CheckpointError) as caught:
        open_source(source)
    assert f"{many:,} of {every:,} tensors are U8; surplus {many:,} tensors; surplus 10 of 'a*." in str(caught.value)


def test_of_decay_buffers_of_another_model_one_head_is_read_and_a_listing_is_named(tmp_path, monkeypatch):
    found = samples.tensors("native", dtype="float32")
    found |= {name: np.zeros_like(array) for name, array in found.items() if "decay" in name or "slope" in name}
    source = samples.write(tmp_path / "in", samples.settings("native", dtype="float32"), found)
    heads = []
    monkeypatch.setattr(decay, "_of_head", lambda *given, of=decay._of_head: heads.append(given[2]) or of(*given))
    with pytest.raises(CheckpointError, match="no decay buffer was looked at beyond these"):
        check(source, **QUIET)
    assert heads == [0] * 12
    with pytest.raises(CheckpointError, match="the decay of layer"):
        load_model(source)


def test_tensors_of_a_period_of_very_many_layers_are_listed_in_time_that_grows_with_them(monkeypatch):
    plain = samples.settings("original")
    kinds = [kind for before in range(1, 12) for kind in [0] * before + [1]]  # which do not repeat
    plain |= {"num_hidden_layers": 300, "attn_type_list": kinds + [0] * (300 - len(kinds))}
    config = read(plain, "config.json").config.model
    stacks, asked = ModelConfig.stacks, []
    monkeypatch.setattr(ModelConfig, "stacks", property(lambda model: asked.append(1) or stacks.__get__(model)))
    assert len({tensor.name for tensor in table.tensors(config)}) == 3 + 300 * (7 + 3 * config.num_experts)
    assert len(asked) < 10
