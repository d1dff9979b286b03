"""How the memory of an RL step on a causal LM grows with the group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.causal_lm import HISTORY, SIZES, Kind, histories, our_step, policy_and_catalog
from benchmarks.rows import Row

__all__ = ["memory_g64_over_g8", "peak_bytes"]


def memory_g64_over_g8(data: Path, work: Path, kind: Kind) -> list[Row]:
    """Peak bytes of a step with groups of 64 over one with groups of 8, all 16 samples admitted.

    Were the prompt copied for every completion, everything would grow eightfold. That it is not shows in what 56 more
    completions cost behind prompts of half the length: the same.
    """
    policy, _ = policy_and_catalog(kind)
    peaks = {
        (length, group): peak_bytes(our_step(policy, histories(16, kind, length), 16, group), kind.device)
        for length in (HISTORY // 2, HISTORY)
        for group in (8, 64)
    }
    growth = {length: peaks[length, 64] - peaks[length, 8] for length in (HISTORY // 2, HISTORY)}
    value = peaks[HISTORY, 64] / peaks[HISTORY, 8]
    of_prompt = growth[HISTORY] / growth[HISTORY // 2]
    detail = {
        "mb_g8": peaks[HISTORY, 8] / 1e6,
        "mb_g64": peaks[HISTORY, 64] / 1e6,
        "growth_over_that_behind_half_the_prompt": of_prompt,
        "prompt_tokens": HISTORY * len(SIZES),
        "new_tokens": len(SIZES),
    }
    against = "same step, G 8; eight times where prompts are copied"
    # twice the prompt may add the attention of completions to it, no more
    met = value < 8 and of_prompt < 1.5
    target = "< 8, growth independent of the prompt"
    return [Row(kind.named("memory_g64_over_g8"), value, "ratio", (value, value), target, met, against, detail)]


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """The most that a second run of some work holds at a time beyond what was there before it."""
    work()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
