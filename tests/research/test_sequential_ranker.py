"""The ranker's ablation: samples are the same in any rows, ranks leave out the history, the page has all figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adagrpo.report.page import read_rows
from adagrpo.types import Ragged
from research.sequential_ranker import ablation

STUDY = Path(ablation.__file__).parent
DATA = ablation.Data(Ragged(np.array([0, 1, 2, 3, 4, 5], np.int32), np.array([0, 3, 4, 6])), np.array([4, 0, 1]), 6)


def samples(rows: str) -> set[tuple[tuple[int, ...], int]]:
    settings = replace(ablation.Settings(), rows=rows, batch=2, history=4)
    return {
        (tuple(histories.items[row, : place + 1].tolist()), int(target))
        for histories, where, places, targets in next(ablation.batches(DATA, settings, 0))
        for row, place, target in zip(where.tolist(), places.tolist(), targets, strict=True)
    }


def test_a_row_for_each_prefix_has_the_samples_of_a_row_for_each_user() -> None:
    assert samples("prefixes") == samples("users") == {((0,), 1), ((0, 1), 2), ((4,), 5)}


@torch.no_grad()
def test_ranks_count_the_better_items_that_are_not_in_the_history() -> None:
    model = ablation.Model(replace(ablation.Settings(), width=8, history=4), DATA.items, 0).eval()
    model.items.weight.zero_()
    model.bias.weight.copy_(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]).unsqueeze(1))
    assert ablation.ranks(model, DATA).tolist() == [1, 0, 1]  # of 4 after 0, 1, 2; of 0 after 3; of 1 after 4, 5
    assert ablation.measure(np.array([0, 2, 10, 11])) == {"hr@10": 0.5, "ndcg@10": 0.375}


def test_the_page_has_the_figures_of_all_rows() -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    for row in read_rows(STUDY / "rows.jsonl"):
        values = [row["validation"], row["test"]] if "test" in row else [row]
        for value in values:
            assert f"{value['hr@10']:.4f} / {value['ndcg@10']:.4f}".replace("0.", ".") in page, row["variant"]
