"""One process of several that hold one engine: python -m tests.inference.engine.several CHECKPOINT MESH [STEPS]

After so many steps the second process dies without a word.
"""

import itertools
import os
import sys

from mm01_jax import cluster, command

PROMPTS = ("def f", "x", "import self for", "return", "class")


def main(argv: list[str]) -> None:
    cluster.join()

    from mm01_jax.inference import engine_devices
    from mm01_jax.inference.engine import Engine
    from mm01_jax.inference.engine_processes import follow, lead
    from mm01_jax.inference.engine_request import Request
    from mm01_jax.inference.sampling import Sampling
    from mm01_jax.loading import load
    from tests import small

    engine_devices.jit = small.unoptimised
    model, tokenizer, _ = load(argv[0], argv[1])
    engine = Engine(model, num_slots=4, max_length=64, grid=16, steps=4, vocab_size=tokenizer.vocab_size)
    if cluster.is_first():
        led = lead(engine)
        sampling = Sampling(temperature=1.0, top_p=0.9)
        ids = [
            led.submit(Request(prompt=tokenizer.encode(text), max_tokens=20, sampling=sampling, seed=n))
            for n, text in enumerate(PROMPTS)
        ]
        ids.append(led.submit(Request(prompt=tokenizer.encode("y"), max_tokens=6, mask=lambda said: [65 + len(said)])))
        led.step()
        led.cancel(ids[1])
        asked = Request(prompt=tokenizer.encode("def"), max_tokens=20, sampling=sampling, seed=9)
        ids += led.submit_samples(asked, 2)
        list(led.stream(ids[0]))
        led.preempt(ids[-1])
        led.run()
        led.close()
        print("answer", [led.result(id).tokens for id in ids if id != ids[1]], flush=True)
    else:
        left = iter(range(int(argv[2])) if len(argv) > 2 else itertools.count())
        follow(engine, lambda events: next(left, None) is None and os._exit(9))
        print("answer", [engine.result(id).tokens for id in (0, 2, 3, 4, 5, 6, 7)], flush=True)


if __name__ == "__main__":
    sys.exit(command.run(main))
