"""The requests of a drill, and what each answers alone from cold.

Their prompts meet in every way that a cache could get wrong: some begin alike and part anywhere, some go on from
another's answer, many end just before, at or just after a grid point, some repeat
themselves.
"""

import dataclasses

import numpy as np

from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request, Result
from mm01_jax.inference.sampling import Sampling

MOST_NEW = 10  # tokens of an answer


class Cases:
    """Requests with what they answer alone: one after another, in an engine that remembers nothing.

    Args:
      alone: the engine that answers them alone, with the sizes of the one that is drilled.
      longest: tokens of a prompt. count: different requests.
    """

    def __init__(self, alone: Engine, vocab_size: int, longest: int, count: int, seed: int):
        self._alone, self._vocab_size, self._longest = alone, vocab_size, longest
        self._random = np.random.default_rng(seed)
        self.requests: list[Request] = []
        self._cold: dict[int, Result] = {}
        for _ in range(count):
            self.requests.append(self._request(self._prompt()))

    def cold(self, number: int) -> Result:
        """What a request answers alone."""
        if number not in self._cold:
            id = self._alone.submit(dataclasses.replace(self.requests[number], guesses=False))
            self._alone.run()
            self._cold[number] = self._alone.forget(id)
        return self._cold[number]

    def _prompt(self) -> np.ndarray:
        random, grid = self._random, self._alone.sizes.grid
        kind = random.integers(4) if self.requests else 0
        start = np.zeros(0, np.int32)
        if kind:
            number = int(random.integers(len(self.requests)))
            start = np.asarray(self.requests[number].prompt)
            if kind == 1:
                start = start[: int(random.integers(1, len(start) + 1))]
            elif kind == 2:
                start = np.concatenate([start, np.array(self.cold(number).tokens, np.int32)])
        length = int(random.integers(1, self._longest + 1))
        if random.integers(2):
            length = max(1, length // grid * grid + int(random.integers(-1, 2)))
        length = min(max(length, len(start) + int(random.integers(0, 2))), self._longest)
        ids = self._vocab_size if random.integers(2) else 3  # of three, so that guesses of what follows are made
        tail = random.integers(ids, size=max(0, length - len(start)))
        return np.concatenate([start, tail.astype(np.int32)])[: self._longest]

    def _request(self, prompt: np.ndarray) -> Request:
        random = self._random
        request = Request(
            prompt=prompt,
            max_tokens=int(random.integers(1, MOST_NEW + 1)),
            seed=int(random.integers(2**32)),
            logprobs=0,
        )
        stop_ids = tuple(int(token) for token in random.integers(self._vocab_size, size=int(random.integers(3))))
        sampling = Sampling(temperature=0.0)
        if random.integers(2):
            top_k, top_p = int(random.choice([0, 20])), float(random.choice([0.8, 1.0]))
            penalty = float(random.choice([1.0, 1.3]))
            sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
        return dataclasses.replace(request, sampling=sampling, stop_ids=stop_ids)
