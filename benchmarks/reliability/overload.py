"""Row 11: 32 clients at 70 % of what a service can do, then four times what it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.reliability.clients import make_run, served
from benchmarks.reliability.findings import Finding
from benchmarks.wire import load

__all__ = ["overload"]

SHARE, TIMES = 0.7, 4.0
# a policy of the size that recipes train, and a catalogue that does not fit into its beam
SIZES: dict[str, Any] = {
    "threads": None,
    "data": {"marketplace": {"users": 200, "items": 2000, "steps": 12}},
    "tokenizer": {"vectors": {"attributes": 1.0}, "levels": 3, "codes": 64, "width": 8},
    "policy": {},
    "evaluation": {"beam_width": 50, "batch_size": 64},
}


def overload(work: Path, seconds: float = 60.0) -> Finding:
    """Peak, 70 % of it for `seconds`, four times of it, and the peak again, since others may use the machine."""
    run, bodies = make_run(work, **SIZES)
    with served(run, "--deadline", "0.5") as (port, _):
        load(port, bodies, 5)
        peaks = [load(port, bodies, 10).rate]
        usual = load(port, bodies, seconds, rate=SHARE * peaks[0])
        over = load(port, bodies, seconds / 2, rate=TIMES * peaks[0])
        peaks.append(load(port, bodies, 10).rate)
    peak = max(peaks)
    goodput = over.rate / peak
    p50, p99 = (usual.answered_ms.get(name, 1e9) for name in ("p50", "p99"))
    figure = (
        f"peak {peaks[0]:,.0f} and {peaks[1]:,.0f} lists a second for 32 clients; at 70 % for {seconds:.0f} s p50"
        f" {p50:.0f} ms, p99 {p99:.0f} ms, {usual.refused} refused, {sum(usual.others.values())} errors; at four times"
        f" the peak {over.rate:,.0f} lists a second, {100 * goodput:.0f} % of the higher peak, p99"
        f" {over.answered_ms.get('p99', 0):.0f} ms; {over.refused:,} refusals with Retry-After, p50"
        f" {over.refused_ms.get('p50', 0):.0f} ms, p99 {over.refused_ms.get('p99', 0):.0f} ms;"
        f" {sum(over.others.values())} errors ({over.others or 'none'}); the clients took"
        f" {over.client_ms:.3f} ms of processor time for a request"
    )
    calm = p99 <= min(500, 3 * p50) and not usual.others and not usual.refused
    quick = over.refused_ms.get("p99", 0.0) <= 50 and not over.others
    return Finding(11, figure, calm and quick and goodput >= 0.8)
