"""Runs variants of the forward side by side over weights that never lie in memory together.

One layer at a time, and of its experts one at a time: at the released widths the largest piece is 0.7 GB in float32
(an expert), or the head. Every weight is read once, however many variants there are.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mm01_jax.convert.certify.forward import Forward, silu


class Weights:
    """Chunks of a source by leaf and layer, the text model's part of it."""

    def __init__(self, source):
        self._source, self._model = source, source.config.model
        prefix = "text/" if source.config.vision else ""
        self._chunks = {(t.leaf.removeprefix(prefix), t.index): t for t in source.tensors if t.leaf.startswith(prefix)}

    def whole(self, leaf: str) -> np.ndarray:
        """A leaf that is one chunk, in the stored dtype."""
        return self._source.read(self._chunks[leaf, ()])

    def layer(self, layer: int) -> dict[str, np.ndarray]:
        """All weights of a layer but its experts' matrices, by their path inside the stack."""
        stack, index = self._place(layer)
        prefix = f"stacks/{stack}/"
        return {
            leaf.removeprefix(prefix): self._source.read(tensor)
            for (leaf, at), tensor in self._chunks.items()
            if leaf.startswith(prefix) and at == index
        }

    def expert(self, layer: int, expert: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """gate (D, F), up (D, F), down (F, D)."""
        stack, index = self._place(layer)
        names = [f"stacks/{stack}/experts/{name}" for name in ("gate", "up", "down")]
        return tuple(self._source.read(self._chunks[name, (*index, expert)]) for name in names)

    def _place(self, layer: int) -> tuple[int, tuple[int, int]]:
        period, place = divmod(layer, len(self._model.period))
        for stack, (_, count) in enumerate(self._model.stacks):
            if place < count:
                return stack, (period, place)
            place -= count
        raise AssertionError(layer)


def walk(
    weights: Weights,
    tokens_BS: np.ndarray,
    forwards: Mapping[str, Forward],
    place: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[str, int | None, str, np.ndarray]]:
    """Runs several variants side by side, reading each weight once.

    Yields ("state", layer, variant, (B, N, H, H)) of every lightning layer, ("hidden", layer, variant, (B, S, D)) after
    every layer, at last ("logits", None, variant, (B, S, V)). `place` puts images into a
    variant's embeddings (B, S, D).
    """
    config = next(iter(forwards.values())).config
    embed = weights.whole("embed")[tokens_BS]
    hidden = {name: embed.astype(f.dtype) for name, f in forwards.items()}
    if place is not None:
        hidden = {name: place(name, x) for name, x in hidden.items()}
    del embed
    for layer in range(config.num_layers):
        stored, mixed = weights.layer(layer), {}
        for name, f in forwards.items():
            w = {path: x.astype(f.dtype) for path, x in stored.items()}
            mixed[name], state = _mixer_layer(f, layer, hidden[name], w)
            if state is not None:
                yield "state", layer, name, state
        hidden = _experts_layer(weights, layer, forwards, mixed, stored)
        for name, h in hidden.items():
            yield "hidden", layer, name, h
    gain, head = weights.whole("final_norm"), weights.whole("head")
    for name, f in forwards.items():
        x = f.rms_norm(hidden[name], gain.astype(f.dtype), f.config.norm_eps)
        yield "logits", None, name, x @ head.astype(f.dtype)


def _mixer_layer(f: Forward, layer: int, h, w) -> tuple[np.ndarray, np.ndarray | None]:
    config = f.config
    x = f.rms_norm(h, w["input_norm"], config.norm_eps)
    kind = config.period[layer % len(config.period)]
    if kind not in _MIXERS:
        raise ValueError(
            f"layers of kind {kind!r} have no formula in convert/certify/walk.py: {', '.join(_MIXERS)} have"
        )
    out, state, alpha, beta = _MIXERS[kind](f, layer, x, w)
    return f.residual(h, x, out, alpha, beta), state


def _lightning(f: Forward, layer: int, x, w):
    return *f.lightning(layer, x, w), f.config.lightning_alpha, f.config.lightning_beta


def _softmax(f: Forward, layer: int, x, w):
    del layer
    return f.softmax(x, w), None, f.config.softmax_alpha, f.config.softmax_beta


# Kind of layer -> (its output, the state it holds after the text or None, the residual's alpha, beta).
_MIXERS = {"lightning": _lightning, "softmax": _softmax}


def _experts_layer(weights: Weights, layer: int, forwards, mixed, stored) -> dict[str, np.ndarray]:
    """One expert's matrices at a time, for all variants that send it a token."""
    inputs, routes, outputs = {}, {}, {}
    for name, f in forwards.items():
        x = f.rms_norm(mixed[name], stored["post_norm"].astype(f.dtype), f.config.norm_eps)
        inputs[name] = x.reshape(-1, x.shape[-1])
        routes[name] = f.route(inputs[name], stored["experts/router"].astype(f.dtype))
        outputs[name] = np.zeros_like(inputs[name])
    for expert in range(next(iter(forwards.values())).config.num_experts):
        users = {name: np.nonzero(chosen == expert) for name, (chosen, _) in routes.items()}
        users = {name: at for name, at in users.items() if len(at[0])}
        matrices = weights.expert(layer, expert) if users else ()
        for name, (rows, choice) in users.items():
            gate, up, down = (m.astype(forwards[name].dtype) for m in matrices)
            x = inputs[name][rows]
            out = (silu(x @ gate) * (x @ up)) @ down
            outputs[name][rows] += routes[name][1][rows, choice][:, None] * out
    return {
        name: f.residual(
            mixed[name],
            inputs[name].reshape(mixed[name].shape),
            outputs[name].reshape(mixed[name].shape),
            f.config.experts_alpha,
            f.config.experts_beta,
        )
        for name, f in forwards.items()
    }
