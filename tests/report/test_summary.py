import math
from typing import Any

from adagrpo.report.summary import rerank_rows, summary_sentences


def stage(hr: float, reward: float = 1.0, *, validation: float | None = None, **more: Any) -> dict[str, Any]:
    test = {"hr@10": hr, "hallucination@10": 0.001, "mean_reward@10": reward}
    checkpoint = {"step": 7, "test": test, "validation": {"hr@10": hr if validation is None else validation}}
    return {"best": checkpoint, "final": checkpoint | {"step": 9}, **more}


def run_metrics(**arms: Any) -> dict[str, Any]:
    start = stage(0.1)["best"]
    names = {name.replace("_", "-"): arm for name, arm in arms.items()}
    return {"dataset": {"test_cases": 10_000}, "stages": {"sft": start, **names}}


def test_gain_is_given_against_sft_and_nll() -> None:
    first, *_, last = summary_sentences(run_metrics(nll=stage(0.11), adagrpo=stage(0.121)))
    assert first == (
        "Validation picks adagrpo; its HR@10 on test is 12.10 %"
        " (+21.0 % relative to sft, +10.0 % relative to continued NLL)."
    )
    error = 196 * math.sqrt(0.121 * 0.879 / 10_000)
    assert f"±{error:.2f} points" in last
    assert "one seed" in last


def test_loss_is_said_as_plainly() -> None:
    metrics = run_metrics(nll=stage(0.09), grpo=stage(0.05, reward=2.0))
    sentences = summary_sentences(metrics)
    assert "No arm beats the starting policy on test: post-training did not help here." in sentences
    assert "The reward of grpo rose while its HR@10 fell." in sentences


def test_what_prints_alike_has_not_moved() -> None:
    """A user in 100,000 and a reward of 1e-5 more are no hacked reward."""
    metrics = run_metrics(nll=stage(0.09999, reward=1.00001))
    metrics["stages"]["sft"]["test"]["hr@10"] = 0.10001
    text = " ".join(summary_sentences(metrics))
    assert "Below the starting policy" not in text and "The reward of" not in text


def test_the_uncertainty_is_of_the_cases_that_were_measured() -> None:
    metrics = run_metrics(nll=stage(0.1)) | {
        "eligible": {"items": 7, "cases_left_out": {"validation": 1, "test": 9_000}}
    }
    error = 196 * math.sqrt(0.1 * 0.9 / 1_000)
    assert f"1,000 cases leave each HR@10 uncertain by about ±{error:.2f}" in summary_sentences(metrics)[-1]


def test_an_arm_that_equals_sft_neither_wins_nor_falls_below() -> None:
    text = " ".join(summary_sentences(run_metrics(nll=stage(0.1), grpo=stage(0.09))))
    assert "Below the starting policy on test: grpo." in text


def test_the_pick_is_validations_and_the_higher_test_number_is_told() -> None:
    metrics = run_metrics(nll=stage(0.13, validation=0.1), adagrpo=stage(0.12, validation=0.2))
    text = " ".join(summary_sentences(metrics))
    assert "Validation picks adagrpo" in text
    assert "On test itself nll is higher, at 13.00 %." in text


def test_the_gate_and_its_control_differ_by_an_interval() -> None:
    metrics = run_metrics(adagrpo=stage(0.12, gate="adagrpo"), adagrpo_random=stage(0.125, gate="random"))
    assert "adagrpo less" not in " ".join(summary_sentences(metrics))  # nothing follows from two point estimates

    def said(reference: str, low: float, high: float) -> str:
        row = {"arm": "adagrpo", "checkpoint": "final", "reference": reference}
        row["metrics"] = {"hr@10": {"mean": (low + high) / 2, "low": low, "high": high}}
        return " ".join(summary_sentences(metrics, paired={"against": [row]}))

    assert "adagrpo minus adagrpo-random, last step: HR@10 +0.10 [-0.30, +0.50] points; no difference found." in said(
        "adagrpo-random", -0.003, 0.005
    )
    assert "they differ in HR@10" in said("adagrpo-random", 0.001, 0.005)
    assert "adagrpo less" not in said("distill-random", 0.001, 0.005)  # no control of the gate


def test_reranking_is_compared_with_the_best_arm_on_validation() -> None:
    metrics = run_metrics(nll=stage(0.11))
    metrics["ranker"] = {"rerank": {"reward": {"hr@10": 0.12}, "sum": {"hr@10": 0.15}}}
    text = " ".join(summary_sentences(metrics))
    assert "(by sum) reaches HR@10 of 15.00 % on validation, more than the best arm's 11.00 %" in text
    metrics["ranker"]["rerank"]["sum"]["hr@10"] = 0.05
    metrics["ranker"]["rerank"]["reward"]["hr@10"] = 0.05
    assert "no more than the best arm's 11.00 %" in " ".join(summary_sentences(metrics))


def test_rerank_rows_are_found_at_any_depth() -> None:
    flat, nested = {"hr@10": 0.1}, {"validation": {"sum": {"hr@10": 0.2}}}
    assert rerank_rows({"ranker": {"rerank": flat}}) == [("re-ranked", flat)]
    assert rerank_rows({"ranker": {"rerank": nested}}) == [("validation / sum", {"hr@10": 0.2})]
    assert rerank_rows({}) == []


def test_nothing_evaluated_and_validation_alone() -> None:
    nothing = ["No post-trained arm has been evaluated yet, so there is nothing to compare."]
    assert summary_sentences({}) == nothing
    assert summary_sentences({"stages": {"sft": {"test": {"hr@10": 0.1}}}}) == nothing
    alone = {"stages": {"nll": {"best": {"step": 1, "validation": {"hr@10": 0.2}}}}}
    assert summary_sentences(alone)[0] == "Validation picks nll; its HR@10 on validation is 20.00 %."


def test_what_validation_picks_is_what_serving_takes() -> None:
    """By NDCG@10, with the starting policy among those to choose from."""
    metrics = run_metrics(nll=stage(0.11), grpo=stage(0.12))
    ndcg = {"sft": 0.05, "nll": 0.06, "grpo": 0.04}
    for name, value in ndcg.items():
        one = metrics["stages"][name]
        one.get("best", one)["validation"] = {"hr@10": 0.1, "ndcg@10": value}
    assert summary_sentences(metrics)[0].startswith("Validation picks nll; its HR@10 on test is 11.00 %")
    metrics["stages"]["sft"]["validation"]["ndcg@10"] = 0.06  # of equals the first, as in `choose_checkpoint`
    first = summary_sentences(metrics)[0]
    assert first == "Validation picks sft, the starting policy; its HR@10 on test is 10.00 %."
