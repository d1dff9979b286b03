"""Questions in the ids of the data and answers that are checked, and the callable that is asked so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.errors import UserError
from adagrpo.rewards.callable import CallableReward, find_module, load_function, module_files
from adagrpo.rewards.external import InvalidResponse, check_response, scatter_scores, score_request
from adagrpo.types import Asking, Histories

IDS = ["a", "b", "c", "d"]
HISTORIES = Histories(torch.tensor([[0, 1], [2, 0], [3, 3]]), torch.tensor([2, 1, 2]))
ITEMS = torch.tensor([[2, -1, 3], [-1, -1, -1], [0, 1, 2]])


def test_a_question_has_the_ids_and_only_what_is_real() -> None:
    question = score_request(HISTORIES, ITEMS, IDS)
    assert question.histories == [["a", "b"], ["d", "d"]]
    assert question.candidates == [["c", "d"], ["a", "b", "c"]]


def test_an_answer_goes_to_the_places_that_were_asked_for() -> None:
    scores = scatter_scores(
        check_response([[1, 2.5], [3, 4, 5]], score_request(HISTORIES, ITEMS, IDS).candidates), ITEMS
    )
    nan = torch.nan
    expected = torch.tensor([[1, nan, 2.5], [nan, nan, nan], [3, 4, 5]])
    torch.testing.assert_close(scores, expected, equal_nan=True, rtol=0, atol=0)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize(
    "answer",
    [
        np.array([[1.0, 2.0]]),
        np.array([[1, 2]]),
        torch.tensor([[1.0, 2.0]]),
        [np.array([1.0, 2.0], np.float32)],
        ((np.float64(1), 2),),
    ],
)
def test_lists_arrays_and_tensors_will_do(answer: Any) -> None:
    assert [row.tolist() for row in check_response(answer, [["a", "b"]])] == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "answered None; expected a list of scores for each history"),
        ({"a": [1, 2]}, "expected a list of scores for each history"),
        ([], "answered 0 rows for 1 histories"),
        ([[1, 2], [1, 2]], "answered 2 rows for 1 histories"),
        ([[1]], "answered 1 scores for the 2 candidates of history 0"),
        ([[1, 2, 3]], "answered 3 scores for the 2 candidates of history 0"),
        ([5], "answered 5 for history 0; expected a list of 2 scores"),
        (["12"], "answered '12' for history 0"),
        ([{0.9, 0.1}], "for history 0; expected a list of 2 scores"),  # of a set no place says whose score it is
        (pl.DataFrame({"a": [1.0], "b": [2.0]}), "expected a list of scores for each history"),  # columns, not rows
        ([[1, "2"]], "answered '2' for item 'b' of history 0; expected a number"),
        ([[1, None]], "answered None for item 'b' of history 0; expected a number"),
        ([[True, 1]], "answered True for item 'a' of history 0; expected a number"),
        ([[1, float("nan")]], "answered nan for item 'b' of history 0; scores must be finite"),
        ([[-float("inf"), 1]], "answered -inf for item 'a' of history 0"),
        ([[1e39, 1]], r"answered 1e\+39 for item 'a' of history 0"),  # no float32
        ([[10**400, 1]], "for item 'a' of history 0; scores must be finite"),
        (np.array([[1, np.nan]]), "answered nan for item 'b' of history 0"),
    ],
)
def test_what_is_no_answer(answer: Any, message: str) -> None:
    with pytest.raises(InvalidResponse, match=message):
        check_response(answer, [["a", "b"]])


def test_a_callable_is_asked_once_for_all_and_not_at_all_for_nothing() -> None:
    asked: list[Any] = []

    def function(histories: Any, candidates: Any) -> Any:
        asked.append((histories, candidates))
        return [[len(history) + ord(item) for item in row] for history, row in zip(histories, candidates, strict=True)]

    reward = CallableReward("m:f", function, IDS)
    scores = reward.score(HISTORIES, ITEMS)
    assert scores[2].tolist() == [2 + ord("a"), 2 + ord("b"), 2 + ord("c")] and len(asked) == 1
    assert reward.score(HISTORIES, torch.full((3, 2), -1)).isnan().all() and len(asked) == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda h, c: [[1] * len(row) for row in c][:-1], r"^reward m:f: answered 1 rows for 2 histories$"),
        (lambda h, c: {}[3], r"^reward m:f: raised KeyError: 3$"),
    ],
)
def test_a_callable_that_fails_is_the_users_to_mend(function: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CallableReward("m:f", function, IDS).score(HISTORIES, ITEMS)


def test_a_module_is_found_in_the_folder_and_among_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "own_scores_a.py").write_text("def f(h, c):\n    return 1\n", encoding="utf-8")
    (tmp_path / "own_package_a").mkdir()
    (tmp_path / "own_package_a" / "__init__.py").write_text("def f(h, c):\n    return 2\n", encoding="utf-8")
    (tmp_path / "own_package_a" / "inner.py").write_text("from . import f\n", encoding="utf-8")
    assert find_module("own_scores_a:f", tmp_path) == tmp_path / "own_scores_a.py"
    assert [load_function(f"{name}:f", tmp_path)([], []) for name in ("own_scores_a", "own_package_a.inner")] == [1, 2]
    assert find_module("adagrpo.errors:UserError", tmp_path).name == "errors.py"
    assert load_function("adagrpo.errors:UserError", tmp_path) is UserError


def test_finding_a_module_does_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "own_scores_b.py").write_text("raise SystemExit\n", encoding="utf-8")
    assert find_module("own_scores_b:f", tmp_path).is_file() and "own_scores_b" not in sys.modules


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own_scores_c", None, "no module 'own_scores_c', neither in .* nor installed"),
        ("own_scores_d", "1 +", "importing .*own_scores_d.py raised SyntaxError"),
        ("own_scores_e", "f = 3", "own_scores_e.py has no function 'f'"),
        ("json", "def f(h, c): ...", "another module 'json' is loaded"),
    ],
)
def test_a_function_that_cannot_be_had(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_function(f"{name}:f", tmp_path)


def test_a_function_is_made_of_its_module_and_of_what_that_imports_from_beside_it(tmp_path: Path) -> None:
    for name, text in {
        "own_a.py": "import json, numpy\nfrom own_pkg.deep import sign\ndef f(h, c):\n    import own_late\n",
        "own_pkg/__init__.py": "",
        "own_pkg/deep/__init__.py": "from . import sign\nfrom ..beside import *\n",
        "own_pkg/deep/sign.py": "import own_a\nfrom own_b import x\n",
        "own_pkg/beside.py": "",
        "own_pkg/unread.py": "",
        "own_late.py": "def (",
        "own_b.py": "",
        "unread.py": "",
        ".venv/lib/site-packages/numpy/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = [path.relative_to(tmp_path).as_posix() for path in module_files("own_a:f", tmp_path)]
    deep = ["own_pkg/__init__.py", "own_pkg/beside.py", "own_pkg/deep/__init__.py", "own_pkg/deep/sign.py"]
    assert found[0] == "own_a.py" and sorted(found) == ["own_a.py", "own_b.py", "own_late.py", *deep]
    # from within a package the same
    found = [path.relative_to(tmp_path).as_posix() for path in module_files("own_pkg.deep:f", tmp_path)]
    assert sorted(found) == ["own_a.py", "own_b.py", "own_late.py", *deep]
    assert module_files("numpy:sum", tmp_path) == [find_module("numpy:sum", tmp_path)]  # installed


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-reward.md"


def test_the_ten_lines_of_the_page_run(tmp_path: Path) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## A Python function")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) == 10
    (tmp_path / "own_page_a.py").write_text(code, encoding="utf-8")
    function = load_function("own_page_a:margin", tmp_path)
    shown = {"u2": [("d", False), ("a", True), ("d", False)]}
    reward = CallableReward("own_page_a:margin", function, IDS, user_ids=["u1", "u2"], shown=lambda: shown)
    evening = 20.0 * 3600
    asking = Asking([None, "u1", "u2"], [evening, None, evening])
    scores = reward.score(HISTORIES._replace(asking=asking), ITEMS)
    # nobody: half a point for what is not in [a, b]; u2 in the evening: a point for what is not in [d, d]
    assert scores[0, [0, 2]].tolist() == [0.5, 0.5] and scores[2].tolist() == [1.0, 1.0, 1.0]
    last = HISTORIES.rows(torch.tensor([2]))._replace(asking=Asking(["u2"], [evening]))
    assert reward.score(last, torch.tensor([[3, 2]])).tolist() == [[pytest.approx(-0.2), 1.0]]


def test_a_function_is_given_what_it_names_of_the_rows_that_it_scores() -> None:
    asked: list[dict[str, Any]] = []

    def function(histories: Any, candidates: Any, *, shown: Any, users: Any, times: Any) -> Any:
        asked.append({"shown": shown, "users": users, "times": times})
        return [[1.0] * len(row) for row in candidates]

    reward = CallableReward("m:f", function, IDS, user_ids=[7, 8, 9], shown=lambda: {"9": [("b", True)]})
    measured = HISTORIES._replace(asking=Asking([0, 1, 2], [5.0, 6.0, None], rows=True))
    reward.score(measured, ITEMS)
    assert asked.pop() == {"shown": [[], [("b", True)]], "users": [7, 9], "times": [5.0, None]}
    reward.score(measured.rows(torch.tensor([2, 0])), ITEMS[[2, 0]])
    assert asked.pop() == {"shown": [[("b", True)], []], "users": [9, 7], "times": [None, 5.0]}
    # while a policy is trained, what was shown would tell what comes next
    reward.score(HISTORIES._replace(users=torch.tensor([0, 1, 2])), ITEMS)
    assert asked.pop() == {"shown": [[], []], "users": [7, 9], "times": [None, None]}
    reward.score(HISTORIES, ITEMS)
    assert asked.pop() == {"shown": [[], []], "users": [None, None], "times": [None, None]}
