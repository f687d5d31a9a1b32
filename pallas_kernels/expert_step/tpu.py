"""Experts of few rows on a TPU: only the experts that some row has chosen are read, and each once.

Every expert that was met multiplies all rows, and what it says counts 0 where a row chose another: what bounds a step
is reading, and so nothing has to be gathered. Which experts were met is known before the first block is asked for.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared, dispatch
from pallas_kernels.int8 import Int8
from pallas_kernels.precision import matmul_precision
from pallas_kernels.projection_step.tpu import LANES, VMEM, deepest

MOST_ROWS = 256  # that the matmul unit multiplies while a matrix is read
BLOCKS = 12 * 2**20  # bytes of the three matrices' blocks, each there twice


def unsupported(x_RD, choice_AC, weight_AC, matrices, layer, rows) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del choice_AC, weight_AC, layer
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    if any(isinstance(matrix, Int8) for matrix in matrices):
        return "it takes no int8"
    D, F = x_RD.shape[1], matrices[0].shape[3]
    if D % LANES or F % LANES or rows > MOST_ROWS:
        return f"D and F must be multiples of {LANES}, rows at most {MOST_ROWS}; got D={D}, F={F}, {rows} rows"
    return None


def forward(x_RD, choice_AC, weight_AC, matrices, layer, rows: int):
    """Contract in the package's docstring."""
    (R, D), (_, E, _, F) = x_RD.shape, matrices[0].shape
    choice_RA = jnp.pad(choice_AC[:, :rows].T, ((0, R - rows), (0, 0)), constant_values=E)
    weight_RA = jnp.pad(weight_AC[:, :rows].T, ((0, R - rows), (0, 0)))
    experts, count = _met(choice_RA, E)
    width = deepest(F, max(LANES, BLOCKS // (6 * D * x_RD.dtype.itemsize)))
    steps = F // width

    def inward(slot, step, experts, count, layer):
        return layer[0], experts[slot], 0, jnp.where(slot < count[0], step, steps - 1)

    def outward(slot, step, experts, count, layer):
        return layer[0], experts[slot], jnp.where(slot < count[0], step, steps - 1), 0

    def whole(slot, step, *_):
        return 0, 0

    A, S = choice_RA.shape[1], experts.shape[0]
    out = jax.ShapeDtypeStruct((R, D), jnp.float32)
    read = [jax.ShapeDtypeStruct((S, D, F), x_RD.dtype)] * 3
    found = pl.pallas_call(
        _kernel,
        out_shape=out,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(S, steps),
            in_specs=[
                pl.BlockSpec((R, D), whole),
                pl.BlockSpec((R, A), whole),
                pl.BlockSpec((R, A), whole),
                *[pl.BlockSpec((None, None, D, width), inward)] * 2,
                pl.BlockSpec((None, None, width, D), outward),
            ],
            out_specs=pl.BlockSpec((R, D), whole),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM),
        cost_estimate=declared.cost(6 * S * R * D * F, x_RD, *read, out),
        name="expert_step",
    )(experts, count, layer, x_RD, choice_RA, weight_RA, *matrices)
    return found[None]


def _met(choice_RA, E: int):
    """(the experts that some row chose, in order, the last again behind them; how many they are, int32 (1,))."""
    is_met_E = jnp.any(choice_RA.reshape(-1, 1) == jnp.arange(E, dtype=jnp.int32)[None, :], axis=0)
    count, S = jnp.sum(is_met_E, dtype=jnp.int32), min(E, choice_RA.size)
    (experts,) = jnp.nonzero(is_met_E, size=S, fill_value=0)
    experts = experts.astype(jnp.int32)
    last = experts[jnp.maximum(count - 1, 0)]
    return jnp.where(jnp.arange(S, dtype=jnp.int32) < count, experts, last), count[None]


def _kernel(experts_ref, count_ref, _layer, x_ref, choice_ref, weight_ref, gate_ref, up_ref, down_ref, out_ref):
    slot, step = pl.program_id(0), pl.program_id(1)
    precision = matmul_precision(x_ref.dtype)

    def product(left, right):
        return jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)

    @pl.when((slot == 0) & (step == 0))
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)

    @pl.when(slot < count_ref[0])
    def _():
        is_chosen = choice_ref[...] == experts_ref[slot]
        weight = jnp.sum(jnp.where(is_chosen, weight_ref[...], 0.0), axis=1, keepdims=True)
        gate, up = (product(x_ref[...], ref[...]) for ref in (gate_ref, up_ref))
        hidden = gate / (1.0 + jnp.exp(-gate)) * up * weight
        hidden = jnp.where(weight != 0.0, hidden, 0.0).astype(x_ref.dtype)  # 0 too where it was not finite
        out_ref[...] += product(hidden, down_ref[...])
