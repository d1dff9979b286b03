"""The section `reward`: what is refused and with which words, and what of it decides the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrpo.config import Config, dump_config, load_config
from adagrpo.config.reward import SequentialOptions
from adagrpo.errors import UserError

HTTP = {"kind": "http", "url": "http://127.0.0.1:1/score"}


def loaded(tmp_path: Path, reward: Any, *overrides: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"logs": ["log.csv"]}, "reward": reward}), encoding="utf-8")
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"kind": "htp"}, "'htp' found as kind does not match any of the expected tags"),
        ({"kind": "http"}, r"reward\.url: Field required"),
        ({"kind": "http", "urll": "http://a"}, r"unknown key 'reward\.urll'; did you mean 'url'\?"),
        ({"kind": "http", "url": "ftp://a/b"}, r"reward\.url: 'ftp://a/b' is not of the form http://host/path"),
        ({"kind": "http", "url": "file:///etc/passwd"}, r"reward\.url: .* is not of the form"),
        ({"kind": "http", "url": "http://me:secret@a/b"}, r"reward\.url: holds a user name or password"),
        ({"kind": "http", "url": "http://a:99999/"}, r"reward\.url: Port out of range"),
        ({**HTTP, "concurrency": 0}, r"reward\.concurrency: .*greater than or equal to 1"),
        ({"kind": "callable", "function": "module"}, r"reward\.function: 'module' is not of the form module:function"),
        ({"kind": "callable", "function": "../m:f"}, r"reward\.function: '\.\./m:f' is not of the form"),
        ({"kind": "weighted", "members": [], "weights": []}, r"reward\.members: .*at least 1 item"),
        (
            {"kind": "weighted", "weights": [1, 1], "members": [{}, {**HTTP, "tries": 3}]},
            r"unknown key 'reward\.members\.1\.tries'; did you mean 'retries'\?",
        ),
        ({"kind": "weighted", "members": [{}], "weights": [1, 2]}, "reward: 2 weights for 1 members; give one each"),
        ({"chekpoint": "x"}, r"unknown key 'reward\.chekpoint'; did you mean 'checkpoint'\?"),
    ],
)
def test_what_is_refused(tmp_path: Path, reward: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, reward)


@pytest.mark.parametrize("reward", [HTTP, {"kind": "sequential", "checkpoint": "other/best"}])
def test_only_the_runs_own_ranker_is_cross_fitted(tmp_path: Path, reward: Any) -> None:
    loaded(tmp_path, reward, "ranker.folds=1")
    with pytest.raises(UserError, match=r"ranker\.folds cross-fits the run's own sequential ranker alone"):
        loaded(tmp_path, reward, "ranker.folds=2")


def test_the_default_is_the_sequential_ranker_and_kinds_can_be_nested(tmp_path: Path) -> None:
    assert loaded(tmp_path, {}).reward == SequentialOptions()
    arguments = {
        "kind": "weighted",
        "weights": [1, -0.5],
        "members": [{"kind": "factory", "function": "m:f", "members": [HTTP]}, HTTP],
    }
    config = loaded(tmp_path, arguments)
    assert Config.model_validate(dump_config(config)) == config
    assert [part.kind for part in config.reward.parts] == ["factory", "http"]


def test_a_whole_reward_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    config = loaded(tmp_path, {"checkpoint": "x"}, "reward={kind: callable, function: 'm:f'}")
    assert config.reward.identity() == {"kind": "callable", "function": "m:f", "files": []}


def test_patience_is_no_part_of_what_a_reward_is(tmp_path: Path) -> None:
    patient = {**HTTP, "timeout_seconds": 60, "retries": 9, "batch_size": 2, "concurrency": 1, "token_env": "T"}
    nested = [
        loaded(tmp_path, {"kind": "weighted", "weights": [1, 1], "members": [{}, one]}).reward.identity()
        for one in (HTTP, patient)
    ]
    assert nested[0] == nested[1]
    assert loaded(tmp_path, {**HTTP, "version": "2"}).reward.identity() != loaded(tmp_path, HTTP).reward.identity()
