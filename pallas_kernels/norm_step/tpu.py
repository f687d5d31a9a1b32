"""What stands between two layers' products in a decode step, on a TPU: one launch, of some rows at a time.

y = sum of the product's parts, over the root mean square of o where a norm is still due
h = alpha x + beta y      out = weight * h / rms(h)      and for experts: the router's first choices of out
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import declared, dispatch
from pallas_kernels.few_rows import ROWS, columns, in_rows
from pallas_kernels.precision import matmul_precision

LANES = 128
VMEM = 48 * 2**20


def unsupported(x_RD, parts_PRD, norm, mixed, router) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del parts_PRD, norm, router
    if dispatch.platform() != "tpu":
        return f"the code is for {dispatch.platform()}, not for a TPU"
    D, W = x_RD.shape[1], LANES if mixed is None else mixed.o_RW.shape[1]
    return f"widths must be multiples of {LANES}, got D={D}, W={W}" if D % LANES or W % LANES else None


def forward(x_RD, parts_PRD, norm, mixed, router, rows: int):
    """Contract in the package's docstring."""
    (R, D), parts_PRD = x_RD.shape, in_rows(parts_PRD, rows)
    size = min(R, ROWS)
    weight_1D = norm.weight_LD[norm.layer[0]][None]
    inputs = [(x_RD, _of_rows(size, D)), (parts_PRD, _parts(parts_PRD, size)), (weight_1D, _whole(1, D))]
    layer = norm.layer
    outs = [(jax.ShapeDtypeStruct((R, D), x_RD.dtype), _of_rows(size, D))]
    if mixed is not None:
        inputs.append((mixed.o_RW, _of_rows(size, mixed.o_RW.shape[1])))
    if router is not None:
        E, layer = router.matrix_LED.shape[1], router.layer
        active_R1 = jnp.pad(router.active_B.astype(jnp.int32), (0, R - rows))[:, None]
        inputs.append((active_R1, _of_rows(size, 1)))
        inputs.append((router.matrix_LED, pl.BlockSpec((None, E, D), lambda row, layer: (layer[0], 0, 0))))
        table = R, router.choices
        outs += [(jax.ShapeDtypeStruct(table, dtype), _of_rows(size, table[1])) for dtype in (jnp.int32, jnp.float32)]
    out, *routes = pl.pallas_call(
        functools.partial(_kernel, norm, mixed and mixed.eps),
        out_shape=[shape for shape, _ in outs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(R // size,),
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outs],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM),
        cost_estimate=declared.cost(0, *(array for array, _ in inputs[:2])),
        name="norm_step",
    )(layer, *(array for array, _ in inputs))
    return out, *(jnp.pad(x[:rows].T, ((0, 0), (0, columns(rows) - rows))) for x in routes)


def _of_rows(size: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((size, width), lambda row, _: (row, 0))


def _parts(parts_PRD, size: int) -> pl.BlockSpec:
    P, _, D = parts_PRD.shape
    return pl.BlockSpec((P, size, D), lambda row, _: (0, row, 0))


def _whole(*shape: int) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def _kernel(norm, mixed_eps, _, x_ref, parts_ref, weight_ref, *refs):
    refs = list(refs)
    y = jnp.sum(parts_ref[...], axis=0)
    if mixed_eps is not None:
        y *= _inverse_rms(refs.pop(0)[...].astype(jnp.float32), mixed_eps)
    h = norm.alpha * x_ref[...].astype(jnp.float32) + norm.beta * y
    out = (h * _inverse_rms(h, norm.eps) * weight_ref[...].astype(jnp.float32)).astype(x_ref.dtype)
    if len(refs) == 1:
        refs[0][...] = out
        return
    active_ref, matrix_ref, out_ref, choice_ref, share_ref = refs
    out_ref[...] = out
    told = {"precision": matmul_precision(out.dtype), "preferred_element_type": jnp.float32}
    logits = jax.lax.dot_general(out, matrix_ref[...], (((1,), (1,)), ((), ())), **told)
    E, over = logits.shape[1], jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    ids, found = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1), []
    for _ in range(choice_ref.shape[1]):
        best = jnp.max(over, axis=1, keepdims=True)
        first = jnp.min(jnp.where(over == best, ids, E), axis=1, keepdims=True)
        over = jnp.where(ids == first, -1.0, over)
        found.append((first, best))
    active, total = active_ref[...] != 0, sum(best for _, best in found)
    choice_ref[...] = jnp.concatenate([jnp.where(active, first, E) for first, _ in found], axis=1)
    share_ref[...] = jnp.concatenate([jnp.where(active, best / total, 0.0) for _, best in found], axis=1)


def _inverse_rms(x, eps: float):
    return jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + eps)
