"""The stage `reward`: a check of the configured reward before training.

It refuses one that fails, is not finite or is constant on some validation cases, and keeps the within-case standard
deviation of its scores; for external ones (`PROBED`) also scores of `PROBE` pairs, compared at every load.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.config import reward as kinds
from adagrpo.config.reward import RewardOptions, reward_name
from adagrpo.data.sequences import pad
from adagrpo.errors import NotFinite, ServiceError, UserError
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.groups.score import distinct_candidates
from adagrpo.pipeline.directory import RunDirectory, hash_of, label_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.stage import Declaration
from adagrpo.rewards import Reward, ask_reward
from adagrpo.types import Asking, Cases, Histories

LOOK_CASES, LOOK_ITEMS = 64, 50
PROBE, PROBE_CASES = 200, 50
Values = NDArray[np.float64]  # (B, N)
# float32 noise, relative to the score and to the within-case standard deviation
NOISE, NOISE_OF_SPREAD = 1e-6, 1e-3


def check_reward(models: Models) -> str:
    """Check the reward; return how its answers have changed, empty if they have not.

    Raises:
        UserError: it is constant, not finite or otherwise invalid.
        ServiceError: an endpoint failed, or its answer is invalid.
    """
    data, options = models.data, models.config.reward
    # the run's own reward is checked as it scores groups
    reward = models.group_reward() if options == kinds.SequentialOptions() else models.reward()
    _spread(data, _cases(data), reward, options)
    return "" if not models.probe_files else _other_answers(models, models.run.content("reward", "reward.json"))


def look_before_fitting(models: Models) -> None:
    """Score real rows by rewards that need no fit; errors as of `check_reward`."""
    data, options = models.data, models.config.reward
    if data.config.without_order or not options.is_made_elsewhere:
        return
    cases = _cases(data)
    for part in models.parts:
        if isinstance(part, kinds.CallableOptions | kinds.HttpOptions | kinds.ModelFileOptions):
            _spread(data, cases, models.reward_of(part), part)


def first_look(run: RunDirectory) -> Declaration:
    """Declare the stage for a reward that the run does not fit."""
    data, options = RunData(run), run.config.reward
    models = Models(data)

    def build(work: Path) -> None:
        cases = _cases(data)
        content: dict[str, Any] = {"cases": len(cases)}
        if not options.in_list_stds:
            content["spread"] = _spread(data, cases, models.reward(), options)
        if isinstance(options, kinds.WeightedOptions):
            both = zip(models.members(), models.parts, strict=True)
            content["members"] = [_spread(data, cases, member, part) for member, part in both]
        if models.probe_files:
            content["probe"] = _probe(models, cases)
        write_json(work / "reward.json", content)

    def changed(there: Path) -> str:
        try:
            return _other_answers(models, read_json(there / "reward.json"))
        except Exception:  # unavailable now; reported when it is used
            return ""

    return Declaration(
        build,
        reads=[*data.training_files, *models.files_of(options)],
        files=("reward.json",),
        settings=(*models.reward_reads, "seed", "max_history"),
        version=2 if models.probe_files else 1,
        changed=changed if models.probe_files else Declaration.changed,
    )


def _cases(data: RunData) -> Cases:
    return sample_cases(data.cases("validation"), LOOK_CASES, data.config.seed)


def _spread(data: RunData, cases: Cases, reward: Reward, options: RewardOptions) -> float:
    """Return the root mean within-case variance of scores."""
    name = f"reward {reward_name(options)}"
    draw = np.random.default_rng(data.config.seed)
    padded = pad(cases.histories, np.arange(len(cases)), data.config.max_history)
    users = torch.from_numpy(cases.users.astype(np.int64))
    asking = cases.asking(np.arange(len(cases)))
    histories = Histories(padded.items, padded.lengths, users, asking=asking).to(data.device)
    drawn = torch.from_numpy(draw.integers(0, data.num_items, (len(cases), LOOK_ITEMS - 1))).to(data.device)
    targets = torch.from_numpy(cases.targets.astype(np.int64)).to(data.device)
    candidates = distinct_candidates(targets, drawn, drawn[:, :0])
    try:
        scores = ask_reward(reward, histories, candidates.items).double().cpu().numpy()
    except NotFinite as error:
        raise UserError(f"{name}: {error}") from error
    if not (np.nanmax(scores, axis=1) > np.nanmin(scores, axis=1)).any():
        message = f"{name}: gives every item of a case the same score; there is nothing to learn from it"
        raise ServiceError(message) if options.holds("http") else UserError(message)
    return float(np.sqrt(np.nanvar(scores, axis=1).mean()))


def _apart(models: Models) -> list[tuple[str, Reward]]:
    return [(reward_name(part), one) for part, one in zip(models.parts, models.members(), strict=True)]


def _probe(models: Models, cases: Cases) -> dict[str, Any]:
    """Return random (history, item) pairs and scores; null for a nondeterministic reward."""
    data, rows = models.data, np.arange(min(PROBE_CASES, len(cases)))
    draw, width = np.random.default_rng(data.config.seed), min(data.num_items, PROBE // len(rows))
    padded = pad(cases.histories, rows, data.config.max_history)
    probe: dict[str, Any] = {
        "histories": padded.items.tolist(),
        "lengths": padded.lengths.tolist(),
        "users": cases.users[rows].tolist(),
        **({} if cases.days is None else {"times": list(cases.asking(rows).times)}),
        "items": [draw.choice(data.num_items, width, replace=False).tolist() for _ in rows],
        "scores": [],
    }
    for name, reward in _apart(models):
        before, again = (_ask(data, reward, probe) for _ in range(2))
        differ = _difference(data, probe, before, again)
        probe["scores"].append(None if differ else before.tolist())
        if differ:
            models.run.console.note(
                f"note: reward {name} is not deterministic: asked twice, {differ}. So what is served is not what is"
                " measured, and a change of it will not be seen"
            )
    return probe


def _other_answers(models: Models, look: Mapping[str, Any]) -> str:
    for (name, member), scores in zip(_apart(models), look["probe"]["scores"], strict=True):
        if scores is None:
            continue
        now = _ask(models.data, member, look["probe"])
        if differ := _difference(models.data, look["probe"], np.array(scores), now):
            return f"reward {name} answers otherwise than when it was measured: {differ}"
    return ""


def _ask(data: RunData, reward: Reward, probe: Mapping[str, Any]) -> Values:
    histories, lengths, users, items = (
        torch.tensor(probe[name], device=data.device) for name in ("histories", "lengths", "users", "items")
    )
    asking = Asking(probe["users"], probe.get("times", [None] * len(users)), rows=True)
    asked = Histories(histories, lengths, users, asking=asking)
    return ask_reward(reward, asked, items).double().cpu().numpy()


def _difference(data: RunData, probe: Mapping[str, Any], before: Values, now: Values) -> str:
    spread = float(np.sqrt(before.var(axis=1).mean()))
    differ = np.abs(now - before) > NOISE * np.abs(before) + NOISE_OF_SPREAD * spread
    if not differ.any():
        return ""
    case, column = np.argwhere(differ)[0]
    item = data.item_ids[probe["items"][case][column]]
    return (
        f"{differ.sum()} of {differ.size} scores differ, the first, of item {item!r}, was {before[case, column]:.6g}"
        f" and is {now[case, column]:.6g}"
    )


def describe_reward(models: Models) -> dict[str, Any]:
    """Return the reward's options and the sha256 of its files, JSON-able."""
    options, run = models.config.reward, models.run
    files = {label_of(run, file): hash_of(run, file) for file in [*models.files_of(options), *models.probe_files]}
    return {**options.identity(), "files": files}
