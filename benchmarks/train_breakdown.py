"""Where a training step's time goes by the named scopes of the code, beside what each part needs at least.

Floors: multiplications at the chip's dense bfloat16 peak, or bytes at the rate of a copy, where each is

    lightning, softmax, head   6 FLOPs a weight and token, and three times the mixing
    experts, route             the same of the chosen experts, of the router
    optimizer                  28 bytes a weight: it, its gradient and two moments read, all but the gradient written
    norms                      twice a layer: stream and branch read, stream and normed stream written; gradients too
    exchange                   rows gathered and combined, and back
    loss                       logits in bfloat16 written and read once
"""

import html
import math
from typing import NamedTuple

import jax

from mm01_jax.config import Config
from mm01_jax.model.mixers import MIXERS
from mm01_jax.scopes import ScopeTime

IDLE = "idle"
COLORS = {
    "vision": "#999999",
    "embed": "#c9b458",
    "norms": "#e0a030",
    "lightning": "#2f6fb0",
    "softmax": "#6aa6dd",
    "route": "#7a5195",
    "exchange": "#bc5090",
    "experts": "#3c8d5a",
    "head": "#d45f4b",
    "loss": "#f0988c",
    "optimizer": "#6b7a8f",
    "other": "#b9c2cc",
    IDLE: "#ececec",
}


class Share(NamedTuple):
    """Milliseconds of one part of a step; `floor` is None where nothing is counted."""

    part: str
    ms: float
    floor: float | None
    launches: int


def shares(times: list[ScopeTime], calls: int, step_ms: float, floors: dict[str, float]) -> list[Share]:
    """Of one call of the program; what no kernel ran in is idle."""
    found = [Share(t.scope, 1e3 * t.seconds / calls, floors.get(t.scope), round(t.launches / calls)) for t in times]
    return [*found, Share(IDLE, max(0.0, step_ms - sum(share.ms for share in found)), 0.0, 0)]


def floors(config: Config, model, peak: float, copy: float) -> dict[str, float]:
    """Part -> milliseconds. peak: FLOP/s. copy: bytes read and written a second. model: its abstract weights."""
    shape, tokens = config.model, config.train.batch_size * config.train.sequence_length
    layers, D, A = shape.num_layers, shape.embed_dim, shape.num_experts_per_token
    flops, item = dict.fromkeys(("lightning", "softmax"), 0.0), 2
    for (kind, count), stack in zip(shape.stacks, model.stacks, strict=True):
        weights = sum(x.size for x in jax.tree.leaves(stack.mixer))
        mixing = count * shape.num_periods * MIXERS[kind].flops(shape, (config.train.sequence_length + 1) / 2)
        flops[kind] += 3.0 * tokens * (2.0 * weights + mixing)
    flops["experts"] = 18.0 * tokens * layers * A * D * shape.expert_dim
    flops["route"] = 6.0 * tokens * layers * D * shape.num_experts
    flops["head"] = 6.0 * tokens * D * shape.vocab_size
    moved = {
        "optimizer": 28.0 * sum(math.prod(x.shape) for x in jax.tree.leaves(model)),
        "norms": 2.0 * 2 * layers * tokens * D * item * 4,
        "exchange": 2.0 * layers * tokens * D * item * (3 * A + 1),
        "loss": 2.0 * tokens * shape.vocab_size * item,
    }
    return {part: 1e3 * x / peak for part, x in flops.items()} | {part: 1e3 * x / copy for part, x in moved.items()}


def lines(found: list[Share]) -> list[str]:
    """A table for people."""
    total = sum(share.ms for share in found)
    return [
        f"{share.part:<10}{share.ms:8.2f} ms {share.ms / total:6.1%}{share.launches:7,} launches"
        + (f"   floor {share.floor:6.2f} ms ({share.floor / share.ms:4.0%})" if share.floor and share.ms else "")
        for share in found
    ]


def picture(bars: dict[str, list[Share]]) -> str:
    """An SVG of stacked bars, one a step, in milliseconds; a part that has no share of 1 % is not named."""
    width, left, high, gap = 900, 150, 44, 34
    longest = max(sum(share.ms for share in found) for found in bars.values())
    scale, drawn = (width - left - 90) / longest, []
    for row, (title, found) in enumerate(bars.items()):
        x, y, total = float(left), gap + row * (high + gap), sum(share.ms for share in found)
        drawn.append(f'<text x="{left - 8}" y="{y + high / 2 + 4}" text-anchor="end">{html.escape(title)}</text>')
        for share in sorted(found, key=lambda share: list(COLORS).index(share.part)):
            wide = share.ms * scale
            drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{high}" fill="{COLORS[share.part]}"/>')
            if wide > 34:
                drawn.append(f'<text x="{x + 3:.1f}" y="{y + 18}" fill="#fff">{share.part}</text>')
                drawn.append(f'<text x="{x + 3:.1f}" y="{y + 34}" fill="#fff">{share.ms:.1f}</text>')
            x += wide
        drawn.append(f'<text x="{x + 6:.1f}" y="{y + high / 2 + 4}">{total:.1f} ms</text>')
    height = gap + len(bars) * (high + gap)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
    return head + 'font-size="11">\n' + "\n".join(drawn) + "\n</svg>\n"
