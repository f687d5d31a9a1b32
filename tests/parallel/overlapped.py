"""Does the exchange of one token group run beside the experts' compute of another? Read off compiled programs.

Compiles forward and backward of one expert layer of MiniMax-Text-01's widths for four chips that need not be here,
and walks the schedule of the result: which matmuls stand between the start and the end of each all-to-all of rows.
"""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp

from configs import text_01
from mm01_jax import sharding
from mm01_jax.config import MeshConfig
from mm01_jax.parallel.experts.layer import expert_layer
from mm01_jax.parallel.overlap import compiler_options
from mm01_jax.plan import compiler, targets

TARGETS = {"v5p": "v5p-8", "h100": "h100-4"}  # four chips


@dataclasses.dataclass(frozen=True)
class Found:
    """Of one compiled program: all-to-alls of rows, how many are asynchronous, the matmuls inside each."""

    exchanges: int
    asynchronous: int
    matmuls_inside: tuple[int, ...]

    @property
    def overlapped(self) -> int:
        return sum(count > 0 for count in self.matmuls_inside)


def chips(target: str):
    """Four of them. libtpu must be told that there are none here before it is loaded."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return compiler.devices(targets.parse(TARGETS[target]))


def compile_layer(target: str, groups: int, *, tokens: int, options: bool = True):
    """The compiled forward and backward of one expert layer over expert 4, two experts a chip."""
    config = dataclasses.replace(text_01.get_config().model, num_experts=8, expert_dim=2304)
    compute = dataclasses.replace(text_01.get_config().compute, exchange_groups=groups)
    mesh_config = MeshConfig(expert=4)
    mesh, rules = sharding.make_mesh(mesh_config, list(chips(target))), mesh_config.rules
    D, E, F = config.embed_dim, config.num_experts, config.expert_dim

    def array(shape, *axes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named(mesh, rules, *axes))

    def loss(x, weights, segments):
        y, stats = expert_layer(x, segments, weights, config=config, compute=compute, rules=rules)
        return jnp.sum(y.astype(jnp.float32) ** 2), stats

    wide = array((E, D, F), "expert", None, "ffn")
    weights = (array((D, E), None, None), wide, wide, array((E, F, D), "expert", "ffn", None))
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(
            array((4, tokens, D), "batch", "seq", None),
            weights,
            array((4, tokens), "batch", "seq", dtype=jnp.int32),
        )
        with compiler.no_compilation_cache():
            return lowered.compile(compiler_options(mesh.devices.flat[0].platform) if options else {})


def inspect(program: str) -> Found:
    """Walks the entry computation, which is in the order that the compiler scheduled."""
    computations, entry = _computations(program)
    lines, open_since, inside, synchronous, matmuls = computations[entry], {}, [], 0, 0
    for line in lines:
        name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
        if "bf16" in rest.partition("all-to-all")[0] and " all-to-all-start(" in rest:
            open_since[name] = matmuls
        elif found := re.search(r" all-to-all-done\((?:.*?)(%[\w.-]+)\)", rest):
            if found[1] in open_since:
                inside.append(matmuls - open_since.pop(found[1]))
        elif " all-to-all(" in rest and "bf16" in rest.partition("all-to-all")[0]:
            synchronous += 1
        elif _multiplies(rest, computations):
            matmuls += 1
    return Found(len(inside) + synchronous, len(inside), tuple(inside))


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    computations, entry, current = {}, "", ""
    for line in program.splitlines():
        if found := re.match(r"(ENTRY )?(%[\w.-]+) .*\{$", line):
            current = found[2]
            computations[current] = []
            entry = current if found[1] else entry
        elif current and " = " in line:
            computations[current].append(line)
    return computations, entry


def _multiplies(line: str, computations: dict[str, list[str]]) -> bool:
    """Whether an instruction is a matmul, or a fusion or kernel around one."""
    if re.search(r" (dot|convolution)\(", line) or re.search(r'custom_call_target="[^"]*(gemm|matmul)', line):
        return True
    if 'custom_call_target="tpu_custom_call"' in line and "ragged-dot-none" in line:  # XLA's grouped matmul
        return True
    called = re.search(r"calls=(%[\w.-]+)", line)
    return bool(called) and any(_multiplies(inner, computations) for inner in computations[called[1]])


def compile_cut_weights(target: str, *, options: bool = True):
    """Forward and backward of three products whose weights lie in parts on four chips, gathered for each."""
    mesh = sharding.make_mesh(MeshConfig(data=4), list(chips(target)))

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P("data")))

    def local(x, weights):
        for weight in weights:
            whole = jax.lax.all_gather(weight, "data", axis=0, tiled=True)
            x = jax.nn.relu(x @ whole) @ whole.T
        return x

    def loss(x, weights):
        mapped = jax.shard_map(local, in_specs=(jax.P("data"), jax.P("data")), out_specs=jax.P("data"))
        return jnp.sum(mapped(x, weights).astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh), compiler.no_compilation_cache():
        lowered = jax.jit(jax.grad(loss, argnums=1)).lower(array(32768, 6144), [array(6144, 8192)] * 3)
        return lowered.compile(compiler_options(mesh.devices.flat[0].platform) if options else {})
