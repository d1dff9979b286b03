"""How much of a fused list one policy keeps: `distill-tuned` with the fused list of another run as its teacher.

    python -m research.decisions.teacher --data DIR --out runs/decisions --sets lastfm
    python -m research.decisions.teacher --table

The runs of `research.decisions.sets` are taken from `--out`; the policy begins where theirs did. The reward is the
fused score less the log-probability under the starting policy, so that at weight σ the target of the distillation is
the order of the fused list among the items of the group (its network reads their mean and their places). The weight is
chosen on validation, as that of every `distill-tuned`. In a second round (`--round 2`, after the first) the taught
policy is fused again, by `decide`, and that list teaches it further. Rows are in `teacher.jsonl`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from adagrpo.console import StderrConsole
from adagrpo.lists.fusion import Fusion
from adagrpo.lists.names import FUSE, START, ListName
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import locked, path_of
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.make import make
from adagrpo.pipeline.staleness import stages_of
from adagrpo.policies import Policy
from adagrpo.report.page import read_rows
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.storage.artifacts import manifest, seal
from adagrpo.types import Histories
from research.command import run
from research.decisions.sets import arguments
from research.fair_trial.tune import folder_of, recipe_of
from research.rows import add_row

HERE = Path(__file__).parent
RESULTS = HERE / "teacher.jsonl"
METRICS = ("hr@10", "ndcg@10", "hallucination@10")
MODEL = "model.safetensors"
KEPT = (
    ".adagrpo",
    "run.yaml",
    "prepare",
    "tokenize",
    "sft",
    "ranker",
    "item_knn",
    "reward",
)  # what does not read the policy


class FusedScores:
    """Implements `adagrpo.rewards.Reward`: what a fused list adds to its policy's log-probability, in nats."""

    def __init__(self, policy: Policy[Any, Any], fusion: Fusion, catalog: Catalog, reward: Reward | None) -> None:
        self.policy, self.fusion, self.catalog, self.reward = policy, fusion, catalog, reward

    @torch.no_grad()
    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`."""
        context = self.policy.encode(histories)
        log_probs = self.policy.score(context, self.catalog.codes[items.clamp(min=0)]).float().sum(dim=-1)
        found = {name: source.scores(histories) for name, source in self.fusion.sources.items()}
        said = self.fusion.features_of(histories, items, log_probs, found, self.reward)
        return (self.fusion.scores(said) - said.features[..., 0]).nan_to_num(0.0, neginf=0.0)


def fused(models: Models, members: Sequence[Reward], *, run: str) -> FusedScores:
    """Make the teacher: the fused list of a run on the same data with the same Semantic IDs.

    Args:
        models: of the run that is taught.
        members: none.
        run: folder of the run that teaches.
    """
    other = Run.open(Path(run))
    maker = ListMaker(Models(RunData(other)))
    name = ListName(START, FUSE)
    fusion = maker.fusion(name, maker.fitted(name))
    policy = maker.models.policy(other.path(START, "best")).eval().requires_grad_(False).frozen()
    return FusedScores(policy, fusion, models.data.catalog, maker.reward if fusion.rewards else None)


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    parser = arguments(__doc__)
    parser.add_argument("--round", type=int, default=1)
    given = parser.parse_args()
    if not given.table:
        for seed in given.seeds:
            for name in given.sets:
                _measure(name, seed, given.round, given.data, given.out)
    print(table(read_rows(RESULTS)))


def _measure(name: str, seed: int, turn: int, data: Path, out: Path) -> None:
    key = {"set": name, "seed": seed, "round": turn}
    if any(all(row[part] == value for part, value in key.items()) for row in read_rows(RESULTS)):
        return
    trial = yaml.safe_load((HERE.parent / "fair_trial" / "plan.yaml").read_text("utf-8"))
    teaches = [out / f"{name}-{seed}", *(out / f"{name}-{seed}-round-{later}" for later in range(2, turn + 1))]
    if turn > 1 and not (teaches[-1] / "decision.json").exists():
        _fuse_again(teaches[-2], _taught_by(teaches[-2]), teaches[-1])
    teacher, folder = teaches[-1].resolve(), _taught_by(teaches[-1])
    maker = ListMaker(Models(RunData(Run.open(teacher))))
    parts = [path_of(maker.models.run, file) for file in maker.files(ListName(START, FUSE))]
    files = [str(file) for file in (teacher / START / "best" / MODEL, *parts)]
    reward = {"kind": "factory", "function": "research.decisions.teacher:fused", "options": {"run": str(teacher)}}
    config = recipe_of(
        trial, name, f"seed={seed}", "train.arms=[nll, distill-tuned]", f"reward={yaml.dump(reward | {'files': files})}"
    )
    if not folder.exists():  # the starting policy is the same one; what reads the reward is made anew
        shutil.copytree(teacher, folder)
    taught = Run(folder, config, folder_of(trial, name, data), StderrConsole())
    taught.train(anyway=True)
    arms = ("nll", "distill-tuned")
    stages = stages_of(taught, ["evaluate"], arms)
    with locked(taught):
        for arm in arms:
            make(taught, f"evaluate/{arm}/best", stages[f"evaluate/{arm}/best"](taught))
    found = {arm: taught.path("evaluate", arm, "best", "metrics.json") for arm in arms}
    found |= {name: teacher / "evaluate" / name / "metrics.json" for name in (START, FUSE)}
    measured = {name: json.loads(path.read_text("utf-8")) for name, path in found.items()}
    weight = json.loads(taught.path("reranking", "weight.json").read_text("utf-8"))
    lists = {name: {m: one["test"].get(m) for m in METRICS} for name, one in measured.items()}
    validation = {name: one["validation"]["ndcg@10"] for name, one in measured.items()}
    add_row(RESULTS, key | {"weight": weight, "lists": lists, "validation": validation})


def _taught_by(teacher: Path) -> Path:
    return teacher.with_name(f"{teacher.name}-taught")


def _fuse_again(run: Path, taught: Path, again: Path) -> None:
    """A run like another one, whose starting policy is the one that its fused list taught."""
    again.mkdir()
    for part in KEPT:
        (shutil.copytree if (run / part).is_dir() else shutil.copyfile)(run / part, again / part)
    shutil.copyfile(taught / "train" / "distill-tuned" / "best" / MODEL, again / START / "best" / MODEL)
    made = manifest(again / START)
    assert made is not None, "it was just copied"
    seal(again / START, **{name: made[name] for name in ("kind", "fingerprint", "made_from")})
    Run.open(again, progress=True).decide()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """HR@10 / NDCG@10 on test, and the share of the first fused list's gain over its policy that a taught one keeps."""
    lines = ["| set | seed | round | policy | fused | continued NLL | taught | kept | validation NDCG@10 |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        shown = [row["lists"][name] for name in (START, FUSE, "nll", "distill-tuned")]
        first = next(one["lists"] for one in rows if (one["set"], one["seed"]) == (row["set"], row["seed"]))
        policy, fused_list = (first[name]["hr@10"] for name in (START, FUSE))
        cells = [f"{one['hr@10']:.4f} / {one['ndcg@10']:.4f}".replace("0.", ".") for one in shown]
        kept = f"{(shown[-1]['hr@10'] - policy) / (fused_list - policy):.0%}"
        before, after = (f"{row['validation'][name]:.4f}".removeprefix("0") for name in (START, "distill-tuned"))
        cells += [kept, f"{before} → {after}"]
        lines.append(f"| {row['set']} | {row['seed']} | {row['round']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
