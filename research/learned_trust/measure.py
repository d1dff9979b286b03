"""Selective trust that is learned, against one weight and against gates, where a reward is wrong for some on purpose.

    python -m research.learned_trust.measure --out runs/trust

Worlds and what each is met by are those of `worlds.yaml`. A row of `trust.jsonl` holds, for the test cases of a world
and a reward, true utility and hit rate of re-ranking with one weight and with learned ones, and how many pairs of a
beam the reward orders as the true utility does, where it is right and where it is not; or, where arms were trained,
each against continued NLL and the trusted one against the others. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from adagrpo.config import dump_config
from adagrpo.diagnosis.orders import mixed_keys, target_ranks
from adagrpo.evaluation.reranking import WEIGHTS, best_weight, reward_spread
from adagrpo.metrics import ndcg
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.stages.choose_weight import FILE, STAGE, read_reward_weights, reranking
from adagrpo.report import read_rows
from research.command import run
from research.learned_trust.choices import trusted_options, write_trust
from research.rewards.corrupted import CorruptedReward
from research.rows import add_row
from research.verdict.measure import BASELINE, World, difference

HERE = Path(__file__).parent
TRUSTED, MEMBER = "trusted", "{kind: lambdarank}"
CORRUPTED = 'kind: factory, function: "research.rewards.corrupted:corrupted"'
VALUES = ("true_utility@10", "hr@10")

Outcome = tuple[NDArray[np.float64], NDArray[np.float64]]


def main() -> None:
    """Measure every world that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=HERE / "trust.jsonl")
    parser.add_argument("--worlds", type=Path, default=HERE / "worlds.yaml")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.yaml")
    options = parser.parse_args()
    plan = yaml.safe_load(options.worlds.read_text(encoding="utf-8"))["worlds"]
    for trained in (False, True):  # re-ranking of every world first, which is soon done
        for name, entry in plan.items():
            done = {(row["world"], row["by"], "arms" in row) for row in read_rows(options.results)}
            missing = [by for by in (entry["train"] if trained else entry["by"]) if (name, by, trained) not in done]
            world = World(name, entry, options.out, options.recipe)
            if missing:
                world.prepare()
            for by in missing:
                started = time.monotonic()
                row = {"world": name, "seed": entry["seed"], "by": by, "set": entry["set"]} | measure(
                    world, by, trained
                )
                add_row(options.results, row | {"seconds": round(time.monotonic() - started, 1)})
                print(row, flush=True)


def measure(world: World, by: str | None, trained: bool) -> dict[str, Any]:
    """Fit the weights of a reward and re-rank with them; or train the arms and hold them against each other."""
    reward = f"{{{CORRUPTED}, members: [{MEMBER}], options: {{by: {by}}}}}" if by else MEMBER
    run = _run(world, reward)
    run.ranker()
    file = (world.out / f"{world.name}.{by}.trust.json").resolve()
    trust = write_trust(run, file)
    del trust["file"]
    other = _run(world, trusted_options(reward, file))
    facts = {"users": len(world.cases["test"]), "reward": dump_config(run.config)["reward"]}
    if trained:
        return facts | _trained(world, run, other) | {"decision": trust["decision"]}
    best, orders = _reranked(world, run, other)
    return facts | {
        "accuracy": _accuracy(world, run),
        "trust": trust,
        "policy": {name: float(part.mean()) for name, part in zip(VALUES, orders["policy"], strict=True)},
        "best_weight": best,
        "rerank": {name: difference(result, orders["policy"]) for name, result in orders.items() if name != "policy"},
        "trusted_minus_one_weight": difference(orders[TRUSTED], orders["one weight"]),
    }


def _trained(world: World, run: Run, other: Run) -> dict[str, Any]:
    teacher = read_reward_weights(run.make(STAGE, reranking(run)) / FILE).distill
    outcomes = {BASELINE: world.baseline}
    for arm in run.config.train.arms:
        if arm.name != BASELINE:
            one = other if arm.name == TRUSTED else run
            one.stage(f"train/{arm.name}")
            outcomes[arm.name] = world.outcome(one, arm.name)
    rest = {name: result for name, result in outcomes.items() if name != TRUSTED}
    gates = {"gate", "random"} <= outcomes.keys()
    return {
        "teacher_weight": teacher,
        "baseline": {name: float(part.mean()) for name, part in zip(VALUES, world.baseline, strict=True)},
        "arms": {name: difference(result, world.baseline) for name, result in outcomes.items() if name != BASELINE},
        "trusted_minus": {name: difference(outcomes[TRUSTED], result) for name, result in rest.items()},
        "gate_minus_random": difference(outcomes["gate"], outcomes["random"]) if gates else None,
    }


def _run(world: World, reward: str) -> Run:
    """The run of the arms of a world; with another reward it is the same folder, whose trees stay."""
    folder = (world.out / f"{world.name}.arms").resolve()
    return Run(folder, world.config([f"reward={reward}"]), Path(), source=world.run.directory)


def _reranked(world: World, run: Run, other: Run) -> tuple[float, dict[str, Outcome]]:
    """The best single weight; true utility and hit rate of the policy's order, that weight's, the learned ones'."""
    plain, trusted = (Models(RunData(one)).reward() for one in (run, other))
    with torch.no_grad():
        held, test = world.lists(plain, "validation"), world.lists(plain, "test")
        learned = world.lists(trusted, "test")
    spread = reward_spread(held.items, held.rewards)
    best = best_weight({w: ndcg(target_ranks(held, mixed_keys(held, w, spread)), 10) for w in WEIGHTS})
    keys = {
        "policy": test.log_probs,
        "one weight": mixed_keys(test, best, spread),
        TRUSTED: mixed_keys(learned, 1.0, 1.0),
    }
    orders = {name: np.argsort(-values, axis=1, kind="stable") for name, values in keys.items()}
    worth = {name: world.worth(np.take_along_axis(test.items, order, axis=1)) for name, order in orders.items()}
    return best, worth


def _accuracy(world: World, run: Run) -> dict[str, float]:
    """The share of pairs of a beam of validation cases that the reward orders as the true utility does, by part."""
    reward, cases = Models(RunData(run)).reward(), world.cases["validation"]
    items = world.beams["validation"][0][:, :32]
    scores = world.scores(reward, "validation", items).double().numpy()
    users, targets = cases.users.astype(np.int64), cases.targets.astype(np.int64)
    truth = world.truth.utility_before(users, targets, np.maximum(items, 0))
    wrong = np.zeros(items.shape, np.bool_)
    if isinstance(reward, CorruptedReward):
        beams = ((histories, torch.from_numpy(items[rows])) for histories, rows in world.batches("validation"))
        wrong = np.concatenate([reward.wrong(histories, beam).numpy() for histories, beam in beams])
    right = 0.5 + 0.5 * np.sign(scores[:, :, None] - scores[:, None, :])  # ties count one half
    pairs = (truth[:, :, None] > truth[:, None, :]) & (items >= 0)[:, :, None] & (items >= 0)[:, None, :]
    inside = {"right part": ~wrong, "wrong part": wrong, "all": np.ones(items.shape, np.bool_)}
    masks = {name: pairs & part[:, :, None] & part[:, None, :] for name, part in inside.items()}
    return {name: float(right[mask].mean()) for name, mask in masks.items() if mask.any()}


if __name__ == "__main__":
    run(main)
