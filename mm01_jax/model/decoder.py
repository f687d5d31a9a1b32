"""The text model: layers, stacks of layers, periods of stacks (paper 2; docs/model.md 0, A.3).

    h = Embed[tokens];  per layer  x = norm(h), h = a x + b Mixer(x);  x = norm(h), h = a x + b Experts(x)
    logits = W_head norm(h)

The residual comes from the normed input (DeepNorm as a delayed post-norm). A *stack* is a maximal stretch of layers of
one kind inside a period; its weights carry two leading dims (period, layer). Two nested scans walk them, so the
compiled program holds one body per stack however deep the model is. A training step of few layers is unrolled instead:
every layer reads its own weights where they lie, and nothing is copied into a stack (`unrolls`).
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm01_jax import sharding
from mm01_jax.config import ComputeConfig, ModelConfig, Rules, SequenceLayout
from mm01_jax.model import decode_step
from mm01_jax.model.cache import DecodeCache, StackCache, in_hand, laid_down
from mm01_jax.model.drafts import by_row
from mm01_jax.model.experts import Experts
from mm01_jax.model.layers import cast_and_gather, einsum, in_use, ones, param, rms_norm, summed_in, xavier
from mm01_jax.model.lightning import slopes
from mm01_jax.model.mixers import MIXERS
from mm01_jax.model.tokens import Tokens
from mm01_jax.model.weights import for_product
from mm01_jax.parallel.documents import document_ids
from mm01_jax.parallel.experts.layer import RouterStats
from mm01_jax.parallel.vocabulary import embed
from pallas_kernels import dispatch
from pallas_kernels.kept import NAMES, STREAM, keep

REMAT = {
    "auto": jax.checkpoint_policies.nothing_saveable,  # nobody has settled it
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "named": jax.checkpoint_policies.save_only_these_names(*NAMES),
}
MOST_UNROLLED = 32  # layers; each adds 2 s of a processor to compiling (benchmarks/train_step.md)


class LayerStack(nnx.Module):
    """A stack of layers, each mixer and experts behind a norm and DeepNorm's residual; one layer when sliced."""

    def __init__(
        self,
        kind: str,
        config: ModelConfig,
        compute: ComputeConfig,
        rules: Rules,
        *,
        rngs: nnx.Rngs,
        stack: tuple[int, ...],
    ):
        gain = (8.0 * config.num_layers) ** -0.25  # DeepNorm's beta: an initialisation gain (paper 4.2)
        D = config.embed_dim
        self.input_norm = param(rngs, (D,), ("act_embed",), ones, stack=stack, compute=compute)
        self.mixer = MIXERS[kind](config, compute, rules, rngs=rngs, stack=stack, gain=gain)
        self.post_norm = param(rngs, (D,), ("act_embed",), ones, stack=stack, compute=compute)
        self.experts = Experts(config, compute, rules, rngs=rngs, stack=stack, gain=gain)
        self.config, self.rules = config, rules

    def __call__(
        self, h_BSD: jax.Array, tokens: Tokens, cache: StackCache | None
    ) -> tuple[jax.Array, StackCache | None, RouterStats]:
        config, dtype = self.config, h_BSD.dtype
        x = rms_norm(h_BSD, in_use(self.input_norm, dtype), config.norm_eps)
        y, cache = self.mixer(sharding.whole_for_mixer(x, self.rules), tokens, cache)
        h = keep(self.residual(x, y, *self.mixer.residual(config)), STREAM)
        x = rms_norm(h, in_use(self.post_norm, dtype), config.norm_eps)
        y, stats = self.experts(x, tokens)
        return self.residual(x, y, config.experts_alpha, config.experts_beta), cache, stats

    def at(self, period: jax.Array, layer: jax.Array) -> "LayerStack":
        """One layer of the stack, as inference takes it out."""
        one = jax.tree.map(lambda weight: weight[period, layer], self)
        one.experts = self.experts.at(period, layer)
        return one

    @jax.named_scope("norms")
    def residual(self, x: jax.Array, y: jax.Array, alpha: float, beta: float) -> jax.Array:
        """alpha x + beta y, constrained to the layout of activations between sub-layers."""
        return sharding.constrain(alpha * x + beta * y, sharding.of_stream(self.rules), "batch", "seq", "act_embed")


class TextModel(nnx.Module):
    """MiniMax-Text-01 as an immutable pytree: built once, then only read."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rules: Rules, *, rngs: nnx.Rngs):
        V, D, M = config.vocab_size, config.embed_dim, config.num_periods
        self.embed = param(rngs, (V, D), ("vocab", "embed"), xavier(V, D), compute=compute)
        self.stacks = nnx.List(
            [LayerStack(kind, config, compute, rules, rngs=rngs, stack=(M, count)) for kind, count in config.stacks]
        )
        self.final_norm = param(rngs, (D,), ("act_embed",), ones, compute=compute)
        self.head = param(rngs, (D, V), ("embed", "vocab"), xavier(D, V), compute=compute)
        self.config, self.compute, self.rules = config, compute, rules

    @jax.named_scope("embed")
    def embed_tokens(self, tokens_BS: jax.Array) -> jax.Array:
        """int32 token ids (B, S) -> what the layers take in, (B, S, D) in the compute dtype."""
        dtype = jnp.dtype(self.compute.dtype)
        return embed(tokens_BS, for_product(self.embed, dtype, self.rules), dtype, rules=self.rules)

    def forward(
        self,
        x_BSD: jax.Array,
        positions_BS: jax.Array,
        segments_BS: jax.Array,
        cache: DecodeCache | None = None,
    ) -> tuple[jax.Array, DecodeCache | None, RouterStats]:
        """The one forward of training (no cache), prefill (many tokens, a cache) and decode (one token, a cache).

        Args:
          x_BSD: embeddings in the compute dtype (`embed_tokens`). positions_BS: int32. Both, and segments, are rows in
            `compute.sequence_layout` (parallel/sequence_layout.py). With a cache, rows as they are, and a token's
            position is its slot; a stream of more rows than the cache has holds drafts (`drafts.py`).
          segments_BS: int32, any; < 0 is padding, which changes nothing. They cut the row into documents as
            `pallas_kernels/documents.py` says. With a cache a row is one document.
        Returns:
          (hidden (B, S, D) after the final norm, the updated cache, router statistics stacked (layers, ...); `choice`
          among them where the experts tell (`views.routed`)).
        """
        config = self.config
        one_a_row = cache is not None and x_BSD.shape[:2] == (len(cache.lengths), 1)  # no drafts
        if one_a_row and decode_step.serves(self, x_BSD.shape[0]):
            return self._step(x_BSD, positions_BS, segments_BS, cache)
        layout = self.compute.sequence_layout if cache is None else "contiguous"
        h = sharding.constrain(x_BSD, sharding.of_stream(self.rules), "batch", "seq", "act_embed")
        documents_BS = document_ids(segments_BS, rules=self.rules, layout=layout)
        start_B = None if cache is None else cache.lengths - by_row(positions_BS, len(cache.lengths))[:, 0]
        body = functools.partial(self._period, Tokens(None, positions_BS, documents_BS, layout, start_B))
        # Training scans over the weights, so that their gradients come out stacked. With a cache every layer reads its
        # own in place: a scan over periods would copy each period's weights first, thrice the traffic of a decode step.
        xs = (jnp.arange(config.num_periods, dtype=jnp.int32), self.stacks if cache is None else None, self.slopes())
        if cache is None and unrolls(config, self.compute.remat):
            h, stats = self._every_layer(Tokens(None, positions_BS, documents_BS, layout), h)
            return rms_norm(h, in_use(self.final_norm, h.dtype), config.norm_eps), None, stats
        (h, caches), stats = jax.lax.scan(body, (h, None if cache is None else cache.stacks), xs)
        if cache is not None:
            seen = jnp.sum(by_row(segments_BS, len(cache.lengths)) >= 0, axis=1, dtype=jnp.int32)
            cache = DecodeCache(caches, cache.lengths + seen)
        stats = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1).reshape(-1, *x[0].shape[2:]), *stats)
        return rms_norm(h, in_use(self.final_norm, h.dtype), config.norm_eps), cache, stats

    @jax.named_scope("head")
    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """float32 logits (B, S, V); training uses the chunked loss instead and never holds them."""
        wide = np.promote_types(hidden_BSD.dtype, np.float32)
        return einsum("bsd,dv->bsv", hidden_BSD, cast_and_gather(self.head, hidden_BSD.dtype, self.rules), wide)

    def __call__(self, tokens_BS: jax.Array, positions_BS: jax.Array, segments_BS: jax.Array) -> jax.Array:
        """float32 logits (B, S, V) of whole rows."""
        return self.logits(self.forward(self.embed_tokens(tokens_BS), positions_BS, segments_BS)[0])

    def slopes(self) -> list[jax.Array]:
        """Per stack, float32 slopes (M, n, N): constants that enter the scan as values, out of any dtype policy."""
        config = self.config
        table = slopes(config.num_heads, config.num_layers).reshape(config.num_periods, len(config.period), -1)
        starts = np.cumsum([0] + [count for _, count in config.stacks])
        return [jnp.asarray(table[:, a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]

    def _step(self, x_BSD, positions_BS, segments_BS, cache: DecodeCache):
        """`forward` of one token a row where kernels of its own serve it."""
        told = decode_step.Told(positions_BS[:, 0], segments_BS[:, 0] >= 0)
        hidden_BD, cache, choice_LAB = decode_step.forward(self, x_BSD[:, 0], told, cache)
        stats = decode_step.stats(choice_LAB, told.active_B, self.config.num_experts)
        if self.stacks[0].experts.tells:
            stats = dataclasses.replace(stats, choice=jnp.swapaxes(choice_LAB, 1, 2)[:, :, None])
        return hidden_BD[:, None], cache, stats

    def _every_layer(self, tokens: Tokens, h: jax.Array) -> tuple[jax.Array, RouterStats]:
        """All layers one after another: (h, router statistics stacked (layers, ...)).

        A stack is taken apart by one split, whose gradient is one concatenation.
        """
        config, dtype, stats = self.config, summed_in(self.final_norm, h.dtype), []
        layers = [_taken_apart(stack, dtype) for stack in self.stacks]
        # Traced and lowered once for all layers of a kind.
        step = functools.partial(_one_layer, tokens.layout)
        if self.compute.remat != "none":
            step = jax.checkpoint(step, policy=REMAT[self.compute.remat])
        step = jax.jit(step)
        for period in range(config.num_periods):
            for stack, slopes_MnN in zip(layers, self.slopes(), strict=True):
                for slope_N in slopes_MnN[period]:
                    h, layer_stats = step((slope_N, tokens.positions_BS, tokens.documents_BS), h, next(stack))
                    stats.append(layer_stats)
        return h, jax.tree.map(lambda *x: jnp.stack(x), *stats)

    def _period(self, tokens: Tokens, carry, xs):
        """One period: each stack scanned over its layers; returns the stacked router statistics per stack."""
        h, caches = carry
        period, stacks, stack_slopes = xs
        new_caches, stats = [], []
        for index, slope in enumerate(stack_slopes):
            sliced = None if stacks is None else stacks[index]
            whole = self.stacks[index] if stacks is None else None
            step = functools.partial(_layer, tokens, period, whole)
            if self.compute.remat != "none" and caches is None:
                step = jax.checkpoint(step, policy=REMAT[self.compute.remat], prevent_cse=False)
            layers = jnp.arange(slope.shape[0], dtype=jnp.int32)
            arrays = None if caches is None else caches[index]
            (h, arrays), stack_stats = jax.lax.scan(step, (h, arrays), (layers, sliced, slope))
            new_caches.append(arrays)
            stats.append(stack_stats)
        return (h, None if caches is None else tuple(new_caches)), stats


def unrolls(config: ModelConfig, remat: str) -> bool:
    """Whether the program of a training step holds every layer: on GPUs, where they are few.

    On an H200 a step of 16 layers takes 129.5 ms instead of 139.6 with full remat, and 105.5 with none, which in a scan
    is slower than full: there XLA stacks all that is kept, unrolled it keeps less (benchmarks/train_step.md).
    With full remat over several devices memory is what is short, and of unrolled layers XLA puts products of
    weights' gradients off beside the messages of others, with all that they multiply (benchmarks/mesh.md).
    """
    if remat in ("auto", "full") and jax.sharding.get_abstract_mesh().size > 1:
        return False
    return config.num_layers <= MOST_UNROLLED and dispatch.platform() == "gpu"


def _taken_apart(stack: LayerStack, dtype: jnp.dtype) -> Iterator[LayerStack]:
    """The layers of a stack (period, layer), one by one, cast once for forward and backward."""
    weights, tree = jax.tree.flatten(stack)
    columns = [_parts(weight.reshape(-1, *weight.shape[2:]), dtype) for weight in weights]
    return iter([jax.tree.unflatten(tree, row) for row in zip(*columns, strict=True)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _parts(stack_LX: jax.Array, dtype: jnp.dtype) -> list[jax.Array]:
    return [part[0].astype(dtype) for part in jax.lax.split(stack_LX, (1,) * stack_LX.shape[0])]


def _together(dtype: jnp.dtype, wide: jax.Array, gradients: list[jax.Array]) -> tuple[jax.Array]:
    """The gradient of a stack, put together in the dtype that its layers' have.

    Behind a barrier: XLA (jax 0.11) else makes the concatenation a part of each of the optimizer's passes, which then
    cannot be one: 68 bytes a weight over two GPUs and 40 on one, where 32 do (benchmarks/mesh.md).
    """
    return (jax.lax.optimization_barrier(jnp.stack(gradients)).astype(wide.dtype),)


_parts.defvjp(lambda stack_LX, dtype: (_parts(stack_LX, dtype), jnp.zeros((), stack_LX.dtype)), _together)


def _one_layer(layout: SequenceLayout, told: tuple[jax.Array, ...], h: jax.Array, layer: LayerStack):
    h, _, stats = layer(h, Tokens(*told, layout), None)
    return h, stats


def _layer(tokens: Tokens, period: jax.Array, stack: LayerStack | None, carry, xs):
    """Scan body of one layer, which comes sliced (training) or is taken out of its whole stack (with a cache)."""
    h, arrays = carry
    index, layer, slope_N = xs
    if layer is None:
        layer = stack.at(period, index)
    cache = None if arrays is None else in_hand(arrays, period, index)
    h, cache, stats = layer(h, tokens._replace(slope_N=slope_N), cache)
    return (h, None if cache is None else laid_down(arrays, cache)), stats
