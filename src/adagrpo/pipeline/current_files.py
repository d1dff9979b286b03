"""What the report shows: the current files of a run without stale results, and some users of the test cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from adagrpo.data.columns import ITEM_ID, TEXT, USER_ID
from adagrpo.errors import UserError
from adagrpo.evaluation.predictions import sample_cases
from adagrpo.lists.names import START, parse_list
from adagrpo.pipeline.choose_checkpoint import evaluation_of
from adagrpo.pipeline.directory import RunDirectory, events_of, remake_command, trained_arms
from adagrpo.pipeline.files import CatalogVersion, RunData
from adagrpo.pipeline.json_files import read_json
from adagrpo.pipeline.list_makers import contenders
from adagrpo.pipeline.list_rules import RULES, rules_set
from adagrpo.pipeline.named_lists import DECISION
from adagrpo.pipeline.outputs import COLLECTED, DECIDED, is_stale
from adagrpo.pipeline.staleness import parts_of
from adagrpo.report.page import RunFiles
from adagrpo.report.run_page import ShownUser

SHOWN = ("train/", "ranker/report")  # stages shown on the page


class CurrentFiles(RunFiles):
    """The up-to-date files of a run."""

    def __init__(self, run: RunDirectory) -> None:
        """Find stale stages; UserError if metrics.json is stale."""
        super().__init__(run.directory)
        self.run = run
        self.parts = parts_of(run, measuring=True)
        path = run.find("metrics.json")
        if path is None:
            named = run.called / "metrics.json"
            why = "`adagrpo decide` writes decision.json alone" if run.find(DECISION) else "nothing is evaluated yet"
            raise UserError(f"{named}: missing, {why}; run {remake_command(run, named.name)} first")
        why = is_stale(run, COLLECTED, self.parts)
        if why:
            raise UserError(f"{run.called}: metrics.json is stale: {why}; run {remake_command(run, 'metrics.json')}")

        self.undecided = is_stale(run, DECIDED, self.parts)

    @property
    def notes(self) -> list[str]:
        """Return a sentence per omission."""
        there = [part for part in self.parts.values() if part.there and part.name.startswith(SHOWN)]
        return [
            *(f"{part.name} is left out, it is {part.state}: {part.why}." for part in there if not part.usable),
            *(f"{part.name}: {part.why}." for part in self.parts.values() if part.usable and part.why),
            *([f"The decision is left out, it is stale: {self.undecided}."] if self.undecided else []),
        ]

    def find(self, *parts: str) -> Path | None:
        """Find a file unless it is stale, see `RunDirectory.find`."""
        if parts == (DECISION,) and self.undecided:
            return None
        stage = "/".join(parts[:-1])
        return None if stage in self.parts and not self.parts[stage].usable else self.run.find(*parts)

    def trained(self) -> list[str]:
        """List the arms that are up to date."""
        return [arm for arm in trained_arms(self.run) if self.parts[f"train/{arm}"].usable]

    def events(self) -> Sequence[Mapping[str, Any]]:
        """Read the events, see `events_of`."""
        return events_of(self.run)


USERS, HISTORY, TOP = 20, 10, 10
LONGEST = 48  # characters of a title, so that lists fit beside each other


def shown_users(files: CurrentFiles) -> list[ShownUser]:
    """Return users with current lists that were measured; the chosen list and the control come first."""
    run = files.run
    data = RunData(run, CatalogVersion(run, run.catalog))
    decided = files.find(DECISION)
    content = {} if decided is None else read_json(decided)
    chosen, control = content.get("chosen"), content.get("control")
    first = [] if chosen is None else [chosen, *([f"{chosen} under rules"] if rules_set(run) else []), control]
    folders: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys([*first, *contenders(run.config, files.trained())]):
        called = parse_list(name)
        trained = called.policy not in (None, START) and called.order == "policy"
        folders[name] = evaluation_of(name, "best") if trained else ("evaluate", name)
    if f"{chosen} under rules" in folders:
        folders[f"{chosen} under rules"] = (RULES, str(chosen))
    cases = sample_cases(data.measured_cases("test"), USERS, run.config.seed)
    users = data.ids_of(cases.users)
    lists = {}
    for name, folder in folders.items():
        path = files.find(*folder, "predictions.parquet")
        if path is not None:
            table = pl.scan_parquet(path).filter(pl.col("rank") <= TOP).join(users.lazy(), on=USER_ID, how="semi")
            found = table.collect().sort("rank").group_by(USER_ID).agg(ITEM_ID)
            lists[name] = dict(zip(found[USER_ID].to_list(), found[ITEM_ID].to_list(), strict=True))
    texts = [(text or "").strip() for text in data.items[TEXT].to_list()]
    titles = [text[:LONGEST].strip() or str(name) for text, name in zip(texts, data.item_ids, strict=True)]
    by_id = dict(zip(data.item_ids.to_list(), titles, strict=True))
    shown = []
    for row, user in enumerate(users[USER_ID].to_list()):
        wanted = [cases.targets[row]] if cases.relevant is None else cases.relevant.row(row)
        history = cases.histories.row(row)
        ids = {data.item_ids[int(item)] for item in wanted}
        shown.append(
            ShownUser(
                str(user),
                [titles[item] for item in history[-HISTORY:]],
                max(0, len(history) - HISTORY),
                [titles[item] for item in wanted],
                {name: [(by_id[item], item in ids) for item in found.get(user, [])] for name, found in lists.items()},
            )
        )
    return shown
