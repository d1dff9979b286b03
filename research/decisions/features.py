"""Which features of a fused list help, and does the rule that chooses among them? On validation cases alone.

    python -m research.decisions.features --out runs/decisions --sets lastfm amazon-beauty
    python -m research.decisions.features --table

`--out` has the runs of `research.decisions.sets`, or any with a policy and a ranker, in folders SET-SEED. Orders,
without a reward, are cross-fitted over users as in the package; a row has HR@10 and NDCG@10 of each, and the difference
in NDCG@10 from the features that are always there, with its 95 % interval over users:

    ease, user_knn, ...    each optional feature alone
    all                    all of them
    chosen                 the package's rule: those that raise the likelihood of held-out choices by more than its
                           standard error
    trees                  LambdaRank on what the network of `all` reads; one setting, not tuned, cases weigh alike
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.lists.fit_fusion import fit_weights
from adagrpo.lists.names import FUSE_WITHOUT_REWARD, START, ListName
from adagrpo.lists.table import FITTED, SOURCES
from adagrpo.metrics import hit_rate, ndcg
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.stages.fuse import validation_cases
from adagrpo.statistics import mean_interval
from research.command import run
from research.decisions.richer import choices_in, trees
from research.decisions.sets import arguments, measured

RESULTS = Path(__file__).with_name("features.jsonl")


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    given = arguments(__doc__).parse_args()
    print(table(measured(RESULTS, given, lambda name, seed: _measure(Run.open(given.out / f"{name}-{seed}")))))


def fit_sources(made: Run) -> None:
    """Carry out the stages of the sources that the run has."""
    for stage in FITTED:
        if any(source.stage == stage and source.when(made.config) for source in SOURCES.values()):
            made.stage(stage)


def _measure(made: Run) -> dict[str, Any]:
    fit_sources(made)
    data = RunData(made)
    cases, maker = validation_cases(data), ListMaker(Models(data))
    fusion = maker.fusion(ListName(START, FUSE_WITHOUT_REWARD))
    choices = choices_in(maker, fusion, data, cases)
    optional = [source for source in fusion.sources if SOURCES[source].optional]

    def used(*kept: str) -> list[str]:
        return [feature for feature in fusion.features if feature not in optional or feature in kept]

    fits = {"none": used()} | {source: used(source) for source in reversed(optional)} | {"all": used(*optional)}
    found = {
        label: fit_weights(choices, fusion.features, features, made.config.seed) for label, features in fits.items()
    }
    found["chosen"] = fit_weights(choices, fusion.features, used(*optional), made.config.seed, optional=optional)
    ranks = {label: fit.ranks for label, fit in found.items()} | {"trees": trees(choices, made.config.seed)}
    values = {label: choices.case_weights * ndcg(of_one, 10, cases.sizes) for label, of_one in ranks.items()}
    rows = {
        label: {
            "hr@10": float(hit_rate(of_one, 10).mean()),
            "ndcg@10": float(values[label].mean()),
            "gained": list(mean_interval(values[label] - values["none"])[:3]),
        }
        for label, of_one in ranks.items()
    }
    return {"cases": len(cases), "kept": [one for one in optional if one in found["chosen"].weights.weights], **rows}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """NDCG@10 on validation, and what each choice of features gains of it, in thousandths."""
    labels = ("ease", "user_knn", "content", "taste", "passed", "all", "chosen", "trees")
    lines = [
        "| set | cases | without | " + " | ".join(labels) + " | kept |",
        "|---|--:|--:|" + "--:|" * len(labels) + "---|",
    ]
    for row in rows:
        gains = [
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*(1000 * end for end in row[label]["gained"]))
            if label in row
            else "–"
            for label in labels
        ]
        kept = ", ".join(reversed(row["kept"])) or "none"
        lines.append(
            f"| {row['set']} | {row['cases']:,} | {row['none']['ndcg@10']:.4f} | {' | '.join(gains)} | {kept} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
