"""Lightning attention under the bench: inputs, both passes and the decode step, floors, peers."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.kernels import lightning_cost as cost
from benchmarks.kernels import lightning_parity, peers, timing
from benchmarks.kernels.cases import Lightning
from benchmarks.kernels.measured import Measured, Time
from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import api

PASSES = {"forward": ("forward",), "forward+backward": ("forward", "backward")}
STEPS = 40  # decode steps timed together
CHUNK = 128  # TFLOP/s are counted at this chunk length whatever an implementation uses, so that they compare


def measure(
    case: Lightning, found: Measured, copy_bytes_per_second: float, implementation: str | None, with_peers: bool
):
    """Fills in `found`: parity, and times where it holds."""
    shape = cost.Shape(case.B, case.S, case.N, case.H)
    floors = {what: cost.floor_bytes(shape, passes) / copy_bytes_per_second for what, passes in PASSES.items()}
    if case.step:
        _measure_step(case, found, cost.step_bytes(shape) / copy_bytes_per_second, implementation, with_peers)
    else:
        _measure_sequence(case, found, floors, implementation, with_peers)


def _measure_sequence(case, found, floors, implementation, with_peers) -> None:
    """Times without an incoming state, as training has it and the peers; parity of that, and with states."""
    whole = _sequence_inputs(case)
    inputs = whole._replace(state=None, d_state=None)
    found.implementation = implementation = dispatch.choose(
        api.OPERATION, implementation, inputs.q, inputs.k, inputs.v, inputs.slope, None, inputs.segment_ids
    )
    ours = {what: jax.jit(functools.partial(f, implementation)) for what, f in _functions().items()}
    found.parity = lightning_parity.sequence(inputs, ours["forward+backward"](inputs))
    with_state = lightning_parity.sequence(whole, ours["forward+backward"](whole))
    found.parity |= {f"{name} with states": entry for name, entry in with_state.items()}
    if not found.is_right:
        return
    for what, f in ours.items():
        seconds = timing.median_seconds(functools.partial(f, inputs), jax.block_until_ready)
        flops = cost.flops(cost.Shape(case.B, case.S, case.N, case.H), CHUNK, PASSES[what])
        found.times.append(Time(what, seconds * 1e3, None, floors[what] * 1e3, flops / seconds / 1e12))
    if with_peers and case.peers and case.documents == 0:
        _sequence_peers(found, inputs)


def _functions():
    """The op under one argument, an `Inputs`, so that both passes and the parity check see the very same arrays."""

    def forward(implementation, x):
        return api.lightning_attention(
            x.q, x.k, x.v, x.slope, x.state, segment_ids=x.segment_ids, implementation=implementation
        )

    def both(implementation, x):
        if x.state is None:

            def attend(q, k, v):
                return forward(implementation, x._replace(q=q, k=k, v=v))

            out, pull, state = jax.vjp(attend, x.q, x.k, x.v, has_aux=True)
            return lightning_parity.Results(out, state, *pull(x.d_out), None)

        def attend_from(q, k, v, state):
            return forward(implementation, x._replace(q=q, k=k, v=v, state=state))

        outputs, pull = jax.vjp(attend_from, x.q, x.k, x.v, x.state)
        return lightning_parity.Results(*outputs, *pull((x.d_out, x.d_state)))

    return {"forward": forward, "forward+backward": both}


def _sequence_inputs(case: Lightning) -> lightning_parity.Inputs:
    B, S, N, H = case.B, case.S, case.N, case.H
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 6)
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    tensors = [draw(key, (B, S, N, H), jnp.bfloat16) for key in keys[:4]]
    states = [draw(key, (B, N, H, H), jnp.float32) for key in keys[4:]]
    segment_ids = None
    if case.documents:
        # Uneven lengths, as packing leaves them: the i-th document of n ends at S (i / n)^1.2.
        ends = [int(S * (i / case.documents) ** 1.2) for i in range(1, case.documents)]
        starts = jnp.zeros(S, jnp.int32).at[jnp.array(ends, jnp.int32)].add(1)
        segment_ids = jnp.broadcast_to(jnp.cumsum(starts, dtype=jnp.int32), (B, S))
    q, k, v, d_out = tensors
    return lightning_parity.Inputs(q, k, v, slopes(N), states[0], segment_ids, d_out, states[1])


def slopes(N: int) -> jax.Array:
    """Decay slopes of the first of 80 layers: 2^(-8 (h + 1) / N) (1 + 1e-5)."""
    return jnp.float32(1 + 1e-5) * jnp.exp2(-8 * jnp.arange(1, N + 1, dtype=jnp.float32) / N)


def _sequence_peers(found: Measured, x: lightning_parity.Inputs) -> None:
    for name in ("jla", "fla", "xla"):
        if reason := peers.unavailable(name, found.implementation):
            found.refused[name] = reason
            continue
        wait = peers.wait if name == "fla" else jax.block_until_ready
        try:
            functions = getattr(peers, name)(x.q, x.k, x.v, x.d_out, x.slope)
            for what, f in functions.items():
                found.times.append(Time(what, 1e3 * timing.median_seconds(f, wait), name))
            # From a zero state, as the peer: the same function, or the comparison means nothing.
            ours, _ = api.lightning_attention(x.q, x.k, x.v, x.slope, implementation=found.implementation)
            difference = jnp.max(jnp.abs(peers.array(functions["forward"]()) - ours))
            found.differences[name] = float(difference / jnp.max(jnp.abs(ours)))
        except Exception as error:  # a peer's refusal is a result too
            found.refused[name] = f"{type(error).__name__}: {str(error)[:200]}"


def _measure_step(case, found, floor, implementation, with_peers) -> None:
    B, N, H = case.B, case.N, case.H
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (B, N, H), jnp.bfloat16) for key in keys[:3])
    state, slope = jax.random.normal(keys[3], (B, N, H, H), jnp.float32), slopes(N)
    found.implementation = implementation = dispatch.choose(api.OPERATION, implementation, q, k, v, slope, state, None)
    step = functools.partial(api.lightning_attention_step, implementation=implementation)
    found.parity = lightning_parity.step(q, k, v, slope, state, jax.jit(step)(q, k, v, slope, state))
    if not found.is_right:
        return
    if with_peers and case.peers:
        if reason := peers.unavailable("fla", implementation):
            found.refused["fla"] = reason
        else:
            seconds = timing.median_seconds(peers.fla_steps(q, k, v, slope, state, STEPS), peers.wait) / STEPS
            found.times.append(Time("step", seconds * 1e3, "fla"))
    seconds = _step_seconds(step, q, k, v, slope, state)
    tflops = cost.step_flops(cost.Shape(B, 1, N, H)) / seconds / 1e12
    found.times.append(Time("step", seconds * 1e3, None, floor * 1e3, tflops))


def _step_seconds(step, q, k, v, slope, state) -> float:
    """Time of one step of many in place: each step's state is the next one's, and its output the next query."""

    def many(q, k, v, slope, state):
        def one(carry, _):
            q, state = carry
            return step(q, k, v, slope, state), None

        # A turn of a loop costs more on a GPU than a small step does.
        return jax.lax.scan(one, (q, state), length=STEPS, unroll=8)[0]

    run, held = jax.jit(many, donate_argnums=4), [state]

    def go():
        out, held[0] = run(q, k, v, slope, held[0])
        return out, held[0]

    return timing.median_seconds(go, jax.block_until_ready) / STEPS


def compared(found: list[Measured]) -> dict[str, dict[str, float]]:
    """Cases of the same run against one another: subject -> pass -> ratio.

    Packed to unpacked, a million tokens to 32,768 (per token), 24 heads to three calls of 8.
    """
    cases, ratios = {one.case: one for one in found}, {}
    for above, below, factor in (
        ("packed", "1x32768x64", 1),
        ("1x1048576x8", "1x32768x8", 32),
        ("1x1048576x24", "1x1048576x8", 3),
    ):
        if above in cases and below in cases:
            subject = f"lightning_attention {above} against {'' if factor == 1 else f'{factor} x '}{below}"
            pairs = {what: (cases[above].time(what), cases[below].time(what)) for what in PASSES}
            ratios[subject] = {what: a.ms / (factor * b.ms) for what, (a, b) in pairs.items() if a and b}
    return ratios
