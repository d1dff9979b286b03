"""Row 11: 32 clients at 70 % of what a service can do, then four times what it can."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reliability.clients import load, make_run, served
from benchmarks.reliability.findings import Finding

__all__ = ["overload"]

SHARE, TIMES = 0.7, 4.0


def overload(work: Path, seconds: float = 60.0) -> Finding:
    """Peak, 70 % of it for `seconds`, four times of it, and the peak again, since others may use the machine."""
    run, bodies = make_run(work, evaluation={"beam_width": 50, "batch_size": 64})
    with served(run, "--deadline", "0.5") as (port, _):
        load(port, bodies, 5)
        peaks = [load(port, bodies, 10).rate]
        usual = load(port, bodies, seconds, rate=SHARE * peaks[0])
        over = load(port, bodies, seconds / 2, rate=TIMES * peaks[0])
        peaks.append(load(port, bodies, 10).rate)
    peak = max(peaks)
    goodput = over.rate / peak
    figure = (
        f"peak {peaks[0]:,.0f} and {peaks[1]:,.0f} lists a second for 32 clients; at 70 % for {seconds:.0f} s p50"
        f" {usual.answered_ms.get('p50', 0):.0f} ms, p99 {usual.answered_ms.get('p99', 0):.0f} ms, {usual.refused}"
        f" refused, {sum(usual.others.values())} errors; at four times the peak {over.rate:,.0f} lists a second,"
        f" {100 * goodput:.0f} % of the higher peak, p99 {over.answered_ms.get('p99', 0):.0f} ms; {over.refused:,}"
        f" refusals with Retry-After, p50 {over.refused_ms.get('p50', 0):.0f} ms, p99"
        f" {over.refused_ms.get('p99', 0):.0f} ms; {sum(over.others.values())} errors ({over.others or 'none'})"
    )
    calm = usual.answered_ms.get("p99", 1e9) <= 500 and not usual.others and not usual.refused
    quick = over.refused_ms.get("p50", 0.0) <= 50 and not over.others
    return Finding(11, figure, calm and quick and goodput >= 0.8)
