"""Characters that have no token: the tokens of their bytes, where those are there, else they are counted."""

import pytest

from mm01_jax.data.tokenizer import open_tokenizer


def test_characters_are_counted_where_bytes_should_stand_in_and_are_not_there(tmp_path):
    """byte_fallback alone is a promise: it needs the 256 tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = {"</s>": 0} | {letter: number for number, letter in enumerate("abcdef ", start=1)}
    whole = letters | {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
    for vocabulary, lost in ((letters, 2), (whole, 0)):
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
        made.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
        made.save(str(tmp_path / "t.json"))
        words = open_tokenizer(str(tmp_path / "t.json"))
        assert words.can_drop == bool(lost)
        assert [gone for _, gone in words.encode_many(["abé é c".encode()])] == [lost]
