"""One market: rounds of serving and learning; a round is finished once its `row.json` is there.

    MARKET/exposures/                the platform's log and what the market has shown
    MARKET/rounds/NNN/ARM/           the run that an arm learnt in, see `research.closed_loop.learners`
                      visits.parquet         a row a list: user, day, arm, what it was worth and what was said of it
                      population.safetensors the users after the last day
                      row.json               what was measured, a row an arm

In a market with a canary the new policy is served to its share of the users, and REST is the policy before it. A row
says under `stopped` whether a sign was on; if none was, the next round's REST is this round's new policy.

A round that was killed is played again from its first day: requests have the ids they had, the service answers those
on record as it did, and users do what they did.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.config import ArmConfig
from adagrpo.experiments.allocation import assign
from adagrpo.exposures.exposure_store import LocalExposureLog, parts_of
from adagrpo.lists import Recommender
from adagrpo.lists.exploration import Exploration
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.run import Run
from adagrpo.serving.model_manager import Serving
from adagrpo.storage.hashes import hash_file
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.writing import atomic_folder, make_folder, write_file
from research.closed_loop.beginnings import CLICK, Beginning
from research.closed_loop.canaries import canary_signs
from research.closed_loop.endpoint import Endpoint, SimulatedDays, moment_of
from research.closed_loop.learners import learn
from research.closed_loop.plan import LoopPlan, MarketPlan
from research.closed_loop.population import Population
from research.closed_loop.round_measures import ServedLists, measure

__all__ = ["REST", "START", "Market"]

START = "start"  # the arm of a market that trains none
REST = "rest"  # users who are not served the new policy yet
Floats = NDArray[np.float64]


@dataclass
class _Served:
    """What an arm serves in a round: the weights, and the run that holds data, catalogue and ranker for them."""

    run: Run
    weights: Path


class Market:
    """A market of a plan, in a folder of its own."""

    def __init__(self, plan: LoopPlan, market: MarketPlan, beginning: Beginning, folder: Path) -> None:
        self.plan, self.market, self.beginning, self.folder = plan, market, beginning, folder
        self.arms: dict[str, ArmConfig | None] = {arm.name: arm for arm in market.arms} or {START: None}
        self.candidate = next(iter(self.arms))
        if market.canary is not None:
            self.arms[REST] = None
        self.exposures = folder / "exposures"
        self._endpoints: dict[str, Endpoint] = {}

    def path(self, number: int, *parts: str) -> Path:
        """Where something of a round lies."""
        return self.folder.joinpath("rounds", f"{number:03d}", *parts)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the rounds that are finished."""
        found = sorted(self.folder.glob("rounds/*/row.json"))
        return [row for path in found for row in json.loads(path.read_text(encoding="utf-8"))]

    def play(self) -> None:
        """All rounds that are not finished.

        Raises:
            UserError: another process plays this market.
        """
        with lock_folder(self.folder, "loop"):
            self._play()

    def _play(self) -> None:
        if not self.exposures.is_dir():
            with atomic_folder(self.exposures) as copied:
                shutil.copytree(self.beginning.exposures, copied, dirs_exist_ok=True)
        missing = [n for n in range(self.plan.rounds + 1) if not self.path(n, "row.json").is_file()]
        if not missing:
            return
        self.log = LocalExposureLog(self.exposures, rotate_rows=10**9, rotate_seconds=10**6)
        try:
            for number in missing:
                self._round(number)
        finally:
            for endpoint in self._endpoints.values():
                endpoint.close()
            self._endpoints.clear()
            self.log.close()

    def _round(self, number: int) -> None:
        through = self._through(number)
        served = self._learnt(number, through)
        population = self._population(number)
        shown = self._serve(number, served, population)
        self.log.rotate()
        last = int(parts_of(self.exposures)[-1].name)
        rows = []
        for arm, one in served.items():
            before = self._weights_before(number, arm)
            values = measure(self.plan, one.run, one.weights, before, shown[arm], population, self.beginning, number)
            rows.append({"round": number, "arm": arm, "through": last, **values})
        tables = [part.table.with_columns(pl.lit(arm).alias("arm")) for arm, part in shown.items()]
        visits = pl.concat(tables)
        if self.market.canary is not None:
            on = canary_signs(visits, self.candidate, self.plan.days)
            stopped = any(on[sign] is not None for sign in self.market.canary.stop_on)
            rows = [row | {"stopped": stopped, "signs": on} for row in rows]
        make_folder(self.path(number))
        visits.write_parquet(self.path(number, "visits.parquet"))
        population.save(self.path(number, "population.safetensors"))
        write_file(self.path(number, "row.json"), json.dumps(rows, indent=1) + "\n")

    def _through(self, number: int) -> int:
        """The last part of the log that was there before a round."""
        if number == 0:
            return int(parts_of(self.beginning.exposures)[-1].name)
        rows = json.loads(self.path(number - 1, "row.json").read_text(encoding="utf-8"))
        return int(rows[0]["through"])

    def _population(self, number: int) -> Population:
        if number == 0:
            return self.beginning.population()
        return Population.load(self.beginning.world, self.path(number - 1, "population.safetensors"))

    def _weights_before(self, number: int, arm: str) -> Path:
        """What the arm served in the round before, or, with a canary, all users but its own are served."""
        if self.market.canary is not None:
            return self._kept(number)
        trained = self.arms[arm]
        if trained is None or number <= 1:
            return self.beginning.run.path("sft", "best")
        return self.path(number - 1, arm, "train", arm, self.market.checkpoint)

    def _kept(self, number: int) -> Path:
        """The last policy before a round that no sign was on for."""
        for earlier in range(number - 1, 0, -1):
            row = json.loads(self.path(earlier, "row.json").read_text(encoding="utf-8"))[0]
            if not row["stopped"] and self.arms[self.candidate] is not None:
                return self.path(earlier, self.candidate, "train", self.candidate, self.market.checkpoint)
        return self.beginning.run.path("sft", "best")

    def _learnt(self, number: int, through: int) -> dict[str, _Served]:
        """What each arm serves in a round."""
        if number == 0:
            run = self.beginning.run
            return {arm: _Served(run, run.path("sft", "best")) for arm in self.arms}
        served: dict[str, _Served] = {}
        first: Run | None = None
        for name, arm in self.arms.items():
            if name == REST:
                served[name] = _Served(served[self.candidate].run, self._kept(number))
                continue
            run = learn(
                self.beginning,
                self.path(number, name),
                number,
                exposures=self.exposures,
                through=through,
                arm=arm,
                served=self._weights_before(number, name),
                ranker=first,
            )
            first = first or run
            weights = run.path("sft", "best") if arm is None else run.path("train", name, self.market.checkpoint)
            served[name] = _Served(run, weights)
        return served

    def _serve(self, number: int, served: dict[str, _Served], population: Population) -> dict[str, ServedLists]:
        """The days of a round, over HTTP."""
        for arm, one in served.items():
            self._exchange(arm, _serving(one, arm, number, self.beginning))
        plan = self.plan
        first = 0 if number == 0 else plan.start_days + (number - 1) * plan.days
        days = plan.start_days if number == 0 else plan.days
        shown = {arm: ServedLists(RunData(one.run).item_ids.to_list(), population) for arm, one in served.items()}
        for day in range(first, first + days):
            if plan.stationary:
                population.users = self.beginning.population().users
            rows, taste = population.come(day, plan.visits)
            arms = np.array([self._arm(row, number) for row in rows.tolist()])
            lists = self._ask(day, rows, arms, population)
            items = np.array([[int(item[1:]) for item in one["items"]] for one in lists], np.int64)
            items = items.reshape(len(lists), -1 if lists else plan.list_length)
            histories = [population.history(row) for row in rows]
            answers = population.answer(day, rows, taste, items)
            self._tell(day, rows, lists, answers.clicked, answers.dwell)
            for arm, part in shown.items():
                mine = arms == arm
                part.add(day, rows[mine], items[mine], [h for h, own in zip(histories, mine, strict=True) if own])
                part.outcomes(*(values[mine] for values in answers))
        return shown

    def _arm(self, row: int, number: int) -> str:
        """The arm of a user in a round."""
        salt, weights = f"{self.plan.name}/{self.beginning.name}", dict.fromkeys(self.arms, 1.0)
        if self.market.canary is not None:
            salt = f"{salt}/{number}"
            weights = {self.candidate: self.market.canary.share, REST: 1 - self.market.canary.share}
        name = assign(f"u{row}", salt=salt, weights=weights)
        assert name is not None, "nobody is held out"
        return name

    def _exchange(self, arm: str, serving: Serving) -> None:
        if arm in self._endpoints:
            self._endpoints[arm].serve(serving)
            return
        experiment = self.plan.name if len(self.arms) > 1 else None
        sink = SimulatedDays(self.log, arm, experiment, self.beginning.world.longest)
        explore = Exploration(self.plan.temperature, self.market.explore) if self.market.explore else None
        self._endpoints[arm] = Endpoint(sink, serving, explore)

    def _ask(
        self, day: int, rows: NDArray[np.int64], arms: NDArray[np.str_], population: Population
    ) -> list[dict[str, Any]]:
        """The lists of the users who come, each from the arm that is theirs; in the order of the rows."""
        answers: dict[int, dict[str, Any]] = {}
        for arm, endpoint in self._endpoints.items():
            mine = rows[arms == arm].tolist()
            requests = [
                {
                    "history": population.history(row),
                    "k": self.plan.list_length,
                    "user_id": population.user_ids[row],
                    "request_id": _request(day, population.user_ids[row]),
                    "exclude_history": True,
                }
                for row in mine
            ]
            answers |= zip(mine, endpoint.ask(requests), strict=True)
        return [answers[row] for row in rows.tolist()]

    def _tell(
        self,
        day: int,
        rows: NDArray[np.int64],
        lists: Sequence[dict[str, Any]],
        clicked: NDArray[np.bool_],
        dwell: Floats,
    ) -> None:
        """Send what the users did."""
        events: list[dict[str, Any]] = []
        for place, row in enumerate(rows.tolist()):
            if not clicked[place].any():
                continue
            request = lists[place]["request_id"]
            item = lists[place]["items"][int(clicked[place].argmax())]
            moment = moment_of(_request(day, f"u{row}"), self.beginning.world.longest) + 60
            event = {"request_id": request, "item_id": item, "time": moment}
            events.append(event | {"kind": CLICK})
            if dwell[place] > 0:
                events.append(event | {"kind": "dwell", "value": float(dwell[place])})
        if events:
            next(iter(self._endpoints.values())).tell(events)


def _request(day: int, user: str) -> str:
    return f"d{day}-{user}"


def _serving(one: _Served, arm: str, number: int, beginning: Beginning) -> Serving:
    """What a service answers with in a round."""
    data = RunData(one.run)
    config, models = one.run.config, Models(data)
    catalogue = beginning.catalogue(number)[0]
    recommender = Recommender(
        models.policy(one.weights),
        data.catalog if number else data.catalog.read(catalogue).to(data.device),
        data.item_ids.to_list(),
        width=config.evaluation.beam_width,
        max_history=config.max_history,
        exclude_history=True,
        precision=config.evaluation.precision,
        catalog_version=f"{number:04d}",
        popularity=data.training.counts(data.num_items),
        groups=data.groups,
    )
    model = hash_file(one.weights / "model.safetensors")[:12]
    about: dict[str, Any] = {"name": config.name, "arm": arm, "round": number}
    return Serving(recommender, about, {"model": model, "catalog": f"{number:04d}", "arm": arm})
