import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from adagrpo.errors import UserError
from adagrpo.report.decision import decision_text
from adagrpo.report.run_page import build_report, write_figures, write_report

HOSTILE = "<script>alert('x')<"  # no slash, so that it can be the name of a folder


def values(hr: float) -> dict[str, float]:
    names = ("hr@1", "hr@10", "hr@50", "ndcg@10", "coverage@10", "tail_share@10")
    return dict.fromkeys(names, hr) | {"hallucination@10": hr / 50, "mean_reward@10": 2 * hr, "true_utility@10": 3 * hr}


def splits(hr: float, step: int) -> dict[str, Any]:
    return {"step": step, "validation": values(hr * 1.1), "test": values(hr)}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def gated_steps(count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        row = {"step": step, "nll": 5.0, "admission": 0.2, "shuffled_admission": 0.1, "rejected_easy": 0.3}
        row |= {"rejected_undiscriminated": 0.4, "rejected_degenerate": 0.1, "rejected_closed": 0.0, "reward": None}
        rows.append(row | ({"grad_norm_grpo": 0.1, "admitted_contains_target": 0.5} if step % 10 == 0 else {}))
    return rows


@pytest.fixture
def metrics() -> dict[str, Any]:
    arm = {"objective": "adagrpo", "gate": "adagrpo", "lambda": 1.0, "admission": 0.2}
    return {
        "name": "<script>name</script>",
        "config_hash": "abc",
        "dataset": {"users": 12345, "items": 50, "test_cases": 100, "validation_cases": 100},
        "catalog": {"items": 50, "collision_rate": 0.25, "level": [{"codes_used": 7, "entropy_share": 0.5}]},
        "ranker": {"validation": {"hr@10": 0.3, "ndcg@10": 0.2}, "rerank": {"sum": {"hr@10": 0.31}}},
        "stages": {
            "sft": {"validation": values(0.1), "test": values(0.1)},
            "nll": {"objective": "nll", "admission": None, "best": splits(0.11, 10), "final": splits(0.1, 20)},
            HOSTILE: {**arm, "best": splits(0.12, 10), "final": splits(0.09, 20)},
        },
    }


@pytest.fixture
def bare(tmp_path: Path, metrics: dict[str, Any]) -> Path:
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return tmp_path


def difference(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "p_value": 0.04}


PAIRED = {
    "users": 100,
    "checkpoints": [],
    "against": [
        {"arm": HOSTILE, "checkpoint": "best", "reference": "sft", "metrics": {"hr@10": difference(0.02)}},
        {"arm": HOSTILE, "checkpoint": "best", "reference": "nll", "metrics": {"hr@10": difference(-0.005)}},
    ],
}


def write_stages(run: Path) -> None:
    """A diagnosis and paired outcomes."""
    verdict = {"verdict": {"decision": "do_not_use", "sentences": ["No gain.", "At most +1 %.", "More."]}}
    contents = {"diagnose/diagnose": verdict, "report/paired/paired": PAIRED}
    for name, content in contents.items():
        path = run / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    (run / "diagnose.html").touch()


@pytest.fixture
def whole(bare: Path) -> Path:
    write_stages(bare)
    for folder in ("sft", "train/nll", f"train/{HOSTILE}"):
        write_rows(bare / folder / "steps.jsonl", gated_steps(200))
        write_rows(
            bare / folder / "validation.jsonl", [{"step": s, "hr@10": 0.1, "ndcg@10": 0.05} for s in (0, 10, 20)]
        )
    run = {"config": {"name": "<b>n</b>"}, "versions": {"torch": "2.0"}, "threads": 2, "data": {"logs": "beef"}}
    (bare / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    events = [{"time": "t", "stage": s, "event": "end", "seconds": 61.0 * i} for i, s in enumerate(("sft", "train"), 1)]
    write_rows(bare / "events.jsonl", [*events, {"stage": "sft", "event": "skip"}])
    quality = {"strata": [{"by": "all", "stratum": HOSTILE, "cases": 3}], "calibration": "none"}
    (bare / "ranker" / "report").mkdir(parents=True)
    (bare / "ranker" / "report" / "report.json").write_text(json.dumps(quality), encoding="utf-8")
    return bare


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {"src", "onload", "onclick"} & {name for name, _ in attributes}
        assert all(
            (link or "").startswith("#") or link == "diagnose.html" for name, link in attributes if name == "href"
        )
        if tag not in ("meta", "wbr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str) -> set[str]:
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert "<script" not in html
    assert "http" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "url(" not in html and "@import" not in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(svg)
    return tags.seen


def test_whole_run(whole: Path) -> None:
    html = build_report(whole)
    assert {"svg", "table", "details", "figure"} <= check(html)
    assert 'class="absent"' not in html
    assert "&lt;script&gt;name&lt;/script&gt;" in html
    assert "&lt;b&gt;n&lt;/b&gt;" in html
    for text in ("12.00 %", "+20.0 %", "12,345", "25.00 %", "1 min 01 s", "3 min 03 s", "2 threads", "beef"):
        assert text in html
    assert "Over all steps 20.0 % of the samples were admitted; a shuffled reward would have admitted 10.0 %." in html
    assert "The rollouts of 50.0 % of the admitted held the logged item." in html
    assert html.count("a shuffled reward would admit</text>") == 1  # nll has no gate


def test_the_diagnosis_is_told_and_linked(whole: Path) -> None:
    html = build_report(whole)
    assert "Does re-ranking by this reward help? Do not use." in html and 'class="verdict do_not_use"' in html
    assert "No gain. At most +1\N{NO-BREAK SPACE}%. adagrpo decide --run" in html and "More." not in html
    assert html.count('href="diagnose.html"') == 1
    (whole / "diagnose.html").unlink()
    assert "diagnose.html" not in build_report(whole)


def contender(name: str, hits: float) -> dict[str, Any]:
    test = {"hr@10": hits, "ndcg@10": hits / 2, "coverage@10": 0.5, "tail_share@10": 0.1}
    validation = {"hr@10": hits, "ndcg@10": hits / 2}
    row = {"list": name, "validation": validation, "test": test, "milliseconds": 3.0, "needs": ["counts"]}
    return row | {"ndcg@10 against sft": [0.01, 0.0, 0.02]}


DECISION = {
    "chosen": "item_knn",
    "control": "sft",
    "why": "the highest NDCG@10 on validation",
    "warning": "the policy alone (0.0500) is below item_knn (0.0600)",
    "training": None,
    "exposure_weighted": False,
    "doubts": ["900 validation cases are few"],
    "serve": "adagrpo serve --run <run> --arm item_knn",
    "experiment": {"plan": "run/decision.plan.yaml", "serve": "adagrpo serve --experiment run/decision.plan.yaml"},
    "contenders": [contender("popularity", 0.05), contender("item_knn", 0.12), contender("sft", 0.1)],
}


def test_the_page_opens_with_the_decision(whole: Path) -> None:
    (whole / "decision.json").write_text(json.dumps(DECISION), encoding="utf-8")
    html = build_report(whole)
    check(html)
    opening = html.partition('<h2 id="decision">')[2].partition("<h2")[0]
    assert html.index('<h2 id="decision">') == html.index("<h2")
    for text in (
        "Serve item_knn: the highest NDCG@10 on validation.",
        "Of 1,000 users 120 find their next item in a list of ten, test cases; with sft 100, popularity 50.",
        "The policy alone (0.0500) is below item_knn (0.0600).",
        "But 900 validation cases are few.",
        "adagrpo serve --run &lt;run&gt; --arm item_knn",
        "adagrpo serve --experiment run/decision.plan.yaml",
    ):
        assert text in opening
    (whole / "decision.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"decision\.json: damaged"):
        build_report(whole)


def test_the_terminal_says_first_that_the_policy_is_below_a_baseline() -> None:
    first, second, *rest = decision_text(DECISION).splitlines()
    assert first == "The policy alone (0.0500) is below item_knn (0.0600)."
    assert second.startswith("Serve item_knn: ") and first not in rest
    assert decision_text(DECISION | {"warning": None}).startswith("Serve item_knn: ")


def test_the_terminal_says_what_the_chosen_list_takes_and_how_it_was_measured() -> None:
    timed = [row | {"milliseconds": 25.31, "processor_milliseconds": 4.12} for row in DECISION["contenders"]]
    said = "One list of item_knn takes 25.3 ms, 4.1 ms of processor time over all threads: each history's least"
    assert said in decision_text(DECISION | {"contenders": timed})
    assert "processor time" not in decision_text(DECISION)  # of an earlier version


def test_a_policy_below_a_baseline_is_said_first(bare: Path, metrics: dict[str, Any]) -> None:
    metrics["baselines"] = {
        "item_knn": {"validation": {"ndcg@10": 0.3}},
        "popularity": {"validation": {"ndcg@10": 0.01}},
    }
    (bare / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    verdict = build_report(bare).partition('id="verdict"')[2]
    assert "<p><strong>The starting policy (0.1000) is below item_knn (0.3000) in NDCG@10 on validation" in verdict


def test_paired_differences_stand_in_tables_and_charts(whole: Path) -> None:
    html = build_report(whole)
    assert "+2.00 (+1.00 to +3.00)" in html and "-0.50 (-1.50 to +0.50)" in html
    for title in (
        "HR@10 minus that of the starting policy, test cases",
        "HR@10 minus that of continued NLL, test cases",
    ):
        assert f"<title>{title}</title>" in html
    assert "over the same 100 users" in html


def test_nothing_is_bold_across_validation_and_test(bare: Path, metrics: dict[str, Any]) -> None:
    """Re-ranking was measured on both; the larger rate of validation is no reason to leave test without a mark."""
    both = {"validation": {"sum": {"hr@10": 0.31}}, "test": {"sum": {"hr@10": 0.21}}}
    knn = {"validation": {"hr@10": 0.05}, "test": {"hr@10": 0.28}}
    metrics["ranker"]["rerank"], metrics["baselines"] = both, {"item_knn": knn}
    (bare / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    part = build_report(bare).partition('id="ranker"')[2].partition("As a reward")[0]
    test, validation = part.partition("Validation cases")[::2]
    assert re.findall(r"<strong>(.*?)</strong>", test) == ["28.00 %"]
    assert re.findall(r"<strong>(.*?)</strong>", validation) == ["0.2000", "31.00 %"]


@pytest.mark.parametrize("content", [{}, {"stages": {}}, {"stages": {"sft": {"test": {"hr@10": 0.1}}}}])
def test_almost_nothing(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    html = build_report(tmp_path)
    check(html)
    assert "No post-trained arm has been evaluated yet" in html
    for left_out in ("Reward against truth", "Learning curves", "Admission", "Rollouts", "Ranker", "Stages", "absent"):
        assert f">{left_out}<" not in html and 'class="absent"' not in html
    assert tmp_path.name in html


def test_arm_that_is_not_yet_in_the_metrics_has_its_curves(bare: Path) -> None:
    write_rows(bare / "train" / "running" / "validation.jsonl", [{"step": 0, "hr@10": 0.1}, {"step": 5, "hr@10": 0.2}])
    write_rows(bare / "train" / ".hidden" / "validation.jsonl", [{"step": 0, "hr@10": 0.1}])
    html = build_report(bare)
    assert ">running</text>" in html
    assert ".hidden" not in html


def test_names_cannot_leave_the_run_directory(tmp_path: Path, metrics: dict[str, Any]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    metrics["stages"]["../../secret"] = metrics["stages"].pop("nll")
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_rows(tmp_path / "secret" / "validation.jsonl", [{"step": 0, "hr@10": 0.1}])
    assert "Learning curves" not in build_report(run)


def test_written_beside_and_renamed(whole: Path) -> None:
    (whole / "report.html").write_text("old", encoding="utf-8")
    path = write_report(whole)
    assert path == whole / "report.html"
    assert path.read_text(encoding="utf-8") == build_report(whole)
    assert not list(whole.glob(".report*"))


def test_damaged_files_are_named(whole: Path) -> None:
    steps = whole / "train" / "nll" / "steps.jsonl"
    good = steps.read_text(encoding="utf-8")
    steps.write_text(good + '{"step": 201', encoding="utf-8")  # a crash cut the last line short
    build_report(whole)
    steps.write_text("{]\n" + good, encoding="utf-8")
    with pytest.raises(UserError, match=r"steps\.jsonl: line 1 is not JSON"):
        build_report(whole)
    steps.write_text("3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"steps\.jsonl: line 1 is int, an object would be right"):
        build_report(whole)
    steps.unlink()
    (whole / "run.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.yaml: cannot be read"):
        build_report(whole)
    (whole / "metrics.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.json: is list, a mapping would be right"):
        write_report(whole)


def test_no_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json: not there"):
        write_report(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_figures_stand_alone(whole: Path, tmp_path: Path) -> None:
    written = write_figures(whole, tmp_path / "figures")
    assert {path.name for path in written} >= {"curves-1.svg", "admission-1.svg", "frontier-1.svg"}
    page = build_report(whole)
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert text in page


def test_figures_are_written_where_an_arm_was_trained_under_another_reward(whole: Path, tmp_path: Path) -> None:
    for arm, reward in (("nll", -0.45), (HOSTILE, -0.72)):
        rows = [{"step": step, "hr@10": 0.1, "mean_reward@10": reward} for step in (0, 10)]
        write_rows(whole / "train" / arm / "validation.jsonl", rows)
    assert "The mean reward of nll is left out" in build_report(whole)
    assert tmp_path / "figures" / "curves-1.svg" in write_figures(whole, tmp_path / "figures")
