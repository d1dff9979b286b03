"""The parts of the benchmarks that decide what is printed."""

from __future__ import annotations

import copy
import json
import math
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.policies import CompactPolicy, HybridPolicy
from adagrpo.types import Ragged

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import beside, item_head, memory, page, prefix_quality
from benchmarks.rows import Row, median_spread, timed_in_turn

TARGETS = (
    "rl_step_vs_trl_all",
    "rl_step_vs_trl_eighth",
    "beam50_vs_generate",
    "adagrpo_vs_nll_step",
    "nll_bf16_share",
    "evaluate_beauty_s",
    "diagnostics_share",
    "beauty_end_to_end_min",
    "serve_p50_ms",
    "serve_rps_32",
    "prepare_20m_s",
    "prepare_20m_rss_gb",
    "memory_g64_over_g8",
)


def test_timings_are_taken_in_turn_and_warm_up_is_left_out() -> None:
    order: list[str] = []
    first, second = timed_in_turn([lambda: order.append("a"), lambda: order.append("b")], repeats=3, warmup=2)
    assert order == ["a", "b"] * 5 and len(first) == len(second) == 3
    assert median_spread([3.0, 1.0, 2.0]) == (2.0, (1.0, 3.0))


def test_a_row_says_what_it_was_measured_on() -> None:
    row = Row("name", 1.0, "s", (0.5, 2.0), "<= 2", True, "nothing").as_json()
    assert {"machine", "threads", "versions", "commit", "target", "met", "against", "spread"} <= set(row)
    assert json.loads(json.dumps(row))["value"] == 1.0


def test_work_beside_another_job_is_held_against_the_same_turn_alone() -> None:
    seconds = {"alone": [1.0, 2.0, 4.0], "busy": [2.0, 6.0, 8.0], "twin": [3.0, 6.0, 12.0]}
    costs = {
        (name, work, place): [beside.Cost(factor * value, 0.5) for value in values]
        for name, factor in (("default", 1.0), ("spinning", 1.25))
        for work in beside.WORKS
        for place, values in seconds.items()
    }
    rows = {row.name: row for row in beside.rows_of(costs)}
    assert len(rows) == 6
    busy = rows["train_beside_ratio"]  # 2, 3 and 2 times the time alone
    assert (busy.value, busy.spread, busy.target, busy.met) == (2.0, (2.0, 3.0), "<= 2.5", True)
    assert busy.detail["default"]["busy_s"] == 6.0 and busy.detail["spinning"]["alone_s"] == 2.5
    assert (rows["evaluate_beside_twin_ratio"].value, rows["evaluate_beside_twin_ratio"].met) == (3.0, False)
    assert rows["train_sleeping_alone_ratio"].value == 0.8


DETAIL = {"beam": 50, "share": 0.25, "test": {"hr@10": 0.5}}
ROWS = [
    Row("serve_p50_ms", 8.0, "ms", (7.0, 9.5), "<= 10", True, "one request", DETAIL).as_json(),
    Row("evaluate_beauty_s", 21.0, "s", (21.0, 21.0), "<= 20", False, "wall clock").as_json(),
    Row("shares", 0.02, "share", (0.01, 0.03), "", None, "no target").as_json(),
    Row("scale_beam_10", 0.5, "s", (0.4, 0.6), "", None, "256 histories").as_json(),
]


def test_the_page_holds_what_the_rows_say_and_nothing_else_changes() -> None:
    text = page.with_measured(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", ROWS)
    assert text.startswith(f"before\n{page.BEGIN}\n") and text.endswith(f"{page.END}\nafter\n") and "old" not in text
    lines = text.splitlines()
    assert "| evaluate\\_beauty\\_s | 21.00 s | one run | \\<= 20 | no | wall clock |" in lines
    assert "| serve\\_p50\\_ms | 8.000 ms | 7.000 – 9.500 | \\<= 10 | yes | one request |" in lines
    assert "| shares | 0.02000 share | 0.01000 – 0.03000 |  | – | no target |" in lines
    assert "- `serve_p50_ms`: beam 50, share 0.2500, test hr@10 0.5000" in lines
    assert "| beam\\_10 | 0.5000 s | 0.4000 – 0.6000 | 256 histories |" in lines
    assert page.with_measured(text, ROWS) == text


def test_the_page_of_the_project_is_what_its_rows_give() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    rows = json.loads((page.PAGE.parent.parent / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert page.with_measured(text, rows) == text
    assert {row["name"] for row in rows} >= set(TARGETS)


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, text = tmp_path / "rows.json", tmp_path / "page.md"
    rows.write_text(json.dumps(ROWS), encoding="utf-8")
    text.write_text(f"{page.BEGIN}{page.END}", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["page", str(rows), "--page", str(text)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module has been imported already
        runpy.run_module("benchmarks.page", run_name="__main__")
    assert text.read_text(encoding="utf-8") == page.with_measured(f"{page.BEGIN}{page.END}", ROWS)


@pytest.mark.parametrize("prefix", [0, 2])
def test_lists_of_the_item_head_are_held_against_brute_force(prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = item_head.random_catalog(300)
    policy = HybridPolicy(CompactPolicy(catalog.codes, catalog.level_sizes, width=16), catalog.trie, prefix=prefix)
    torch.nn.init.normal_(policy.items.weight, generator=torch.Generator().manual_seed(0))
    training = Ragged(np.arange(9, dtype=np.int32), np.array([0, 4, 9], dtype=np.int64))
    found = item_head.compared(policy, item_head.cuts(training, 3, 6))
    assert found.lists == found.same == 6 and found.difference < item_head.NEAR
    assert found.parted == 0 and found.margin == 0
    right = item_head.brute_force

    def wrong(asked: HybridPolicy, *rest: object) -> object:
        changed = copy.copy(asked)
        changed.item_weight = 0.9
        return right(changed, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(item_head, "brute_force", wrong)
    seen = item_head.compared(policy, item_head.cuts(training, 3, 6))
    assert seen.difference > 0.1 and seen.same == 0
    assert seen.parted == 6 and seen.margin > item_head.NEAR


def test_two_near_prefixes_at_the_edge_of_the_beam_change_a_list_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second and third code are 2e-6 apart, a search that adds up otherwise may keep the other one."""
    monkeypatch.setattr(item_head, "WIDTH", 2)
    catalog = item_head.random_catalog(300)
    policy = HybridPolicy(CompactPolicy(catalog.codes, catalog.level_sizes, width=16), catalog.trie, prefix=2)
    policy.eval()
    histories = item_head.Histories(torch.tensor([[4, 7]]), torch.tensor([2]))
    with torch.no_grad():
        first = policy.logits(policy.start(policy.encode(histories)))[0, 0].log_softmax(0)
        second, third = first.masked_fill(catalog.trie.tables[0][0] < 0, -torch.inf).topk(3).indices[1:]
        policy.compact.heads[0].bias[third] += 2 * (first[second] - first[third] - 2e-6)  # the decoder's share is half
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.compact.heads[0].bias[third] += 2 * 4e-6

    def searched(asked: HybridPolicy) -> item_head.Beams:
        return item_head.beam_search(asked, asked.encode(histories), 2, trie=asked.trie)

    monkeypatch.setattr(item_head, "brute_force", lambda *given: searched(other))
    found = item_head.compared(policy, iter([histories]))
    assert found.same == 0 and found.parted == 1
    assert found.margin < 1e-5 and found.difference < 1e-5
    apart = (searched(policy).scores - searched(other).scores).abs().max()
    assert apart > 1e-3  # at one place, where another item stands now


def test_margins_are_of_the_level_where_searches_first_part() -> None:
    def kept(scores: list[float], nodes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([scores]), torch.tensor([nodes])

    same, wide = kept([0.0, -1.0], [3, 5]), kept([-1.0, -9.0], [0, 9])
    assert item_head.margins([same, same], [same, kept([0.0, -1.5], [5, 3])]).tolist() == [-1]
    near = kept([0.0, -1.25], [3, 4])
    assert item_head.margins([same, wide], [near, same]).tolist() == [0.25]
    assert item_head.margins([same], [kept([0.0, -math.inf], [3, -1])]).tolist() == [math.inf]


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(UserError, match="the page has no"):
        page.with_measured(f"{page.END} {page.BEGIN}", ROWS)
    with pytest.raises(UserError, match="no row"):
        page.with_measured(f"{page.BEGIN}{page.END}", [])


def test_the_page_of_the_project_explains_every_row() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.BEGIN in text and page.END in text
    for name in TARGETS:
        assert f"`{name}`" in text, name


def test_peak_memory_is_the_most_that_is_held_at_a_time() -> None:
    def work() -> None:
        for _ in range(3):
            torch.empty(250_000).zero_()  # a megabyte, freed before the next
        kept = [torch.empty(250_000) for _ in range(2)]
        assert len(kept) == 2

    assert 2e6 <= memory.peak_bytes(work) < 2.2e6


def test_what_prefixes_cost_is_a_difference_of_the_same_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hits = {0: np.array([1.0, 0.0, 1.0, 1.0]), 2: np.array([1.0, 0.0, 0.0, 1.0])}
    monkeypatch.setattr(
        prefix_quality,
        "tested",
        lambda data, folder, prefix, *more, seed: dict.fromkeys(prefix_quality.METRICS, hits[prefix]),
    )
    first, second = prefix_quality.prefix_quality(tmp_path, tmp_path, seed=1)
    assert (first.name, second.name) == ("prefix_hr10_seed1", "prefix_ndcg10_seed1")
    assert first.value == -25 and first.spread[0] < -25 <= first.spread[1] <= 0
    assert first.detail == {"items": 75.0, "prefixes": 50.0, "users": 4, "seed": 1}
