"""A weight as what uses it takes it: gathered by XLA, or as it is stored (`compute.collectives`)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from mm01_jax.config import Rules
from mm01_jax.model.layers import Int8Weight, cast_and_gather, lies
from mm01_jax.parallel import collectives
from mm01_jax.parallel.stored import Stored
from pallas_kernels.int8 import Int8


def for_product(weight: nnx.Param | Int8Weight, dtype: jnp.dtype, rules: Rules) -> jax.Array | Int8 | Stored:
    """`cast_and_gather` for `einsum`, the experts, the embedding and the loss: as it is stored, where these are to
    gather it themselves (`compute.collectives`) and nothing else cuts it but experts over `expert`.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    over = tuple(axis for axis in rules.embed if sizes.get(axis, 1) > 1)
    if not (collectives.by_copies() and over) or isinstance(weight, Int8Weight):
        return cast_and_gather(weight, dtype, rules)
    array = weight[...]
    axes = weight.get_metadata()["axes"][-array.ndim :]
    spec = lies(array.shape, axes, sizes, rules)
    parts = [tuple(a for a in ((part,) if isinstance(part, str) else part or ()) if sizes[a] > 1) for part in spec]
    dim = next((dim for dim, part in enumerate(parts) if set(over) & set(part)), None)
    others = {a for part, name in zip(parts, axes, strict=True) if name != "expert" for a in part} - {*over}
    if dim is None or others or parts[dim][-len(over) :] != over:
        return cast_and_gather(weight, dtype, rules)
    return Stored(array.astype(dtype), spec, P(*parts), over, dim, rules)
