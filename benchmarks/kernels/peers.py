"""Other libraries' lightning attention with MiniMax's decay, where they are installed, for `bench.py`.

Each peer is a function of the inputs that returns {what: a function to time}. None of these libraries is a dependency:
they are looked up by name when a benchmark asks, and nowhere else.
`fla.ops.lightning_attn` uses another decay than MiniMax's and is no peer.
"""

import importlib
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp


def installed() -> list[str]:
    """Names of the peers that can run here: they are written for CUDA."""
    if jax.default_backend() != "gpu":
        return []
    needs = {"jla": ("jla",), "fla": ("fla", "torch")}
    return [name for name, modules in needs.items() if all(importlib.util.find_spec(m) for m in modules)]


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
