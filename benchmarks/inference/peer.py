"""transformers' MiniMax of the same sizes in the same run, where it is installed: prefill, then greedy decode.

As it comes, in bfloat16 with sdpa attention. Its RoPE turns whole heads where the released model turns half of each,
so its answers are another model's; the work is no less than ours.
"""

import importlib
import statistics
import time

from benchmarks.inference.bench import Bench
from benchmarks.inference.decode_rows import CONTEXT, OTHERS
from benchmarks.train_torch import described

NAME = "transformers"
TOKENS = 12  # decoded after each prompt
ROWS = 16  # more are left out: its cache and its loop over experts take minutes


class Peer:
    """transformers' model on the first GPU."""

    def __init__(self, bench: Bench):
        self.torch = importlib.import_module("torch")
        self.bench, transformers = bench, importlib.import_module("transformers")
        self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
        with self.torch.device(self.device):
            self.model = transformers.AutoModelForCausalLM.from_config(
                described(bench.config, use_cache=True), dtype=self.torch.bfloat16, attn_implementation="sdpa"
            )
        self.model.eval()

    def prefill(self, rows: int, length: int):
        """(seconds, cache) of whole prompts in one call."""
        torch = self.torch
        ids = torch.as_tensor(self.bench.tokens(rows, length)).long().to(self.device)
        with torch.no_grad():
            self.wait()
            began = time.monotonic()
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            self.wait()
        return time.monotonic() - began, out.past_key_values

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def decode(self, rows: int, cache) -> float:
        """Seconds of a step, the median of TOKENS."""
        torch, times = self.torch, []
        token = torch.zeros((rows, 1), dtype=torch.long, device=self.device)
        with torch.no_grad():
            for _ in range(TOKENS):
                began = time.monotonic()
                out = self.model(input_ids=token, past_key_values=cache, use_cache=True)
                token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                self.wait()
                times.append(time.monotonic() - began)
        return statistics.median(times[2:])


def measure(bench: Bench, rows: list[int], lengths: list[int]) -> None:
    """Its figures beside ours: decode of the same rows, prefill of the shortest prompt."""
    peer = Peer(bench)
    for count in (count for count in rows if count <= ROWS):
        length = CONTEXT.get(count, OTHERS)
        _, cache = peer.prefill(count, length)
        second = peer.decode(count, cache)
        subject = f"decode {count}x{length}, {bench.config.name}"
        bench.add(subject, "step", 1e3 * second, "ms", peer=NAME)
        bench.add(subject, "speed", count / second, "tokens/s", peer=NAME)
    for length in sorted(lengths)[:1]:
        peer.prefill(1, length)
        second, _ = peer.prefill(1, length)
        bench.add(f"prefill 1x{length}, {bench.config.name}", "speed", length / second, "tokens/s", peer=NAME)
