"""What stands between two layers' products in a decode step, on Hopper: a program for each row.

y = sum of the product's parts, over the root mean square of o where a norm is still due
h = alpha x + beta y      out = weight * h / rms(h)      and for experts: the router's first choices of out
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.mosaic.gpu.fragmented_array import Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import dispatch
from pallas_kernels.few_rows import Placed, columns

WIDTH = 512  # numbers of a row that a program's threads hold side by side, four each
TABLE = plgpu.Layout.TILED(Tiling(((1, WIDTH), (128,), (4,))), (-3,), (-2,), -1)
ROW, DOWN = TABLE.reduce(0), TABLE.reduce(1)


WIDEST = 2048  # 16 numbers of each array in a thread's registers
MOST_EXPERTS = 32  # whose routers' rows meet in registers


class _Plan(NamedTuple):
    alpha: float
    beta: float
    eps: float
    mixed_eps: float
    choices: int


class _Inputs(NamedTuple):
    active: jax.Ref | None  # int32 (B,)
    layer: jax.Ref  # int32 (1,)
    mixed: jax.Ref | None  # bfloat16 (R, W)
    parts: jax.Ref  # float32 (P, R, D), or lines (S, D)
    place: jax.Ref | None  # int32 (P, C), of lines
    router: jax.Ref | None  # bfloat16 (L, E, D)
    router_layer: jax.Ref | None  # int32 (1,)
    weight: jax.Ref  # bfloat16 (L, D)
    x: jax.Ref  # bfloat16 (R, D)


def unsupported(x_RD, parts_PRD, norm, mixed, router) -> str | None:
    """Why this implementation cannot take the arguments, or None."""
    del parts_PRD, norm
    if reason := dispatch.why_not_hopper():
        return reason
    if x_RD.dtype != jnp.bfloat16:
        return f"it takes bfloat16, got {x_RD.dtype.name}"
    D, W = x_RD.shape[1], WIDTH if mixed is None else mixed.o_RW.shape[1]
    if D % WIDTH or D > WIDEST or W % WIDTH or W > 4 * WIDEST:
        return f"widths must be multiples of {WIDTH}, D up to {WIDEST}, W up to {4 * WIDEST}, got D={D}, W={W}"
    if router is not None and router.matrix_LED.shape[1] > MOST_EXPERTS:
        return f"it takes up to {MOST_EXPERTS} experts, got {router.matrix_LED.shape[1]}"
    return None


def forward(x_RD, parts_PRD, norm, mixed, router, rows: int):
    """Contract in the package's docstring."""
    plan = _Plan(norm.alpha, norm.beta, norm.eps, mixed.eps if mixed else 0.0, router.choices if router else 0)
    inputs = _Inputs(
        active=router and router.active_B.astype(jnp.int32),
        layer=norm.layer,
        mixed=mixed and mixed.o_RW,
        parts=parts_PRD.lines_SD if isinstance(parts_PRD, Placed) else parts_PRD,
        place=parts_PRD.place_PC if isinstance(parts_PRD, Placed) else None,
        router=router and router.matrix_LED,
        router_layer=router and router.layer,
        weight=norm.weight_LD,
        x=x_RD,
    )
    return _launch(inputs, plan=plan, rows=rows)


@functools.partial(jax.jit, static_argnames=("plan", "rows"))  # lowered once for all layers
def _launch(inputs: _Inputs, *, plan: _Plan, rows: int):
    outs = [jax.ShapeDtypeStruct(inputs.x.shape, inputs.x.dtype)]
    if plan.choices:
        outs += [jax.ShapeDtypeStruct((plan.choices, columns(rows)), dtype) for dtype in (jnp.int32, jnp.float32)]
    kernel = plgpu.kernel(
        functools.partial(_program, plan),
        out_type=outs,
        grid=(rows,),
        grid_names=("row",),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    return kernel(inputs)


def _program(plan: _Plan, inputs: _Inputs, out, *routes):
    row, layer, table = lax.axis_index("row"), inputs.layer[0], None
    if inputs.router is not None:  # on its way while the norm is made
        table = plgpu.load(inputs.router.at[inputs.router_layer[0]], layout=TABLE, optimized=False)
    y = _sum(inputs.parts, inputs.place, row)
    if inputs.mixed is not None:
        y *= _inverse_rms(_row(inputs.mixed.at[row]), plan.mixed_eps)
    h = plan.alpha * _row(inputs.x.at[row]) + plan.beta * y
    normed = (h * _inverse_rms(h, plan.eps) * _row(inputs.weight.at[layer])).astype(out.dtype)
    out[row] = normed
    if inputs.router is not None:
        _route(plan, normed.astype(jnp.float32), table, inputs.active[row], row, *routes)


def _sum(parts, place, row):
    """Of the parts of a row."""
    if place is None:
        return functools.reduce(jnp.add, [_row(parts.at[part, row]) for part in range(parts.shape[0])])
    lines, total = parts.shape[0], []
    for part in range(place.shape[0]):
        at = place[part, row]
        line = _row(parts.at[jnp.minimum(at, lines - 1)])
        total.append(jnp.where(jnp.broadcast_to(at, line.shape) < lines, line, jnp.zeros_like(line)))
    return functools.reduce(jnp.add, total)


def _route(plan: _Plan, x, table, active, row, choice, weight):
    experts, table = table.shape[0], table.astype(jnp.float32)
    logits = (table * lax.broadcast_in_dim(x, table.shape, [1])).sum(axis=1)
    over = jnp.exp(logits - jnp.broadcast_to(logits.max(axis=0), logits.shape))
    ids = plgpu.broadcasted_iota(jnp.int32, (experts,), 0, layout=DOWN)
    found, total = [], jnp.float32(0)
    for _ in range(plan.choices):
        best = over.max(axis=0)
        is_best = over == jnp.broadcast_to(best, over.shape)
        first = jnp.where(is_best, ids, jnp.full_like(ids, experts)).min(axis=0)
        over = jnp.where(ids == jnp.broadcast_to(first, ids.shape), jnp.full_like(over, -1.0), over)
        found.append((first, best))
        total += best
    for number, (first, best) in enumerate(found):
        choice[number, row] = jnp.where(active > 0, first, jnp.int32(experts))
        weight[number, row] = jnp.where(active > 0, best / total, jnp.float32(0))


def _row(ref):
    return plgpu.load(ref, layout=ROW, optimized=False).astype(jnp.float32)


def _inverse_rms(x, eps: float):
    return lax.rsqrt((x * x).sum(axis=0) / x.shape[0] + eps)
