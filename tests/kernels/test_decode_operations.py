"""The operations of a decode step against NumPy float64: rows that only fill up, idle rows, one row, many rows.

Bound of float32: a sum of n products is off by at most n eps sum|products| (eps = 2^-24), which the oracle gives of the
magnitudes; bfloat16 kernels: error at most twice that of plain XLA.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import few_rows
from pallas_kernels.attention_step import attention_step
from pallas_kernels.attention_step import gpu as attention_gpu
from pallas_kernels.attention_step import reference as attention_reference
from pallas_kernels.expert_step import expert_step
from pallas_kernels.expert_step import gpu as expert_gpu
from pallas_kernels.expert_step import reference as expert_reference
from pallas_kernels.lightning_step import empty_rings, gpu_ring, lightning_step, xla_ring
from pallas_kernels.lightning_step import gpu as lightning_gpu
from pallas_kernels.lightning_step import reference as lightning_reference
from pallas_kernels.norm_step import Mixed, Norm, Router, norm_step
from pallas_kernels.norm_step import gpu as norm_gpu
from pallas_kernels.norm_step import reference as norm_reference
from pallas_kernels.projection_step import gpu as projection_gpu
from pallas_kernels.projection_step import projection_parts, projection_step
from pallas_kernels.projection_step import reference as projection_reference

EPS = 2.0**-24
LAYER = jnp.array([1], jnp.int32)  # of two
GPUS = {
    "attention": attention_gpu.forward,
    "expert": expert_gpu.forward,
    "lightning": lightning_gpu.forward,
    "norm": norm_gpu.forward,
    "projection": projection_gpu.forward,
    "parts": projection_gpu.parts,
}


class Numbers:
    """Random arrays of one dtype."""

    def __init__(self, dtype: str, seed: int = 0):
        self.dtype, self.random = dtype, np.random.default_rng(seed)

    def __call__(self, *shape, scale: float = 1.0, dtype: str | None = None):
        return jnp.asarray(self.random.normal(size=shape) * scale, dtype or self.dtype)

    def filled_up(self, rows: int, width: int):
        """Rows filled up with NaN, which must reach no row that is there."""
        x = self(rows, width)
        return jnp.pad(x, ((0, few_rows.filled_up(rows) - rows), (0, 0)), constant_values=jnp.nan)


def both(dtype: str, name: str, plain, *arguments):
    """The outputs of the XLA form, and of the interpreted kernel where the dtype is its."""
    outs = {"xla": jax.jit(plain)(*arguments)}
    if dtype == "bfloat16":
        with plgpu.force_gpu_interpret_mode():
            outs["gpu"] = jax.block_until_ready(jax.jit(GPUS[name])(*arguments))
    return outs


def judge(outs: dict, exact, bound) -> None:
    """float32: below the bound; bfloat16 (there is a GPU's, or no bound): a kernel's error at most twice XLA's."""
    errors = {name: np.abs(np.asarray(out, np.float64) - exact).max() for name, out in outs.items()}
    if "gpu" in errors or bound is None:
        bound = 2 * errors.pop("xla")
    assert all(error <= bound for error in errors.values()), (errors, bound)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "programs"),
    [(1, 132), (3, 132), (70, 132), (70, 3)],
    ids=["one row", "few", "more than a wgmma", "two tiles of rows a program"],
)
def test_projection_equals_float64(rows, programs, dtype, monkeypatch):
    monkeypatch.setattr(projection_gpu, "PROGRAMS", programs)
    make, D, F = Numbers(dtype), 128, 96 if programs > 3 else 128
    x, matrices = make.filled_up(rows, D), [make(2, D, F), make(2, D, F // 2 if programs == 3 else 32)]
    exact = projection_reference.forward(x[:rows], matrices, LAYER)
    size = projection_reference.forward(abs(x[:rows]), [abs(matrix) for matrix in matrices], LAYER).max()

    def kernel(x, matrices, layer):
        return projection_gpu.forward(x, matrices, layer, jnp.dtype(jnp.float32))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GPUS, "projection", kernel)
        plain = functools.partial(projection_step, dtype=jnp.float32, implementation="xla")
        outs = both(dtype, "projection", plain, x, matrices, LAYER)
    judge({name: out[:rows] for name, out in outs.items()}, exact, 2 * D * EPS * size)
    plain = functools.partial(projection_parts, implementation="xla")
    outs = both(dtype, "parts", plain, x, matrices[0], LAYER)
    judge({name: out.sum(0)[:rows] for name, out in outs.items()}, exact[:, :F], 2 * D * EPS * size)


def random_experts(dtype: str, rows: int, E: int, F: int = 192, D: int = 128):
    """x, choices with an idle row and one expert that many chose, weights and matrices."""
    make, A = Numbers(dtype), 2
    choice = np.stack([make.random.permutation(E)[:A] for _ in range(rows)], axis=1)
    choice[:, rows // 4 : rows // 2] = np.array([[2], [3]])
    if rows > 1:
        choice[:, 1] = E
    weight = np.where(choice == E, 0.0, make.random.uniform(size=choice.shape))
    fill = ((0, 0), (0, few_rows.columns(rows) - rows))
    choice, weight = np.pad(choice, fill, constant_values=77), np.pad(weight, fill, constant_values=np.nan)
    matrices = tuple(make(2, E, *shape, scale=0.1) for shape in ((D, F), (D, F), (F, D)))
    return make.filled_up(rows, D), jnp.asarray(choice, jnp.int32), jnp.asarray(weight, jnp.float32), matrices


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "D"), [(1, 128), (5, 128), (72, 128), (72, 192)], ids=["one row", "few", "gathered", "gathered, odd"]
)
def test_experts_equal_float64(rows, D, dtype):
    x, choice, weight, matrices = random_experts(dtype, rows, E=5, D=D)
    arguments = x, choice, weight, matrices, LAYER
    real = x[:rows], choice[:, :rows], weight[:, :rows]
    exact = expert_reference.forward(*real, matrices, LAYER)
    size = expert_reference.forward(*map(abs, real), tuple(map(abs, matrices)), LAYER).max()

    def kernel(*arguments):
        return expert_gpu.forward(*arguments, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GPUS, "expert", kernel)
        plain = functools.partial(expert_step, rows=rows, implementation="xla")
        outs = both(dtype, "expert", plain, *arguments)
    outs = {name: few_rows.in_rows(out, rows) for name, out in outs.items()}
    judge({name: out.sum(0)[:rows] for name, out in outs.items()}, exact, (2 * D + 2 * 192 + 20) * EPS * size)


def test_experts_row_has_the_same_bits_beside_other_rows():
    x, choice, weight, matrices = random_experts("bfloat16", 5, E=5)
    others = jnp.where(jnp.arange(x.shape[0])[:, None] == 2, x, -x)
    moved = jnp.where(jnp.arange(choice.shape[1]) == 2, choice, (choice + 1) % 5)
    with plgpu.force_gpu_interpret_mode():
        step = jax.jit(lambda x, choice: expert_gpu.forward(x, choice, weight, matrices, LAYER, 5))
        first, second = step(x, choice), step(others, moved)
    assert np.array_equal(first.sum(0)[2], second.sum(0)[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("narrow", "B"), [(False, 3), (True, 3), (True, 1)], ids=["whole states", "states in parts", "one row"]
)
def test_lightning_step_equals_float64_and_idle_rows_keep_their_state(narrow, B, dtype, monkeypatch):
    make, N, H = Numbers(dtype), 2, 64
    monkeypatch.setattr(lightning_gpu, "MULTIPROCESSORS", 132 if narrow else 1)
    arguments = (
        make.filled_up(B, 4 * N * H),
        make(2, B, N, H, H, dtype="float32"),
        jnp.array([[0.1, 0.5], [0.3, 0.01]], jnp.float32),
        make(2, N, H),
        jnp.array([True, False, True])[:B],
        LAYER,
    )
    lightning_gpu.forward.clear_cache()
    outs = both(dtype, "lightning", functools.partial(lightning_step, implementation="xla"), *arguments)
    rounded = (lambda x: np.asarray(x.astype(dtype), np.float64)) if dtype == "bfloat16" else (lambda x: x)
    exact = lightning_reference.forward(arguments[0][:B], *arguments[1:], rounded=rounded)
    size = np.abs(arguments[0][:B]).max() ** 2 * H + np.abs(arguments[1]).max()
    for name, (o, u, states) in outs.items():
        assert np.array_equal(states[0], arguments[1][0]), name
        assert np.array_equal(states[1, 1:2], arguments[1][1, 1:2]), name
        assert not np.asarray(o[:B][1:2]).any() and not np.asarray(u[:B][1:2]).any(), name
    for place in range(2):
        found = {name: out[place][:B] for name, out in outs.items()}
        judge(found, exact[place], 4 * H * EPS * size * np.abs(exact[0]).max())
    judge({name: out[2][1] for name, out in outs.items()}, exact[2], 8 * EPS * size)


@pytest.mark.parametrize(
    ("dtype", "H"), [("float32", 64), ("bfloat16", 64), pytest.param("bfloat16", 128, marks=pytest.mark.slow)]
)
def test_steps_with_a_ring_and_its_fold_equal_as_many_steps(dtype, H, monkeypatch):
    make, B, N = Numbers(dtype), 3, 2
    monkeypatch.setattr(lightning_gpu, "MULTIPROCESSORS", 1)  # states whole
    monkeypatch.setattr(gpu_ring, "SOME", 1)
    states, slope, weight = make(2, B, N, H, H, dtype="float32"), jnp.full((2, N), 0.2, jnp.float32), make(2, N, H)
    active_SB = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0]], bool)  # who stops stays so until the fold
    projected = [make.filled_up(B, 4 * N * H) for _ in active_SB]
    forms = {"xla": (functools.partial(lightning_step, implementation="xla"), xla_ring)}
    if dtype == "bfloat16":
        forms["gpu"] = lightning_gpu.forward, gpu_ring
    for name, (plain, ring) in forms.items():
        with plgpu.force_gpu_interpret_mode():
            step, ringed = jax.jit(plain), jax.jit(ring.step)
            new, rings = states, empty_rings(states, jnp.dtype(dtype))
            for place, (x, active) in enumerate(zip(projected, jnp.asarray(active_SB), strict=True)):
                o, u, new = step(x, new, slope, weight, active, LAYER)
                told = active, jnp.array([place], jnp.int32), LAYER
                o_ring, u_ring, rings = ringed(x, states, rings, slope, weight, told)
                # Sums of the same products in another order, rounded once: in bfloat16 by half a unit of 2^-8.
                unit = 2.0**-8 if dtype == "bfloat16" else (H + 8) * EPS
                for a, b in ((o, o_ring), (u, u_ring)):
                    a, b = (np.asarray(x[:B], np.float64) for x in (a, b))
                    assert np.abs(a - b).max() <= unit * np.abs(a).max(), name
                assert not np.asarray(o_ring[:B])[~np.asarray(active)].any()
            count_B = jnp.asarray(active_SB.sum(axis=0), jnp.int32)
            folded = jax.block_until_ready(jax.jit(ring.fold)(states, rings, slope, count_B))
        # The other layer's ring has zeros, which its states decay by.
        assert np.abs(folded[1] - new[1]).max() <= 4 * EPS * np.abs(new[1]).max(), name
        assert np.array_equal(folded[1, 1] == states[1, 1], new[1, 1] == states[1, 1])


def norm_case(dtype: str, placed: bool, rows: int = 5):
    """(x, parts, norm, mixed and router of some rows, the third idle; what they give exactly)."""
    make, D, W, E, A = Numbers(dtype), 512, 1024, 16, 2
    x, o = make.filled_up(rows, D), make.filled_up(rows, W)
    parts = jnp.asarray(make.random.normal(size=(3, x.shape[0], D)), jnp.float32)
    lying = parts
    if placed:  # the second part of row 3 nowhere; what no place names is NaN
        lines = np.full((8 * rows, D), np.nan, np.float32)
        place = np.full((3, few_rows.columns(rows)), 8 * rows + 1, np.int32)
        place[:, :rows] = make.random.permutation(8 * rows)[: 3 * rows].reshape(3, rows)
        lines[place[:, :rows]] = parts[:, :rows]
        place[1, 3], parts = 8 * rows, parts.at[1, 3].set(0.0)
        lying = few_rows.Placed(jnp.asarray(lines), jnp.asarray(place))
    norm, active = Norm(make(2, D), LAYER, 1.5, 0.7, 1e-5), jnp.arange(rows) != 2
    router = Router(make(2, E, D, scale=D**-0.5), LAYER, active, A)
    exact = norm_reference.forward(x[:rows], parts[:, :rows], norm, Mixed(o[:rows], 1e-6), None)[0]
    return (x, lying, norm, Mixed(o, 1e-6), router), exact


def judge_routes(outs: dict, router: Router, size: float) -> None:
    """Of each row as it came out: logits are sums of D products of numbers around 1; a weight moves by at most as much,
    relatively, twice."""
    active, rows, (_, E, D) = np.asarray(router.active_B), len(router.active_B), router.matrix_LED.shape
    for out, choice, weight in outs.values():
        ids, weights = norm_reference.route(out[:rows], router)
        choice, weight = (np.asarray(x[:, :rows]).T for x in (choice, weight))
        assert np.array_equal(choice[active], ids[active])
        assert (choice[~active] == E).all() and not weight[~active].any()
        assert np.abs(weight[active] - weights[active]).max() <= 4 * D * EPS * size


@pytest.mark.parametrize(
    ("placed", "rows"), [(False, 5), (True, 5), (False, 1)], ids=["parts by row", "parts anywhere", "one row"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_and_router_equal_float64(dtype, placed, rows):
    (x, parts, norm, mixed, router), exact = norm_case(dtype, placed, rows)
    plain = functools.partial(norm_step, norm=norm, rows=rows, implementation="xla")
    outs = {"xla": jax.jit(lambda x, parts: plain(x, parts, mixed=mixed, router=router))(x, parts)}
    if dtype == "bfloat16":
        with plgpu.force_gpu_interpret_mode():
            kernel = jax.jit(lambda x, parts: norm_gpu.forward(x, parts, norm, mixed, router, rows))
            outs["gpu"] = jax.block_until_ready(kernel(x, parts))
    judge({name: out[0][:rows] for name, out in outs.items()}, exact, 16 * EPS * np.abs(exact).max())
    judge_routes(outs, router, np.abs(exact).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("splits", "B"), [(1, 3), (3, 3), (3, 1)], ids=["whole", "in stretches", "one row"])
def test_attention_step_equals_float64_and_idle_rows_write_nothing(splits, B, dtype, monkeypatch):
    make, (K, G, T, H) = Numbers(dtype), (2, 3, 256, 64)
    monkeypatch.setattr(attention_gpu, "MOST_SPLITS", splits)
    angle = jnp.asarray(make.random.uniform(0, 7, size=(B, 16)), jnp.float32)
    keys, values = make(2, B, K, T, H), make(2, B, K, T, H)
    told = jnp.array([0, 100, T - 1], jnp.int32)[-B:], jnp.array([True, False, True])[:B], LAYER
    arguments = make.filled_up(B, (G + 2) * K * H), angle, keys, values, told
    attention_gpu.forward.clear_cache()
    outs = both(dtype, "attention", functools.partial(attention_step, implementation="xla"), *arguments)
    rounded = (lambda x: np.asarray(x.astype(dtype), np.float64)) if dtype == "bfloat16" else (lambda x: x)
    exact, *stores = attention_reference.forward(arguments[0][:B], *arguments[1:], rounded=rounded)
    for name, (_, *found) in outs.items():
        for old, new in zip((keys, values), found, strict=True):
            assert np.array_equal(new[0], old[0]) and np.array_equal(new[1, 1:2], old[1, 1:2]), name
    size = np.abs(values).max()
    active = np.flatnonzero(told[1])  # the others may get anything
    judge({name: out[0][active] for name, out in outs.items()}, exact[active], 4 * (T + H) * EPS * size)
    for place, store in enumerate(stores, 1):
        judge({name: out[place][1] for name, out in outs.items()}, store, 8 * EPS * np.abs(store).max())


def test_what_a_kernel_cannot_take_is_said():
    make = Numbers("float32")
    with pytest.raises(ValueError, match="needs a GPU"):
        projection_step(make(8, 64), [make(2, 64, 32)], LAYER, implementation="gpu")
    with pytest.raises(ValueError, match=r"layer must be int32\[1\]"):
        projection_step(make(8, 64), [make(2, 64, 32)], jnp.int32(0))
    with pytest.raises(ValueError, match=r"x must be \(8, D\)"):
        x, choice, weight, matrices = random_experts("float32", 5, E=5)
        expert_step(x[:5], choice, weight, matrices, LAYER, rows=5)
