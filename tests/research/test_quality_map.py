"""The map of objectives against the reward's quality on the tiny world: what is shared, and what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from adagrpo.errors import UserError
from research.pages.documents import figures_into, with_tables
from research.pages.quality import crossing, quality_table
from research.reward_quality import measure


def stages(run: Path) -> set[str]:
    rows = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["stage"] for row in rows if row["event"] == "end"}


@pytest.mark.slow
def test_rows_and_table(data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    folder, results = Path(shutil.copytree(data, tmp_path / "data")), tmp_path / "rows.jsonl"
    margins = ["compare={margins: {hallucination@10: 0.05}, resamples: 200}"]
    settings = {"own": [], "no reward": ["reward.kind=noise"], "few users": ["ranker.user_share=0.4"]}
    variants = [{"name": name, "set": margins + changes} for name, changes in settings.items()]
    (folder / "variants.yaml").write_text(yaml.safe_dump(variants), encoding="utf-8")
    arguments = ["x", str(folder / "recipe.yaml"), "--data", str(folder), "--out", str(tmp_path / "out")]
    arguments += ["--variants", str(folder / "variants.yaml"), "--results", str(results)]
    monkeypatch.setattr("sys.argv", [*arguments, "--objectives", "nll,adagrpo,rerank"])
    measure.main()
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [row["variant"] for row in rows] == ["own", "no reward", "few users"]
    made = [stages(tmp_path / "out" / name / "seed-0") for name in ("own", "no-reward", "few-users")]
    assert {"prepare", "tokenize", "sft", "ranker", "train/nll"} < made[0]
    assert not {"prepare", "tokenize", "sft", "ranker", "train/nll"} & made[1] and "train/adagrpo" in made[1]
    assert "ranker" in made[2] and "sft" not in made[2]  # the ranker of fewer users is another one
    # the same starting policy and the same continued NLL, and another judge of them
    for name in ("hr@10", "ndcg@10"):
        means = [[arm["test"][name]["mean"] for arm in row["arms"][:3]] for row in rows]
        assert means[0] == means[1] == means[2]
    assert rows[0]["arms"][0]["test"]["mean_reward@10"] != rows[1]["arms"][0]["test"]["mean_reward@10"]
    assert rows[1]["diagnosis"]["decision"] == "do_not_use"
    assert str(tmp_path) not in results.read_text(encoding="utf-8")
    printed = capsys.readouterr().out.splitlines()
    header = "| reward | its order, Δ NDCG@10 | both, Δ NDCG@10 | diagnose | adagrpo, Δ HR@10, points |"
    assert printed[0] == header + " rerank, Δ HR@10, points |" and printed[3].startswith("| no reward |")

    before = results.read_bytes()
    measure.main()
    assert results.read_bytes() == before

    page = "<!-- table: quality rows -->\n<!-- end of table -->\n"
    assert with_tables(page, tmp_path).splitlines()[2:-2] == printed
    last = quality_table(rows, "coverage@10").rows[0][-1]  # not known by user: the difference of the means
    coverage = [row["test"]["coverage@10"]["mean"] for row in rows[0]["arms"] if row["arm"] in ("nll", "rerank")]
    assert float(last) == pytest.approx(100 * (coverage[-1] - coverage[-2]), abs=0.005)
    (tmp_path / "map").mkdir()
    results.rename(tmp_path / "map" / "quality-x.jsonl")
    (tmp_path / "map" / "README.md").write_text("![Hits](figures/quality-x/hr.svg)\n", encoding="utf-8")
    (chart,) = figures_into(tmp_path / "map")
    assert chart == tmp_path / "map" / "figures" / "quality-x" / "hr.svg"
    svg = chart.read_text(encoding="utf-8")
    assert all(f"{arm}, {row['variant']}: " in svg for arm in ("adagrpo", "rerank") for row in rows)
    (tmp_path / "other.jsonl").write_text('{"variant": "x"}\n', encoding="utf-8")
    with pytest.raises(
        UserError, match=r"expected rows of research\.reward_quality\.measure, with variant, diagnosis and arms"
    ):
        with_tables(page.replace("rows", "other"), tmp_path)


def test_a_crossing_is_where_the_rising_fit_is_zero() -> None:
    assert crossing([2, 0, 1], [1, -3, -1]) == pytest.approx(1.5)  # in any order
    # .5 and -1.5 fall, so they are one step of -.5; from there to 1 it is a third of the way
    assert crossing([0, 1, 2, 3], [-3, 0.5, -1.5, 1]) == pytest.approx(2 + 1 / 3)
    assert crossing([0, 0, 1], [-4, 2, 1]) == pytest.approx(0.5)  # two at the same place are their mean, -1
    assert crossing([0, 1, 2], [-1, 0, 1]) == 1.0
    assert crossing([0, 1], [-2, -1]) is None and crossing([0, 1], [1, 2]) is None
    assert crossing([0, 1, 2], [1, 0, -1]) is None  # falls: the fit is its mean, 0, everywhere
    generator = np.random.default_rng(0)
    actual = []
    for _ in range(200):
        x = generator.random(20)
        actual.append(crossing(x, x - 0.4 + 0.2 * generator.standard_normal(20)))
    assert np.mean([value for value in actual if value is not None]) == pytest.approx(0.4, abs=0.03)
    for x, y in (([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0])):
        with pytest.raises(ValueError, match=r"expected \(N,\)|finite"):
            crossing(x, y)
