"""Other implementations, where they are installed, for the kernels' bench.

Each peer of lightning attention is a function of the inputs that returns {what: a function to time}. jla and fla are no
dependencies: they are looked up by name when a benchmark asks, and nowhere else.
`fla.ops.lightning_attn` uses another decay than MiniMax's and is no peer.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention import api

NEEDS = {"jla": ("jla",), "fla": ("fla", "torch"), "torch": ("torch",), "cudnn": (), "xla": ()}


def unavailable(name: str, implementation: str) -> str | None:
    """Why a peer cannot stand beside `implementation` here; None if it can."""
    if name == "xla":
        return "it is what is measured" if implementation == "xla" else None
    if jax.default_backend() != "gpu":
        return f"it is written for CUDA, the code runs on {jax.default_backend()!r}"
    missing = [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def xla(q, k, v, d_out, slope_N) -> dict[str, Callable]:
    """Plain XLA, with the package's gradient rule."""

    def attend(q, k, v):
        return api.lightning_attention(q, k, v, slope_N, implementation="xla")[0]

    def both(q, k, v, d_out):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    return {
        "forward": functools.partial(jax.jit(attend), q, k, v),
        "forward+backward": functools.partial(jax.jit(both), q, k, v, d_out),
    }


def cudnn(q, k, v) -> jax.Array:
    """Causal softmax attention without documents, differentiable."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def torch(q, k, v, d_out) -> dict[str, Callable]:
    """Causal softmax attention without documents: torch's, which gives these heads to cuDNN."""
    functional, attention = (importlib.import_module(f"torch.nn.{name}") for name in ("functional", "attention"))
    gradient = importlib.import_module("torch.autograd").grad
    tensors = [_torch(x).transpose(1, 2) for x in (q, k, v)]
    leaves, d_out = [x.detach().requires_grad_() for x in tensors], _torch(d_out).transpose(1, 2)

    def attend(q, k, v):
        with attention.sdpa_kernel(attention.SDPBackend.CUDNN_ATTENTION):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return {
        "forward": lambda: attend(*tensors).transpose(1, 2),
        "forward+backward": lambda: gradient(attend(*leaves), leaves, d_out),
    }


def jla(q, k, v, d_out, slope_N) -> dict[str, Callable]:
    """jax-linear-attention 0.1.0, Mosaic GPU."""
    ops = importlib.import_module("jla.ops")

    def attend(q, k, v, slope_N):
        decay_BSN = jnp.broadcast_to(-slope_N, q.shape[:3])
        out = ops.linear_attention("simple_gla", q, k, v, g=decay_BSN, scale=1.0, impl="mosaic_gpu")
        return out[0] if isinstance(out, tuple) else out

    def both(q, k, v, slope_N, d_out):
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, slope_N), q, k, v)
        return out, *pull(d_out)

    # The slope is an argument: XLA would spend minutes folding a constant gate's cumulative sum.
    forward, both = jax.jit(attend), jax.jit(both)
    return {"forward": lambda: forward(q, k, v, slope_N), "forward+backward": lambda: both(q, k, v, slope_N, d_out)}


def fla(q, k, v, d_out, slope_N) -> dict[str, Callable]:
    """flash-linear-attention (fla-core 0.6.0), Triton."""
    chunk_simple_gla = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    q, k, v, d_out, slope = (_torch(x) for x in (q, k, v, d_out, slope_N))

    def forward():
        return chunk_simple_gla(q, k, v, g_gamma=-slope, scale=1.0)[0]

    def both():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = chunk_simple_gla(*leaves, g_gamma=-slope, scale=1.0)[0]
        out.backward(d_out)
        return [out, *(x.grad for x in leaves)]

    return {"forward": forward, "forward+backward": both}


def fla_steps(q_BNH, k_BNH, v_BNH, slope_N, state_BNHH, steps: int) -> Callable:
    """`steps` of fla's one-token form, each on the state that the last one returned, as one CUDA graph."""
    fused_recurrent_simple_gla = importlib.import_module("fla.ops.simple_gla").fused_recurrent_simple_gla
    torch = importlib.import_module("torch")
    q, k, v = (_torch(x)[:, None] for x in (q_BNH, k_BNH, v_BNH))
    slope, first = _torch(slope_N), _torch(state_BNHH)

    def run(count):
        state = first
        for _ in range(count):
            _, state = fused_recurrent_simple_gla(
                q, k, v, g_gamma=-slope, scale=1.0, initial_state=state, output_final_state=True
            )

    run(2)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        run(steps)
    return graph.replay


def wait(_result) -> None:
    """Until torch's queue is empty."""
    importlib.import_module("torch").cuda.synchronize()


def array(x) -> jax.Array:
    """A peer's output as a JAX array."""
    return x if isinstance(x, jax.Array) else jnp.from_dlpack(x.detach().contiguous())


def _torch(x: jax.Array):
    return importlib.import_module("torch").from_dlpack(x)
