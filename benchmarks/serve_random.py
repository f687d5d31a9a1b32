"""mm01-serve's two processes with random weights of a config, after its engine alone has said how fast it is.

The engine is made as mm01-serve makes it; ids that it draws are bytes, so that no answer ends before its time. A line
`own USERS TOKENS_A_SECOND` for each number of users, each asking again when it is answered; then it serves until
SIGTERM. `benchmarks.serve_engine` starts it.

    python -m benchmarks.serve_random --config=benchmarks/peer_shape.py --slots=128 --context=1024 --users=1,8,32,128
"""

import functools
import sys
import time

import jax
import numpy as np

from benchmarks.inference.bench import configured, random_model
from benchmarks.serve import Load
from mm01_jax.config import command_line
from mm01_jax.data.tokenizer import BytesTokenizer
from mm01_jax.inference.engine import Engine
from mm01_jax.inference.engine_request import Request
from mm01_jax.inference.grammars import Grammars
from mm01_jax.inference.serve import front
from mm01_jax.inference.serve.engine_loop import EngineLoop
from mm01_jax.inference.serve.room import room_of
from tests.command_line import Parser, list_of_whole, whole
from tests.inference.serve.fronts import TOLD


class Clock:
    """Where an engine's time goes on the host: seconds and calls of what it does with its devices. What `read` takes is
    waiting for them, what the others take is telling them."""

    NAMES = ("fill", "prefill", "get_piece", "decode", "read")

    def __init__(self, engine: Engine):
        self._engine = engine
        self.start()
        for name in self.NAMES:
            setattr(engine.devices, name, functools.partial(self._timed, name, getattr(engine.devices, name)))

    def start(self) -> None:
        self._spent, self._before = dict.fromkeys(self.NAMES, (0.0, 0)), self._engine.statistics()["seconds"]

    def _timed(self, name: str, what, *given, **told):
        began = time.monotonic()
        try:
            return what(*given, **told)
        finally:
            seconds, calls = self._spent[name]
            self._spent[name] = seconds + time.monotonic() - began, calls + 1

    def said(self) -> str:
        whole = self._engine.statistics()["seconds"] - self._before
        parts = [f"{name} {seconds:.3f} s in {calls}" for name, (seconds, calls) in self._spent.items()]
        other = whole - sum(seconds for seconds, _ in self._spent.values())
        return f"steps {whole:.3f} s: {', '.join(parts)}, the host's own {other:.3f} s"


class Endless(BytesTokenizer):
    """Without the token that ends a document."""

    vocab_size = 256


def engine_of(config: str, context: int, slots: int, steps: int) -> Engine:
    """As `mm01_jax.inference.serve.__main__` makes it."""
    dtype = "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"
    model = random_model(configured(command_line.load_config(config), dtype), seed=0)
    room = room_of(model, context, slots, None)
    return Engine(
        model,
        num_slots=room.slots,
        max_length=room.context,
        tokenizer=Endless(),
        prefix_bytes=room.prefix_bytes,
        steps=steps,
        logprobs=20,
        **room.cuts,
    )


def own(engine: Engine, load: Load, users: int, requests: int) -> float:
    """Tokens a second of so many users without a server."""
    prompts, open_now, count = load.prompts(f"own {users}"), set(), 0
    asked = [np.array(next(prompts), np.int32) for _ in range(requests)]
    began = time.monotonic()
    while asked or open_now:
        while asked and len(open_now) < users:
            request = Request(prompt=asked.pop(), max_tokens=load.answer, seed=len(asked), stop_ids=(256,))
            open_now.add(engine.submit(request))
        for event in engine.step():
            count += len(event.tokens)
            if event.finish is not None:
                engine.forget(event.id)
                open_now.remove(event.id)
    speed = count / (time.monotonic() - began)
    engine.run()  # what is to be remembered is, before somebody else is timed
    return speed


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.serve_random", __doc__)
    parser.add_argument("--config", default="benchmarks/peer_shape.py")
    parser.add_argument("--context", type=whole(2), default=1024, help="tokens of a prompt and its answer")
    parser.add_argument("--slots", type=whole(1), default=128)
    parser.add_argument("--steps", type=whole(1), default=4, help="tokens drawn at a time")
    parser.add_argument("--users", type=list_of_whole(1), default=[], help="at a time, one number after another")
    parser.add_argument("--requests", type=whole(1), default=8, help="of each user")
    parser.add_argument("--prompt", type=whole(1), default=512, help="tokens")
    parser.add_argument("--answer", type=whole(1), default=128, help="tokens")
    parser.add_argument("--compile-only", action="store_true", help="end when all programs are compiled")
    given = parser.parse_args(argv)
    engine = engine_of(given.config, given.context, given.slots, given.steps)
    print(f"{engine.sizes}, {engine.memory.prefix.budget:,} bytes remembered", flush=True)
    if given.compile_only:
        return 0
    load, clock = Load("random", given.prompt, given.answer, 256, False), Clock(engine)
    for users in given.users:
        own(engine, load, users, max(4, users))  # what a first time costs
        clock.start()
        print(f"own {users} {own(engine, load, users, given.requests * users)}", flush=True)
        print(f"its {clock.said()}", flush=True)
    clock.start()
    serve(engine)
    print(f"served, {clock.said()}", flush=True)
    return 0


def serve(engine: Engine) -> None:
    listening = front.listen("127.0.0.1", 0)
    port, sizes = listening.getsockname()[1], engine.sizes
    told = {"context": sizes.max_length, "vocab_size": engine.limits.vocab_size, "most": 100_000}
    told |= {"slots": sizes.num_slots, "device": jax.devices()[0].device_kind, "name": "random"}
    with front.Front(listening, []) as made:
        made.ready(TOLD | told)
        print(f"http://127.0.0.1:{port}/v1 serves", flush=True)
        EngineLoop(engine, made.channel, Grammars(Endless(), engine.limits.vocab_size, {256})).run()


if __name__ == "__main__":
    sys.exit(main())
