"""Generation and scoring that meet numbers which are none say where that began, instead of an answer."""

import jax
import numpy as np
import pytest

from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.evals import perplexity
from mm01_jax.inference import engine_devices, nonfinite, text
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.nonfinite import NotFinite
from tests import small


def spoilt(path: str, value: float):
    """The small model with the first number of a leaf replaced in its last layer, or of the whole leaf."""

    def plant(keys, x):
        if jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value") != path:
            return x
        changed = np.array(x)
        changed[(*(-1 for _ in range(2)), ...) if "stacks" in path else ...] = value
        return jax.device_put(changed, x.sharding)

    with small.one_device():
        model = small.model()
        found = jax.tree_util.tree_map_with_path(plant, model)
    assert any(
        (np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (model, found)), strict=True)
    )
    return found


PLACES = {
    ("embed", np.nan): "in the embedding, at token 0 of row 0",
    ("stacks/0/mixer/out", np.inf): "in layer 0 (lightning), at token 0 of row 0",
    ("stacks/1/experts/down", np.nan): "in layer 1 (softmax), at token 0 of row 0",
    ("final_norm", np.nan): "in the final norm, at token 0 of row 0",
    ("head", np.inf): "in the head, at token 0 of row 0",
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[0])
def test_generation_says_in_which_layer_numbers_first_are_none(place, monkeypatch):
    monkeypatch.setattr(engine_devices, "jit", small.unoptimised)
    model = spoilt(*place)
    with pytest.raises(NotFinite, match=r"^the logits are not finite: numbers first are none") as caught:
        text.generate(model, BytesTokenizer(), ["ABC"], max_tokens=4)
    assert PLACES[place] in str(caught.value) and "\n" not in str(caught.value)


def test_the_engine_says_so_too():
    model = spoilt("stacks/1/experts/down", np.nan)
    engine = Engine(model, num_slots=1, max_length=16, grid=8, pieces=1, steps=2)
    engine.submit(Request(prompt=[65, 66, 67], max_tokens=4))
    with pytest.raises(NotFinite, match=r"layer 1 \(softmax\), at token 0 of row 0"):
        engine.run()


def test_scoring_says_so_too(tmp_path):
    config = small.config(small.write_text(tmp_path), train__batch_size=2)
    with pytest.raises(NotFinite, match=r"layer 1 \(softmax\)"):
        perplexity.perplexity(spoilt("stacks/1/experts/down", np.nan), config)


def test_however_many_layers_are_looked_at_one_program_is_compiled_for_each_kind():
    compiled = nonfinite._compiled(nonfinite._layer)
    before = compiled._cache_size()
    with small.one_device():
        model = small.model(small.variant(num_periods=3))
    with pytest.raises(NotFinite, match="first are none in none of the layers"):
        nonfinite.report_texts(model, [[65, 66, 67]])
    assert compiled._cache_size() == before + 2  # lightning, softmax


def test_what_is_wrong_beyond_the_first_tokens_is_found_too(monkeypatch):
    monkeypatch.setattr(nonfinite, "_FIRST_TOKENS", 2)
    model = spoilt("embed", np.nan)
    rows = np.arange(8, dtype=np.int32)[None] % 2
    segments = np.where(np.arange(8) < 5, -1, 0)[None]  # padding is looked at by nobody
    with pytest.raises(NotFinite, match="in the embedding, at token 5 of row 0"):
        nonfinite.report(model, rows, segments)
