"""Training heeds the diagnosis: of this policy and this reward, and of nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.diagnose import check_diagnosis, diagnosed_models
from adagrpo.storage.artifacts import seal

from ..consoles import Heard


def opened(directory: Path, *settings: str) -> tuple[Run, list[str]]:
    console = Heard()
    return Run.open(directory, settings, console), console.notes


def diagnosed(directory: Path, decision: str, leak: dict[str, Any] | None = None, *, inverted: bool = False) -> None:
    """A diagnosis of the run's policy and reward that says so."""
    folder = directory / "diagnose"
    folder.mkdir()
    of = diagnosed_models(Models(RunData(Run.open(directory))))
    content = {"verdict": {"decision": decision, "inverted": inverted}, "leak": leak, "of": of}
    (folder / "diagnose.json").write_text(json.dumps(content), encoding="utf-8")
    seal(folder, kind="diagnose", fingerprint="of a test")


LEAK = {
    "signs": ["remembers"],
    "hr@1": {"held-out items": 0.9, "last training items": 0.5, "held-out items, surest": 1.0},
    "references": {"item-kNN": 0.4},
}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"leak": LEAK}, "it has probably seen the held-out items"),
        ({"inverted": True}, "its own order is significantly worse than chance within the policy's lists: is its sign"),
    ],
)
def test_a_reward_that_leaks_or_is_inverted_is_trained_on_anyway_alone(
    copied: Path, found: dict[str, Any], why: str
) -> None:
    diagnosed(copied, "do_not_use", **found)
    run, said = opened(copied)
    with pytest.raises(
        UserError, match=rf"diagnose says do_not_use of this reward: {why}.*`adagrpo train .* --anyway`"
    ):
        run.train()
    assert said == []
    run.train(anyway=True)
    assert len(said) == 1 and f"do_not_use of this reward: {why}" in said[0]


def test_a_reward_without_a_gain_is_trained_on_with_a_note(copied: Path) -> None:
    diagnosed(copied, "do_not_use")
    run, said = opened(copied)
    run.train()
    assert said == [
        f"note: {copied}: diagnose says do_not_use of this reward: no gain of re-ranking by it is shown;"
        f" `adagrpo decide --run {copied} --train` measures training"
    ]


def test_a_reward_that_may_be_used_is_trained_on_in_silence(copied: Path) -> None:
    diagnosed(copied, "use")
    run, said = opened(copied)
    check_diagnosis(run, anyway=False)
    assert said == []


def test_where_nothing_was_diagnosed_one_line_says_that_it_can_be(copied: Path) -> None:
    run, said = opened(copied)
    check_diagnosis(run, anyway=False)
    assert said == []  # every arm is trained already
    shutil.rmtree(copied / "train" / "adagrpo")
    check_diagnosis(run, anyway=False)
    assert said == [
        f"note: the reward was not diagnosed; `adagrpo diagnose --run {copied}` says whether it leaks or has a wrong"
        " sign"
    ]


def test_the_diagnosis_of_another_reward_says_nothing(copied: Path) -> None:
    diagnosed(copied, "do_not_use")
    run, said = opened(copied, "reward.kind=noise")
    check_diagnosis(run, anyway=False)
    assert len(said) == 1 and "of another policy or reward" in said[0]


def test_arms_without_a_reward_ask_nothing(copied: Path) -> None:
    diagnosed(copied, "do_not_use")
    run, said = opened(copied, "train.arms=[nll]")
    check_diagnosis(run, anyway=False)
    assert said == []


def test_a_changed_diagnosis_is_not_believed(copied: Path) -> None:
    diagnosed(copied, "do_not_use")
    path = copied / "diagnose" / "diagnose.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"verdict": {"decision": "use"}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"diagnose\.json"):
        check_diagnosis(opened(copied)[0], anyway=False)


def test_deciding_leaves_the_page_of_a_diagnosis_that_is_out_of_date(copied: Path) -> None:
    """And of the run's own ranker, without which no list is fused, nothing says what it adds to one."""
    diagnosed(copied, "rerank_only")  # as an earlier version wrote it
    (copied / "diagnose.html").write_text("of then", encoding="utf-8")
    assert opened(copied)[0].decide()["reward_in_fusion"] is None
    assert (copied / "diagnose.html").read_text(encoding="utf-8") == "of then"
