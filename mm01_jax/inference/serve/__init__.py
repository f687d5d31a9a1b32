"""mm01-serve: an OpenAI-compatible server on the engine (docs/serving.md).

Two processes. The command's own has the model: `engine_loop` steps the engine and says what each step brought. The
other one (`front_process`, which imports no jax) speaks HTTP: it reads and checks what clients send, makes token ids of
it, and writes answers as their tokens come. Between them lies a pair of sockets (`channel`).

    client → body → chat | completions (fields: what may be asked) → asked → channel → engine_loop → Engine
    client ← replies (whole, or as events) ← chat | completions (shapes) ← asked ← channel ←
"""
