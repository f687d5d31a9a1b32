"""What tokenizer_config.json says of special tokens and templates, where it cannot be meant."""

import json

import pytest

from mm01_jax.data import templates
from mm01_jax.data.text import DataError
from mm01_jax.data.tokenizer import BytesTokenizer

ASKED = [{"role": "user", "content": "What is it?"}]


@pytest.mark.parametrize(
    ("key", "said", "got"),
    [
        ("bos_token", 5, "got 5; allowed: a text"),
        ("eos_token", True, "got True"),
        ("eos_token", [1], "got "),
        ("bos_token", {}, "got "),
        ("bos_token", {"content": {"a": [1]}}, "got "),
        ("chat_template", [{"name": "default", "template": t} for t in "ab"], "got two templates named 'default'"),
    ],
)
def test_a_token_that_is_no_text_and_two_templates_of_a_name_are_bad_data_by_file_and_field(tmp_path, key, said, got):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x", key: said}))
    with pytest.raises(DataError, match=rf"tokenizer_config\.json: {key}: {got}"):
        templates.choose(None, [tmp_path], BytesTokenizer())


def test_half_a_pair_of_surrogates_is_the_template_s_or_the_conversation_s_whichever_says_it():
    pytest.importorskip("jinja2")
    said = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"^x\.jinja: chat template: what it says: character 0 is half a pair"):
        templates.Template("{{ '\\ud800' }}" + said, "x.jinja").ids(ASKED, BytesTokenizer())
    with pytest.raises(ValueError, match=r"^a conversation: character \d+ is half a pair of surrogates"):
        templates.Template(said, "x.jinja").ids([ASKED[0] | {"content": "\ud800"}], BytesTokenizer())
