"""Makes the headline of a data set anew: its tuning, then its trial.

    python -m research.fair_trial --data DIR --out runs/fair --sets amazon18-scientific

What has its row is not measured again, so an interrupted command continues.
Move `tuning-<set>.jsonl` away to tune anew.
`research.fair_trial.trial` has the trials that stand beside it.
"""

from __future__ import annotations

from adagrpo.report.page import read_rows
from research.command import run
from research.fair_trial.trial import carry_out
from research.fair_trial.tune import HERE, folder_of, read_plan, set_parser, start, tune, tuned_on, unfinished


def main() -> None:
    """Tune where it is not done, then try."""
    given = set_parser(__doc__).parse_args()
    for name in given.sets:
        plan = read_plan(name)
        source = tuned_on(plan, name)
        if unfinished(plan, source, list(read_rows(HERE / f"tuning-{source}.jsonl"))) is not None:
            tune(plan, source, start(plan, source, folder_of(plan, source, given.data), given.out))
        carry_out(plan, name, folder_of(plan, name, given.data), given.out)


if __name__ == "__main__":
    run(main)
