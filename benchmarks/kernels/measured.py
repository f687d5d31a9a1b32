"""What the bench found out about one case: parity, times, peers; as rows of results and as lines for people."""

import dataclasses

from benchmarks.results import Report


@dataclasses.dataclass(frozen=True)
class Time:
    """Milliseconds of one quantity ("forward", "forward+backward", "step"); `peer` None is ours."""

    quantity: str
    ms: float
    peer: str | None = None
    floor_ms: float | None = None
    tflops: float | None = None


@dataclasses.dataclass
class Measured:
    """One case. parity: comparison -> {"error", "allowed"}. `failed` says why there are no times.

    refused: peer -> why it has no time here. differences: peer -> its largest difference from ours, of the largest
    output.
    """

    operation: str
    case: str
    sizes: str
    implementation: str = ""
    parity: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    times: list[Time] = dataclasses.field(default_factory=list)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether every comparison is within its bound; NaN is not."""
        return all(entry["error"] <= entry["allowed"] for entry in self.parity.values())

    def shares(self) -> dict[str, float]:
        """Error as a share of what is allowed. Where nothing is allowed nothing was found, or it failed."""
        entries = self.parity.items()
        return {n: e["error"] / e["allowed"] if e["allowed"] else 2.0 * bool(e["error"]) for n, e in entries}

    def time(self, quantity: str, peer: str | None = None) -> Time | None:
        return next((time for time in self.times if (time.quantity, time.peer) == (quantity, peer)), None)


def report_rows(found: Measured, report: Report, device: str, copy_bytes_per_second: float) -> None:
    """Adds the rows of one case; of one that failed the reason."""
    subject, shares = f"{found.operation} {found.case}", found.shares()
    report.add(f"{subject}: sizes", found.sizes, device=device)
    if found.failed:
        report.add(f"{subject}: failed", found.failed, device=device)
        return
    report.add(f"{subject}: implementation", found.implementation, device=device)
    report.add(f"{subject}: comparisons", len(shares), device=device)
    report.add(f"{subject}: of the bound", max(shares.values()), "of the bound", device=device)
    report.add(f"{subject}: copy rate", copy_bytes_per_second / 1e12, "TB/s", device=device)
    for time in found.times:
        what = f"{subject}: {time.quantity}"
        report.add(what, time.ms, "ms", floor=time.floor_ms, peer=time.peer, device=device)
        if time.tflops is not None:
            report.add(f"{what} rate", time.tflops, "TFLOP/s", peer=time.peer, device=device)
    for peer, difference in found.differences.items():
        report.add(f"{subject}: difference", difference, "of the largest output", peer=peer, device=device)


def text(found: Measured) -> str:
    """A case for people: one line for each pass, peers beside it."""
    head = f"{found.operation} {found.case} ({found.sizes})"
    if found.failed:
        return f"{head} FAILED {found.failed}\n{_parity_text(found)}".rstrip()
    lines = [f"{head} {found.implementation}", _parity_text(found)]
    for ours in (time for time in found.times if time.peer is None):
        line = f"{ours.quantity:>18} {ours.ms:9.4f} ms"
        if ours.floor_ms is not None:
            line += f"  floor {ours.floor_ms:.4f} ms ({ours.floor_ms / ours.ms:.0%})"
        if ours.tflops is not None:
            line += f"  {ours.tflops:.1f} TFLOP/s"
        theirs = (time for time in found.times if time.peer and time.quantity == ours.quantity)
        lines.append(line + "".join(f"  | {time.peer} {time.ms:.4f} ms" for time in theirs))
    lines += [f"{'':15}{peer} not timed: {why}" for peer, why in found.refused.items()]
    differences = [f"{peer} {difference:.1%}" for peer, difference in found.differences.items()]
    if differences:
        lines.append(f"{'':15}largest difference from a peer, of the largest output: {', '.join(differences)}")
    return "\n".join(lines)


def _parity_text(found: Measured) -> str:
    """All that failed; else what came nearest to its bound."""
    if not found.parity:
        return ""
    shares, entries = found.shares(), found.parity.items()
    failed = [f"{n} {e['error']:.2g} > {e['allowed']:.2g}" for n, e in entries if not e["error"] <= e["allowed"]]
    nearest = max(shares, key=shares.get)
    passed = f"{len(shares)} comparisons passed, {nearest} nearest to its bound ({shares[nearest]:.2f} of it)"
    return f"{'':15}parity: {', '.join(failed) or passed}"
