"""Names of what a layer's forward pass makes and its backward pass reads: what remat by name keeps.

Each is dear to make again and stands in the compute dtype, or is small. Between them lie norms, SiLU, RoPE, gates and
SwiGLU, which one pass over what is kept makes again.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

PROJECTED = "projected"  # a mixer's products with its input: q, k, v, gate
MIXED = "mixed"  # what a mixer's kernel gives: its output, and softmax attention's log-sum-exp
STREAM = "stream"  # the residual stream between mixer and experts
ROUTED = "routed"  # the routing decision: choices, their weights, where rows go
EXPANDED = "expanded"  # the experts' gate and up products
RETURNED = "returned"  # the experts' results, before they are weighted

NAMES = (PROJECTED, MIXED, STREAM, ROUTED, EXPANDED, RETURNED)


def keep(x: jax.Array, name: str) -> jax.Array:
    """x, under a name that `jax.checkpoint_policies.save_only_these_names` knows it by."""
    assert name in NAMES, name
    return checkpoint_name(x, name)
