"""The same as array arithmetic. Runs everywhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.few_rows import columns, in_rows
from pallas_kernels.precision import matmul_precision


def unsupported(x_RD, parts_PRD, norm, mixed, router) -> str | None:
    """Never: it runs everywhere."""
    del x_RD, parts_PRD, norm, mixed, router


def forward(x_RD, parts_PRD, norm, mixed, router, rows):
    """Contract in the package's docstring."""
    y = jnp.sum(in_rows(parts_PRD, rows), axis=0)
    if mixed is not None:
        y *= _inverse_rms(mixed.o_RW.astype(jnp.float32), mixed.eps)
    h = norm.alpha * x_RD.astype(jnp.float32) + norm.beta * y
    weight_D = norm.weight_LD[norm.layer[0]].astype(jnp.float32)
    out = (h * _inverse_rms(h, norm.eps) * weight_D[None, :]).astype(x_RD.dtype)
    return (out,) if router is None else (out, *_route(out, router, rows))


def _route(x_RD, router, rows: int):
    matrix_ED, active_B = router.matrix_LED[router.layer[0]], router.active_B[:, None]
    precision = matmul_precision(x_RD.dtype)
    logits = jnp.einsum("rd,ed->re", x_RD[:rows], matrix_ED, precision=precision, preferred_element_type=jnp.float32)
    best, choice = jax.lax.top_k(jax.nn.softmax(logits, axis=1), router.choices)
    weight = best / jnp.sum(best, axis=1, keepdims=True)
    choice = jnp.where(active_B, choice.astype(jnp.int32), matrix_ED.shape[0])
    return tuple(jnp.pad(x.T, ((0, 0), (0, columns(rows) - rows))) for x in (choice, jnp.where(active_B, weight, 0.0)))


def _inverse_rms(x, eps: float):
    return jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + eps)
