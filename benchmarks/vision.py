"""How fast MiniMax-VL-01 sees on one accelerator: python -m benchmarks.vision --json=FILE

The released tower on 64 tiles, forward and with its backward pass, after it was compared with float32; then a training
step of one period of text_01 at its widths on text alone and with images at more than a quarter of its tokens.

--tiny: the same on a small model, for a CPU; its times say nothing. --compile-only compiles what is measured into jax's
cache (JAX_COMPILATION_CACHE_DIR) and measures nothing.
"""

import concurrent.futures
import dataclasses
import functools
import gc
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.kernels.timing import median_seconds
from benchmarks.results import Report, add_json, say_where
from configs import vl_01, vl_tiny
from mm01_jax import sharding
from mm01_jax.config import Config, MeshConfig
from mm01_jax.data.batch import Batch
from mm01_jax.data.image_grid import TEXT, lay_out, text_table
from mm01_jax.model.flops import tower_flops_per_tile
from mm01_jax.model.vision import VisionTower
from mm01_jax.parallel import tiles
from mm01_jax.parallel.overlap import compiler_options
from mm01_jax.train import step
from tests.command_line import Parser

PEAK = 989e12  # bfloat16 of an H100 or H200, dense
TILES, PARITY_TILES = 64, 2
EXPERTS, VOCABULARY, ROWS, LENGTH = 4, 25_008, 2, 8192  # as many experts as fit beside their moments


def main(argv: list[str] | None = None) -> int:
    parser = Parser("benchmarks.vision", __doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model, for a CPU")
    parser.add_argument("--only", choices=("tower", "step"), help="one of the two parts")
    parser.add_argument("--compile-only", action="store_true", help="compile what is measured, for jax's cache")
    add_json(parser)
    arguments = parser.parse_args(argv)
    config = dataclasses.replace((vl_tiny if arguments.tiny else vl_01).get_config(), mesh=MeshConfig())
    say_where()
    report = None if arguments.compile_only else Report(arguments.json, "benchmarks.vision", argv)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
        if arguments.only != "step":
            bench_tower(config, report)
        if arguments.only != "tower":
            bench_step(config, report, *((2, 128) if arguments.tiny else (ROWS, LENGTH)))
    return 0


def say(report: Report, what: str, value, unit: str = "", **more) -> None:
    row = report.add(what, value, unit, device=jax.devices()[0].device_kind, **more)
    print(f"{row.what} {value:,.4g} {unit}", flush=True)


def _compiled(name: str, lowered, options: dict | None):
    start = time.monotonic()
    program = lowered.compile(compiler_options=options)
    print(f"{name}: compiled in {time.monotonic() - start:.0f} s", flush=True)
    return program


# The tower.


class Eyes(nnx.Module):
    """The tower, without a text model."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.vision = VisionTower(config.vision, config.compute, config.mesh.rules, rngs=rngs)


def computed_in(config: Config, dtype: str, remat: str = "none") -> Config:
    compute = dataclasses.replace(config.compute, dtype=dtype, param_dtype="float32", remat=remat)
    return dataclasses.replace(config, compute=compute)


def tower_loss(eyes: Eyes, pixels: jax.Array, cotangent: jax.Array):
    """A loss whose gradient at the tower's output is `cotangent`; and that output."""
    out = eyes.vision(pixels, training=True)
    return jnp.sum((out * cotangent.astype(out.dtype)).astype(jnp.float32)), out


def made(config: Config) -> Eyes:
    """Random weights of the usual sizes, a million numbers over and over: no program that runs once is compiled."""
    block = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    empty = jax.eval_shape(lambda: Eyes(config, rngs=nnx.Rngs(params=0)))
    fill = lambda x: np.resize(block, x.shape) * np.float32(0.02 if x.ndim > 2 else 0.1)  # noqa: E731
    return jax.tree.map(lambda x: jnp.asarray(fill(x)), empty)


def with_config(eyes: Eyes, config: Config) -> Eyes:
    """The same weights, computed another way."""
    empty = jax.eval_shape(lambda: Eyes(config, rngs=nnx.Rngs(params=0)))
    return jax.tree.unflatten(jax.tree.structure(empty), jax.tree.leaves(eyes))


def bench_tower(config: Config, report: Report | None) -> None:
    """Without a report: compiles."""
    vision = config.vision
    shape = (1, TILES, 3, vision.image_size, vision.image_size)
    pixels = jax.random.normal(jax.random.key(1), shape, jnp.float32)
    cotangent = jax.random.normal(jax.random.key(2), (1, TILES, vision.num_patches + 1, vision.embed_dim), jnp.float32)
    eyes = made(computed_in(config, "float32"))
    low = with_config(eyes, computed_in(config, "bfloat16"))
    fast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), low)  # as a step casts its float32 masters once
    few = (pixels[:, :PARITY_TILES], cotangent[:, :PARITY_TILES])
    lowered = {
        "true": lower_gradient(eyes, *few, plain=True),
        "plain XLA": lower_gradient(low, *few, plain=True),
        "ours": lower_gradient(low, *few, plain=False),
        "forward": jax.jit(lambda eyes, pixels: eyes.vision(pixels)).lower(fast, pixels),
        "forward and backward": jax.jit(jax.grad(lambda *a: tower_loss(*a)[0])).lower(fast, pixels, cotangent),
    }
    unhurried = {"xla_gpu_autotune_level": 0} if jax.devices()[0].platform == "gpu" else None
    with concurrent.futures.ThreadPoolExecutor() as pool:  # nothing is timed beside a compiler
        options = {name: unhurried if name in ("true", "plain XLA", "ours") else None for name in lowered}
        compile_one = lambda name: _compiled(name, lowered[name], options[name])  # noqa: E731
        programs = dict(zip(lowered, pool.map(compile_one, lowered), strict=True))
    if report is None:
        return
    check_parity(
        {name: programs[name](e, *few) for name, e in (("true", eyes), ("plain XLA", low), ("ours", low))}, report
    )
    flops = TILES * tower_flops_per_tile(vision)
    runs = (
        ("forward", lambda: programs["forward"](fast, pixels), flops),
        ("forward and backward", lambda: programs["forward and backward"](fast, pixels, cotangent), 3 * flops),
    )
    for name, run, work in runs:
        seconds = median_seconds(run, jax.block_until_ready, repeats=7)
        subject = f"vl_01 tower, {TILES} tiles"
        say(report, f"{subject}: {name}", 1e3 * seconds, "ms", floor=1e3 * work / PEAK)
        say(report, f"{subject}: {name}, of {PEAK / 1e12:.0f} TFLOP/s", 100 * work / seconds / PEAK, "%")


def lower_gradient(eyes: Eyes, pixels, cotangent, *, plain: bool):
    """(gradients, output), lowered; `plain` has attention in XLA whatever the device."""
    local = tiles._local_attention
    if plain:
        tiles._local_attention = lambda *heads, in_cudnn, **kept: local(*heads, in_cudnn=False, **kept)
    try:
        return jax.jit(jax.grad(lambda *a: tower_loss(*a), has_aux=True)).lower(eyes, pixels, cotangent)
    finally:
        tiles._local_attention = local


def check_parity(found: dict, report: Report) -> None:
    """bfloat16 may be twice as far from float32 as plain XLA's bfloat16 is; exits where it is farther."""
    vectors, far = {}, {}
    for name, (gradient, out) in found.items():
        leaves = [np.asarray(x, np.float32).reshape(-1) for x in jax.tree.leaves(gradient.vision)]
        vectors[name] = np.asarray(out, np.float32), np.concatenate(leaves)
    for name in ("plain XLA", "ours"):
        far[name] = max(map(distance, vectors[name], vectors["true"]))
        what = f"vl_01 tower, {PARITY_TILES} tiles: error of bfloat16"
        say(report, what, far[name], peer=None if name == "ours" else name)
    if far["ours"] > 2 * far["plain XLA"]:
        sys.exit(f"the tower is {far['ours']:.1e} from float32, plain XLA {far['plain XLA']:.1e}")


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Root mean square of the error over that of the values."""
    return float(np.sqrt(np.mean((x - y) ** 2) / np.mean(y**2)))


# The step.


def bench_step(config: Config, report: Report | None, rows: int, length: int) -> None:
    """Without a report: compiles."""
    vocab_size = min(VOCABULARY, config.model.vocab_size)
    experts = min(EXPERTS, config.model.num_experts)
    model = dataclasses.replace(config.model, num_periods=1, num_experts=experts, vocab_size=vocab_size)
    vision = dataclasses.replace(config.vision, image_token=vocab_size - 1)
    compute = dataclasses.replace(
        config.compute, param_dtype="bfloat16", remat="full", exchange_groups=1, dropless_bound=None
    )
    train = dataclasses.replace(config.train, batch_size=rows, sequence_length=length, batch_ramp=())
    optimizer = dataclasses.replace(config.optimizer, moment_dtype="bfloat16")
    config = dataclasses.replace(config, model=model, vision=vision, compute=compute, train=train, optimizer=optimizer)
    subject = f"one period of {config.name}, {experts} experts, {vocab_size} ids, {rows} x {length} tokens"
    images, share = image_rows(config)
    runs = {"text": (dataclasses.replace(config, vision=None), text_rows(config)), "images": (config, images)}
    lowered = {name: lower(*run) for name, run in runs.items()}
    with concurrent.futures.ThreadPoolExecutor() as pool:  # nothing is timed beside a compiler
        compiled = dict(zip(runs, pool.map(compile_both, lowered, lowered.values()), strict=True))
    if report is None:
        return
    speed = {}
    for name, (_, batch) in runs.items():
        speed[name] = rows * length / step_seconds(*compiled[name], batch)
        say(report, f"{subject}: step on {name}", speed[name], "tokens/s")
        gc.collect()
    say(report, f"{subject}: share of the tokens that are images'", 100 * share, "%")
    say(report, f"{subject}: tokens/s on images, of those on text", 100 * speed["images"] / speed["text"], "%")


def text_rows(config: Config) -> Batch:
    """Random words in one document a row."""
    shape = (config.train.batch_size, config.train.sequence_length)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size // 2, (shape[0], shape[1] + 1), np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    segments = np.zeros(shape, np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], positions, segments, np.ones(shape, np.float32))


def image_rows(config: Config) -> tuple[Batch, float]:
    """The same rows with square images of one tile at a quarter of the tokens or a little more, and that share."""
    batch, vision = text_rows(config), config.vision
    image = lay_out((vision.image_size,) * 2, vision.grids, vision.image_size, vision.patch_size)
    rows, length = batch.tokens.shape
    count = -(-length // (4 * image.num_tokens))
    index = np.full((rows, length), TEXT, np.int32)
    is_image = np.zeros(length, bool)
    for at in range(count):
        start = at * (length // count)
        is_image[start : start + image.num_tokens] = True
    index[:] = text_table(is_image, [image] * count)
    shape = (rows, count * image.num_tiles, 3, vision.image_size, vision.image_size)
    pixels = np.random.default_rng(1).standard_normal(shape, np.float32)
    weights = np.where(index == TEXT, batch.weights, 0).astype(np.float32)
    return batch._replace(tiles=pixels, image_index=index, weights=weights), float(is_image.mean())


def lower(config: Config, batch: Batch):
    """(the step, the initial state), lowered."""
    train = jax.jit(functools.partial(step.train_step, config=config), donate_argnums=0)
    start = jax.jit(functools.partial(step.init_state, config))
    key = jax.random.key(0)
    return train.lower(jax.eval_shape(start, key), batch), start.lower(key)


def compile_both(name: str, lowered) -> tuple:
    options = compiler_options(jax.devices()[0].platform)
    return _compiled(f"step on {name}", lowered[0], options), _compiled(f"start on {name}", lowered[1], None)


def step_seconds(train, start, batch: Batch) -> float:
    """Of one optimiser step, the median of steps that each wait for the last."""
    state, batch, times = start(jax.random.key(0)), jax.tree.map(jax.device_put, batch), []
    for _ in range(8):
        began = time.perf_counter()
        state, metrics = train(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    loss, refused = float(metrics["loss"]), float(metrics["refused"])
    print(
        f"loss {loss:.3f}, refused {refused}, steps of {1e3 * min(times):.1f} to {1e3 * max(times):.1f} ms", flush=True
    )
    return float(np.median(times[2:]))


if __name__ == "__main__":
    sys.exit(main())
