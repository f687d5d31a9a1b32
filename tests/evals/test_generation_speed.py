"""Samples of all families are made fast and in little memory, whatever their length."""

import json
import subprocess
import sys

import pytest

MADE = """
import json, resource, sys, time
from mm01_jax.data import prose
from mm01_jax.data.tokenizer import open_tokenizer
from mm01_jax.evals.pieces import Pieces
from mm01_jax.evals.ruler import families
from mm01_jax.evals.ruler.names import FAMILIES
pieces, count, tokens = Pieces(open_tokenizer(sys.argv[1])), 0, 0
began = time.process_time()
for task in FAMILIES:
    for length in (4096, 8192, 16384, 32768, 65536):
        for sample in families.samples(task, length, 50, pieces):
            count, tokens = count + 1, tokens + sample.size
            assert sample.size <= length
print(json.dumps([count, tokens, time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The tokenizer.json of 8,192 tokens made of the library's sentences."""
    tokenizers = pytest.importorskip("tokenizers")
    from mm01_jax.data import prose

    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    options = {"initial_alphabet": tokenizers.pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=8192, special_tokens=["<|endoftext|>"], **options)
    found.train_from_iterator(prose.sentences(), trainer)
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    found.save(str(path))
    return path


@pytest.mark.slow
def test_3_250_samples_of_thirteen_families_to_64k_take_a_minute_of_a_processor_and_a_gibibyte(tokenizer):
    shell = [sys.executable, "-c", MADE, str(tokenizer)]
    made = subprocess.run(shell, capture_output=True, check=True, timeout=600, text=True).stdout
    count, tokens, seconds, kibibytes = json.loads(made)
    assert count == 3250 and tokens > 75_000_000
    assert seconds <= 60 and kibibytes <= 2**20
