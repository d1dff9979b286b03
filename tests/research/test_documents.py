"""Tables between the markers of a page: what is written, what is left alone, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from research.pages.__main__ import main
from research.pages.documents import figures_into, tables_into, with_tables

END = "<!-- end of table -->"
ROOT = Path(__file__).parents[2]
STALE = "not what the results say; without --check they are written"


def row(arm: str, seed: int, hr: float, **changes: Any) -> dict[str, Any]:
    values = {f"{name}{suffix}": hr for name in ("hr@10", "ndcg@10") for suffix in ("", "_unmasked")}
    kinds = {"dataset": "tiny", "arm": arm, "seed": seed, "checkpoint": "best", "split": "test", "step": None}
    return kinds | {"metrics": values} | changes


def against(difference: float, seeds: list[float] | None) -> dict[str, Any]:
    return {"hr@10": {"difference": difference, "users": [-0.01, 0.05], "seeds": seeds}}


def judged(arm: str, checkpoint: str, verdict: str, differs: dict[str, Any]) -> dict[str, Any]:
    test = {name: {"mean": 0.1} for name in ("hr@10", "ndcg@10", "tail_share@10")}
    seen = {"hr@10": {"x": 0.13, "nll": 0.12}.get(arm, 0.1)}
    told = {"test": test, "validation": seen, "against": differs}
    return {"arm": arm, "checkpoint": checkpoint, "verdict": verdict} | told


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    tiny = [row(arm, seed, hr) for arm, hr in (("sft", 0.1), ("ranker", 0.3)) for seed in (0, 1)]
    tiny += [row("sft", 1, 0.2), row("sft", 1, 0.9, split="validation")]  # measured again; and not of the test cases
    tiny += [row("nll", 0, 0.11, step=2, admission=None), row("rerank", 0, 0.9)]
    tiny += [row("nll", 0, 0.12, step=4, checkpoint="final")]
    write("tiny.jsonl", tiny)
    write("lone.jsonl", [row("sft", 3, 0.1)])
    write("published.jsonl", [{"dataset": "lone", "model": "X", "metrics": {"hr@10": 0.25, "ndcg@10": 0.5}}])
    worth = {name: {"mean": -0.01, "low": -0.02, "high": 0.0, "p_value": 0.5} for name in ("hr@10", "ndcg@10")}
    values = {"metrics": {"masked": {"hr@10": 0.1, "ndcg@10": 0.05}}, "worth": {"masked": worth}}
    write("parts.jsonl", [{"variant": "recipe", **values}, {"variant": "less", **values}])
    rows = [judged("nll", "best", "baseline", {}), judged("nll", "final", "baseline", {})]
    rows += [
        judged("x", "best", "significantly better", against(0.02, [-0.03, 0.07])),
        judged("x", "final", "significantly worse", against(0, None)),
    ]
    rows += [judged("rerank", "best", "significantly better", against(-0.002, None))]
    content = {"name": "tiny", "plan": {"metric": "hr@10", "level": 0.95, "baseline": "nll"}, "rows": rows}
    (folder / "tiny.comparison.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def made(marker: str, results: Path) -> list[str]:
    """The lines that stand between the markers."""
    page = with_tables(f"before\n<!-- table: {marker} -->\nold\n{END}\nafter", results)
    head, foot = f"before\n<!-- table: {marker} -->\n\n", f"\n\n{END}\nafter"
    assert page.startswith(head) and page.endswith(foot) and "old" not in page
    assert with_tables(page, results) == page
    return page.removeprefix(head).removesuffix(foot).split("\n")


def test_arms_of_one_seed(results: Path) -> None:
    assert made("arms tiny seed=0", results) == [
        "| arm | checkpoint | HR@10 | vs sft | NDCG@10 |",
        "|---|---|--:|--:|--:|",
        "| sft | start | 10.00 % | – | 0.1000 |",
        "| nll | best, step 2 | 11.00 % | +10.0 % | 0.1100 |",
        "| nll | final, step 4 | **12.00 %** | +20.0 % | **0.1200** |",
    ]
    assert made("arms tiny seed=0 columns=ndcg@10 checkpoint=final form=text", results) == [
        "```",
        "arm  checkpoint     NDCG@10",
        "---  -------------  --------",
        "sft  start           0.1000",
        "nll  final, step 4   0.1200*",
        "```",
    ]
    assert made("arms lone", results)[2:] == ["| sft | start | 10.00 % | – | 0.1000 |"]


def test_starting_policies_by_seed_and_their_mean(results: Path) -> None:
    assert made("starting tiny lone†", results) == [
        "| data set, seed | policy | without masking | SASRec | item-kNN | popularity | X, as published |",
        "|---|--:|--:|--:|--:|--:|--:|",
        "| tiny, 0 | .1000 / .1000 | .1000 / .1000 | .3000 / .3000 | – | – | – |",
        "| tiny, 1 | .2000 / .2000 | .2000 / .2000 | .3000 / .3000 | – | – | – |",
        "| tiny, mean of 2 seeds | .1500 / .1500 | .1500 / .1500 | .3000 / .3000 | – | – | – |",
        "| lone, 3 † | .1000 / .1000 | .1000 / .1000 | – | – | – | .2500 / .5000 |",
    ]


def test_a_comparison_with_its_intervals(results: Path) -> None:
    assert made("comparison tiny", results) == [
        "| arm | checkpoint | HR@10 | against nll, points (users; seeds) | NDCG@10 | tail share@10 | verdict |",
        "|---|---|--:|--:|--:|--:|---|",
        "| nll | best | 10.00 % | – | 0.1000 | 10.00 % | baseline |",
        "| nll | final | 10.00 % | – | 0.1000 | 10.00 % | baseline |",
        "| x | best | 10.00 % | +2.00 (−1.00 … +5.00; −3.00 … +7.00) | 0.1000 | 10.00 % | **significantly better** |",
        "| x | final | 10.00 % | 0.00 (−1.00 … +5.00; –) | 0.1000 | 10.00 % | significantly worse |",
        "| rerank | – | 10.00 % | −0.20 (−1.00 … +5.00; –) | 0.1000 | 10.00 % | **significantly better** |",
    ]
    last = made("comparison tiny checkpoint=final", results)
    assert [line.split(" | ")[:2] for line in last[2:]] == [["| nll", "final"], ["| x", "final"], ["| rerank", "–"]]
    short = made("comparison tiny form=short", results)
    assert short[0] == "| arm | checkpoint | HR@10 | against nll, points (95 % over users) | NDCG@10 |"
    assert short[4] == "| x | best | 10.00 % | +2.00 (−1.00 … +5.00) | 0.1000 |"


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("arms tiny", "has seeds 0, 1; say which one"),
        ("arms tiny seed=7", "no arm of seed 7"),
        ("arms tiny seed=x", "seed is a number"),
        ("arms tiny seed=0 checkpoint=last", "checkpoint is best or final"),
        ("arms tiny seed=0 form=html", "has form=text or none"),
        ("arms tiny lone", "of one file of results, 2 are named"),
        ("arms absent", "absent.jsonl: no such file"),
        ("arms parts", "line 1 has no 'dataset'"),
        ("starting", "of one file of results, 0 are named"),
        ("starting tiny seed=0", "has no seed=; it has none"),
        ("headline tiny arms=x,y", "no comparison has an arm y"),
        ("headline tiny arms=x,y split=validation", "no comparison has an arm y"),
        ("headline tiny arms=x split=valid", "split=valid; a headline is of test or validation"),
        ("pairs tiny checkpoint=best", "one table of pairs has both checkpoints"),
        ("pairs tiny metric=hr@10", "no pair of arms has hr@10"),
        ("comparison absent", "absent.comparison.json: no such file"),
        ("ablation tiny", "expected rows of research.starting_policies.ablation"),
        ("means tiny", "KIND one of arms, comparison, starting, ablation, quality, crossing, contenders, trained"),
        ("", "KIND one of"),
    ],
)
def test_what_a_marker_cannot_have(results: Path, marker: str, said: str) -> None:
    with pytest.raises(UserError, match=r"page: line 2: ") as refusal:
        with_tables(f"before\n<!-- table: {marker} -->\n{END}\n", results)
    assert said in str(refusal.value)


def test_markers_that_do_not_close(results: Path) -> None:
    begin = "<!-- table: arms lone -->"
    with pytest.raises(UserError, match="the table of line 1 has no"):
        with_tables(f"{begin}\n| old |\n", results)
    with pytest.raises(UserError, match="line 2 begins a table before the one of line 1"):
        with_tables(f"{begin}\n{begin}\n{END}", results)
    example = f"```\n<!-- table: arms absent -->\n{END}\n```\n"
    assert with_tables(example, results) == example


def test_pages_are_checked_or_written_all_or_none(results: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    first, second = docs / "a.md", tmp_path / "b.md"
    first.write_bytes(f"<!-- table: arms lone -->\n{END}\r\nprose, left as it is\r\n".encode())
    second.write_text(f"<!-- table: arms absent -->\n{END}\n", encoding="utf-8")
    old = first.read_bytes()
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        tables_into(results, [docs, second])
    assert first.read_bytes() == old
    with pytest.raises(UserError, match=r"a\.md: not what the results say"):
        tables_into(results, [docs], check=True)
    assert first.read_bytes() == old
    assert tables_into(results, [docs]) == [first] and first.read_bytes().endswith(b"\r\nprose, left as it is\r\n")
    assert tables_into(results, [docs]) == [] and tables_into(results, [docs], check=True) == []
    second.write_text("no table\n", encoding="utf-8")
    for place, message in ((second, "no page has a line"), (tmp_path / "c.md", "no such file or folder")):
        with pytest.raises(UserError, match=message):
            tables_into(results, [place])
    with pytest.raises(UserError, match="no such folder"):
        tables_into(tmp_path / "nowhere", [docs])


@pytest.mark.slow
def test_the_pages_of_the_project_say_what_its_results_say() -> None:
    pages = [ROOT / "README.md", ROOT / "docs", ROOT / "research"]
    assert tables_into(ROOT / "research", pages, check=True) == []


@pytest.mark.slow  # dozens of charts are drawn anew
def test_the_figures_of_the_project_are_those_of_its_results() -> None:
    assert figures_into(ROOT / "research", check=True) == []


def test_the_command_writes_or_checks_a_project(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pages", *map(str, arguments)])
        status = main(tmp_path)
        return status, *capsys.readouterr()

    study = tmp_path / "research" / "study"
    study.parent.mkdir()
    results.rename(study)
    (tmp_path / "docs").mkdir()
    page, front = study / "README.md", tmp_path / "README.md"
    for path in (page, front):
        path.write_text(f"<!-- table: arms lone -->\n{END}\n", encoding="utf-8")
    assert told("--check") == (2, "", f"research.pages: {front}, {page}: {STALE}\n")
    assert told() == (0, f"written: {front}, {page}\n", "") and "| sft | start | 10.00 % |" in page.read_text("utf-8")
    assert told("--check") == told() == (0, "written: nothing, all up to date\n", "")
    status, table, _ = told("--rows", study / "tiny.jsonl")
    assert status == 0 and table.startswith("| data set | arm | checkpoint | HR@10 |")
    assert told("--rows", "nowhere") == (2, "", "research.pages: nowhere: no such file\n")


def test_results_are_found_by_name_in_whichever_study_they_lie(results: Path) -> None:
    (results / "other").mkdir()
    (results / "lone.jsonl").rename(results / "other" / "lone.jsonl")
    assert made("arms lone", results)[2:] == ["| sft | start | 10.00 % | – | 0.1000 |"]
    (results / "lone.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"lone\.jsonl: there are several, .*; results are told apart by name"):
        made("arms lone", results)


def test_charts_are_drawn_where_there_is_something_to_draw(results: Path, tmp_path: Path) -> None:
    content = json.loads((results / "tiny.comparison.json").read_text(encoding="utf-8"))
    charts = results / "figures"
    assert figures_into(results) == []  # no hallucination was measured, and no world is simulated
    for place, row in enumerate(content["rows"]):
        row["test"] |= {name: {"mean": 0.1 * place} for name in ("hallucination@10", "mean_reward@10")}
        row["test"]["true_utility@10"] = {"mean": 0.5}
    (results / "tiny.comparison.json").write_text(json.dumps(content), encoding="utf-8")
    assert figures_into(results) == []  # no page shows them
    names = ("frontier", "utility")
    page = "".join(f"![What it shows](figures/tiny/{name}.svg)\n" for name in names)
    (results / "README.md").write_text(page, encoding="utf-8")
    with pytest.raises(UserError, match=r"frontier\.svg, .*utility\.svg: not what the results say"):
        figures_into(results, check=True)
    assert figures_into(results) == [charts / "tiny" / "frontier.svg", charts / "tiny" / "utility.svg"]
    assert figures_into(results) == [] == figures_into(results, check=True)
    with pytest.raises(UserError, match="no such folder"):
        figures_into(tmp_path / "nowhere")


WITHOUT_ROWS = {"fair_trial/trial-amazon18-scientific.comparison.json"}  # its rows were not kept


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted((ROOT / "research").glob("*/*.comparison.json"))
        if path.relative_to(ROOT / "research").as_posix() not in WITHOUT_ROWS
    ],
    ids=lambda path: path.name,
)
def test_a_comparison_of_the_project_is_that_of_its_rows(path: Path) -> None:
    lines = path.with_name(path.name.replace(".comparison.json", ".jsonl")).read_text(encoding="utf-8").splitlines()
    rows = {
        (r["arm"], r["checkpoint"], r["seed"]): r["metrics"] for r in map(json.loads, lines) if r["split"] == "test"
    }
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["rows"]
    for actual in content["rows"]:
        each = [rows[actual["arm"], actual["checkpoint"], seed]["hr@10"] for seed in content["seeds"]]
        assert actual["test"]["hr@10"]["by_seed"] == each
