"""Rows of `python -m benchmarks.kernels.bench lightning_attention`: shapes, inputs, times, peers."""

import dataclasses
import difflib
import functools

import jax
import jax.numpy as jnp

from benchmarks.kernels import lightning_parity, peers, timing
from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import api, cost

PASSES = {"forward": ("forward",), "forward+backward": ("forward", "backward")}
STEPS = 40  # decode steps timed together
CHUNK = 128  # TFLOP/s are counted at this chunk length whatever an implementation uses, so that they compare


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: a shape, bfloat16, slopes of the first layer. `documents` > 0 packs that many, uneven."""

    name: str
    B: int
    S: int
    N: int
    H: int = 128
    documents: int = 0
    peers: bool = True
    step: bool = False

    @property
    def shape(self) -> cost.Shape:
        return cost.Shape(self.B, 1 if self.step else self.S, self.N, self.H)


_ALL = [
    Case("1x32768x64", 1, 32768, 64),
    Case("4x8192x64", 4, 8192, 64),
    Case("1x8192x64", 1, 8192, 64),
    Case("1x131072x16", 1, 131072, 16),
    Case("8x2048x16", 8, 2048, 16),
    Case("packed", 1, 32768, 64, documents=64, peers=False),
    Case("1x32768x8", 1, 32768, 8),
    Case("decode1", 1, 1, 64, step=True),
    Case("decode16", 16, 1, 64, step=True),
    Case("decode128", 128, 1, 64, step=True),
    Case("1x1048576x8", 1, 2**20, 8, peers=False),
    Case("1x1048576x24", 1, 2**20, 24, peers=False),  # more than 2^31 elements in a tensor
    Case("head_dim64", 1, 8192, 64, H=64),
    Case("tiny", 2, 300, 3, H=64, documents=3, peers=False),
    Case("tiny_decode", 3, 1, 4, H=64, peers=False, step=True),
]
CASES = {case.name: case for case in _ALL}


def select(names: str | None) -> list[Case]:
    """The cases of a comma-separated list; None is every case but the tiny ones, which are for machines without speed.

    Raises ValueError for a name that is none.
    """
    if names is None:
        return [case for case in _ALL if not case.name.startswith("tiny")]
    for name in names.split(","):
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no shape {name!r}{hint}; allowed: {', '.join(CASES)}")
    return [CASES[name] for name in names.split(",")]


def run(case: Case, copy_bytes_per_second: float, *, implementation: str | None, peers: bool) -> dict:
    """One row as a dict. A row that cannot run, or is wrong, has `failed` and says why; it has no times then."""
    row = {"name": case.name, **dataclasses.asdict(case.shape), "documents": case.documents}
    try:
        row |= (_step_row if case.step else _sequence_row)(case, copy_bytes_per_second, implementation, peers)
    except Exception as error:  # a row too large for this machine must not cost the rows after it
        row["failed"] = f"{type(error).__name__}: {str(error)[:400]}"
    return row


def _sequence_row(case, copy, implementation, with_peers) -> dict:
    """Times without an incoming state, as training has it and the peers; parity of that, and with states."""
    whole = _sequence_inputs(case)
    inputs = whole._replace(state=None, d_state=None)
    implementation = dispatch.choose(
        api.OPERATION, implementation, inputs.q, inputs.k, inputs.v, inputs.slope, None, inputs.segment_ids
    )
    ours = {what: jax.jit(functools.partial(f, implementation)) for what, f in _functions().items()}
    parity = lightning_parity.sequence(inputs, ours["forward+backward"](inputs))
    with_state = lightning_parity.sequence(whole, ours["forward+backward"](whole))
    parity |= {f"{name} with states": entry for name, entry in with_state.items()}
    row = {"implementation": implementation, "parity": parity}
    if not all(entry["error"] <= entry["allowed"] for entry in parity.values()):
        return row | {"failed": "parity: further from the oracle than allowed"}
    for what, f in ours.items():
        seconds = timing.median_seconds(functools.partial(f, inputs), jax.block_until_ready)
        floor = cost.floor_bytes(case.shape, PASSES[what]) / copy
        row[what] = {
            "ms": seconds * 1e3,
            "floor_ms": floor * 1e3,
            "fraction_of_floor": floor / seconds,
            "tflops": cost.flops(case.shape, CHUNK, PASSES[what]) / seconds / 1e12,
        }
    if with_peers and case.peers and case.documents == 0:
        row["peers"] = _sequence_peers(inputs)
    return row


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


def _sequence_inputs(case: Case) -> lightning_parity.Inputs:
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


def _sequence_peers(x) -> dict:
    rows = {}
    for name in peers.installed():
        wait = peers.wait if name == "fla" else jax.block_until_ready
        try:
            functions = getattr(peers, name)(x.q, x.k, x.v, x.d_out, x.slope)
            rows[name] = {what: {"ms": 1e3 * timing.median_seconds(f, wait)} for what, f in functions.items()}
            # From a zero state, as the peer: the same function, or the comparison means nothing.
            ours, _ = api.lightning_attention(x.q, x.k, x.v, x.slope)
            difference = jnp.max(jnp.abs(peers.array(functions["forward"]()) - ours))
            rows[name]["difference"] = float(difference / jnp.max(jnp.abs(ours)))
        except Exception as error:  # a peer's refusal is a result too
            rows[name] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    return rows


def _step_row(case, copy, implementation, with_peers) -> dict:
    B, N, H = case.B, case.N, case.H
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (B, N, H), jnp.bfloat16) for key in keys[:3])
    state, slope = jax.random.normal(keys[3], (B, N, H, H), jnp.float32), slopes(N)
    implementation = dispatch.choose(api.OPERATION, implementation, q, k, v, slope, state, None)
    step = functools.partial(api.lightning_attention_step, implementation=implementation)
    parity = lightning_parity.step(q, k, v, slope, state, jax.jit(step)(q, k, v, slope, state))
    row = {"implementation": implementation, "parity": parity}
    if not all(entry["error"] <= entry["allowed"] for entry in parity.values()):
        return row | {"failed": "parity: further from the oracle than allowed"}
    if with_peers and case.peers and "fla" in peers.installed():
        seconds = timing.median_seconds(peers.fla_steps(q, k, v, slope, state, STEPS), peers.wait) / STEPS
        row["peers"] = {"fla": {"step": {"ms": seconds * 1e3}}}
    seconds = _step_seconds(step, q, k, v, slope, state)
    floor = cost.step_bytes(case.shape) / copy
    row["step"] = {
        "ms": seconds * 1e3,
        "floor_ms": floor * 1e3,
        "fraction_of_floor": floor / seconds,
        "tflops": cost.step_flops(case.shape) / seconds / 1e12,
    }
    return row


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


def text(row: dict) -> str:
    """A row for people: one line for each pass, peers beside it."""
    head = f"{row['name']:>14} B={row['B']} S={row['S']} N={row['N']} H={row['H']}"
    if "failed" in row:
        return f"{head} FAILED {row['failed']}\n{_parity_text(row)}".rstrip()
    lines = [f"{head} {row['implementation']}", _parity_text(row)]
    for what in ("forward", "forward+backward", "step"):
        if what not in row:
            continue
        r = row[what]
        line = f"{what:>18} {r['ms']:9.4f} ms  floor {r['floor_ms']:.4f} ms ({r['fraction_of_floor']:.0%})"
        line += f"  {r['tflops']:.1f} TFLOP/s"
        for peer, times in row.get("peers", {}).items():
            line += f"  | {peer} " + (f"{times[what]['ms']:.4f} ms" if what in times else times.get("failed", "-"))
        lines.append(line)
    differences = [f"{p} {t['difference']:.1%}" for p, t in row.get("peers", {}).items() if "difference" in t]
    if differences:
        lines.append(" " * 15 + "largest difference from a peer, of the largest output: " + ", ".join(differences))
    return "\n".join(lines)


def _parity_text(row: dict) -> str:
    """All that failed; else what came nearest to its bound."""
    entries = row.get("parity", {})
    if not entries:
        return ""
    # Where nothing is allowed nothing was found, or it failed.
    shares = {n: e["error"] / e["allowed"] if e["allowed"] else 2 * bool(e["error"]) for n, e in entries.items()}
    failed = [
        f"{n} {e['error']:.2g} > {e['allowed']:.2g}" for n, e in entries.items() if not e["error"] <= e["allowed"]
    ]
    nearest = max(shares, key=shares.get)
    text = f"{len(entries)} comparisons passed, {nearest} nearest to its bound ({shares[nearest]:.2f} of it)"
    return " " * 15 + "parity: " + (", ".join(failed) or text)


def ratios(rows: list[dict]) -> list[str]:
    """Comparisons between rows of the same run: packed to unpacked, a million tokens to 32,768, 24 heads to 3 x 8."""
    times = {row["name"]: {w: row[w]["ms"] for w in PASSES if w in row} for row in rows}
    pairs = [
        ("packed / unpacked", "packed", "1x32768x64", 1),
        ("per token, 1,048,576 / 32,768", "1x1048576x8", "1x32768x8", 32),
        ("24 heads / three calls of 8", "1x1048576x24", "1x1048576x8", 3),
    ]
    lines = []
    for label, above, below, factor in pairs:
        for what in PASSES:
            if what in times.get(above, {}) and what in times.get(below, {}):
                lines.append(f"{label}, {what}: {times[above][what] / (factor * times[below][what]):.3f}")
    return lines
