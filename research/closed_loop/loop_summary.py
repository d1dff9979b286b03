"""What a loop came to: each arm against the market that trains nothing, with intervals over users and worlds.

Users come on the same days in all markets of a world. So a list is held against the list that the same user was shown
on the same day in the reference market, differences are averaged by user, and divided by the mean utility of the
reference in that world and round. The interval is that of `adagrpo.statistics`, with worlds for seeds;
worlds share no user. With one world there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.monitoring import SIGNS, SignRule, daily_signs, first_on
from adagrpo.report.charts import GREY, INK, draw, empty, in_percent, method_colors
from adagrpo.statistics import crossed_interval, crossed_parts
from research.closed_loop.canaries import lost_until, visits_as_signs_see_them
from research.closed_loop.plan import LoopPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ALL",
    "canaries_of",
    "continued_of",
    "contrasts",
    "experiments_of",
    "loop_chart",
    "reference_of",
    "signs_of",
    "visits_of",
]

WORTH = "utility"
HARM = 0.02  # of the reference's utility
ALL = "all"  # the arms of a market together
SPAN = 1.959964  # standard errors, of 95 %
WIDE, HIGH = 880, 260  # pixels


def reference_of(plan: LoopPlan, market: str) -> str | None:
    """The market without training that a market is held against: one that explores as much, if there is one."""
    still = [name for name, one in plan.markets.items() if not one.arms]
    alike = [name for name in still if plan.markets[name].explore == plan.markets[market].explore]
    return next(iter([*alike, *still]), None)


def continued_of(plan: LoopPlan, market: str) -> str | None:
    """The market of continued NLL that explores as much, without a reward: what is left is the reward's."""
    alike = (
        name
        for name, one in plan.markets.items()
        if [arm.name for arm in one.arms] == ["nll"]
        and (one.canary, one.explore) == (None, plan.markets[market].explore)
    )
    return next(alike, None)


def visits_of(out: Path, world: str, market: str) -> pl.DataFrame | None:
    """The lists of a market, with their round and what they were worth; None where no round is finished."""
    parts = []
    for row in sorted(out.glob(f"{world}/{market}/rounds/*/row.json")):
        part = pl.read_parquet(row.parent / "visits.parquet")
        parts.append(part.with_columns(pl.lit(int(row.parent.name)).alias("round")))
    return pl.concat(parts) if parts else None


def contrasts(out: Path, plan: LoopPlan, worth: str = WORTH) -> list[dict[str, Any]]:
    """Each arm, and all of a market together, against no training and continued NLL, by round and over the last three.

    Returns:
        Rows of market, arm, round (or "last"), worlds, difference, low, high, p_value; shares of the reference.
    """
    found: list[dict[str, Any]] = []
    for market in plan.markets:
        for reference in (reference_of(plan, market), continued_of(plan, market)):
            if reference is not None and reference != market:
                found += _against(out, plan, market, reference, worth)
    return found


def _against(out: Path, plan: LoopPlan, market: str, reference: str, worth: str) -> Iterator[dict[str, Any]]:
    """The arms of a market against a reference."""
    pairs = {world: _pairs(out, world, market, reference, worth) for world in plan.worlds}
    known = {world: table for world, table in pairs.items() if table is not None}
    arms = sorted({arm for table in known.values() for arm in table["arm"].unique()})
    for arm in [*arms, *([ALL] if len(arms) > 1 else [])]:
        for number, rows in _spans(plan):
            values = [v for table in known.values() if (v := _relative(table, arm, rows)) is not None]
            if values:
                content = {"market": market, "arm": arm, "against": reference, "round": number}
                yield content | _interval(values)


def signs_of(out: Path, plan: LoopPlan, rule: SignRule | None = None) -> list[dict[str, Any]]:
    """When each sign came on in each world, market and arm, and when utility had fallen by more than 2 %.

    Returns:
        Rows of world, market, arm, days that were looked at, `harmed` (the first day of the first round whose utility
        is more than 2 % below the reference's; None: never) and for each sign its first day and on how many it was on.
        Markets with a canary are in `canaries_of`.
    """
    rule = rule or SignRule(baseline=plan.start_days, window=plan.days)
    found = []
    for world, market, arm, table in _arms(out, plan):
        if plan.markets[market].canary is not None:
            continue
        try:
            seen = daily_signs(visits_as_signs_see_them(table), rule)
        except ValueError:
            continue  # only the baseline is finished
        row: dict[str, Any] = {"world": world, "market": market, "arm": arm, "days": len(seen)}
        row["harmed"] = _harmed(out, plan, world, market, arm)
        for sign in SIGNS:
            row[sign] = first_on(seen, sign)
            row[f"{sign}_days"] = sum(sign in look.on for look in seen)
        found.append(row)
    return found


def canaries_of(out: Path, plan: LoopPlan) -> list[dict[str, Any]]:
    """What the signs said of each new policy that was served to a share of the users first.

    Returns:
        Rows of world, market, arm, round, `stopped`, and for each sign its first day (from 0 in the round; None: off);
        `truth`, by how much lists of the new policy were better than those of the reference, as a share; and `lost`, by
        how much the lists of the whole market were worse until the end of the first day of a sign, or of the round.
    """
    found = []
    for market, one in plan.markets.items():
        reference = reference_of(plan, market)
        if one.canary is None or reference is None:
            continue
        for world in plan.worlds:
            pairs = _pairs(out, world, market, reference, WORTH)
            if pairs is None:
                continue
            for path in sorted(out.glob(f"{world}/{market}/rounds/*/row.json"))[1:]:
                row = json.loads(path.read_text(encoding="utf-8"))[0]
                lists = pairs.filter(pl.col("round") == row["round"])
                begin = plan.start_days + (row["round"] - 1) * plan.days
                first = min((day for day in row["signs"].values() if day is not None), default=begin + plan.days - 1)
                content = {"world": world, "market": market, "arm": row["arm"], "round": row["round"]}
                content |= {"stopped": row["stopped"]}
                content |= {sign: None if day is None else day - begin for sign, day in row["signs"].items()}
                own = lists.filter(pl.col("arm") == row["arm"])
                worse = lost_until(own, begin + plan.days)
                content |= {"truth": None if worse is None else -worse, "lost": lost_until(lists, first)}
                found.append(content)
    return found


def experiments_of(out: Path, plan: LoopPlan) -> list[dict[str, Any]]:
    """What an A/B test within a market of several arms says: clicked lists, and the utility that it does not see.

    Returns:
        Rows of world, market, arm, against (the first arm), `worth` (`clicked` or `utility`), users of both arms, and
        the difference of the users' means after round 0, with its interval of 95 % over users, as shares of the mean of
        the first arm.
    """
    found = []
    for market, one in plan.markets.items():
        for world in plan.worlds if len(one.arms) > 1 else ():
            table = visits_of(out, world, market)
            if table is None or table["round"].max() == 0:
                continue
            later = table.filter(pl.col("round") > 0)
            for worth in ("clicked", WORTH):
                means = later.group_by("user", "arm", maintain_order=True).agg(pl.col(worth).cast(pl.Float64).mean())
                by_arm = {arm.name: means.filter(pl.col("arm") == arm.name)[worth].to_numpy() for arm in one.arms}
                control = by_arm[one.arms[0].name]
                for arm in one.arms[1:]:
                    own = by_arm[arm.name]
                    error = float(np.sqrt(own.var(ddof=1) / len(own) + control.var(ddof=1) / len(control)))
                    middle, half, usual = float(own.mean() - control.mean()), SPAN * error, float(control.mean())
                    content: dict[str, Any] = {"world": world, "market": market, "arm": arm.name}
                    content |= {"against": one.arms[0].name, "worth": worth, "users": len(own) + len(control)}
                    content |= {"difference": middle / usual}
                    found.append(content | {"low": (middle - half) / usual, "high": (middle + half) / usual})
    return found


def loop_chart(
    rows: Sequence[dict[str, Any]],
    plan: LoopPlan,
    markets: Sequence[str],
    title: str,
    names: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The difference to no training by round, a panel a market of which a round is finished, the other markets in grey.

    In one panel the intervals of three worlds, some wider than all means, would hide each other.

    Args:
        rows: of `contrasts`.
        plan: of the loop.
        markets: in the order of the panels.
        title: of the chart.
        names: of the markets.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for market in markets:
        usual = reference_of(plan, market)
        own = [row for row in rows if row["market"] == market and row.get("against", usual) == usual]
        rounds = [row for row in own if row["arm"] == ALL] or own
        rounds = [row for row in rounds if row["round"] in range(plan.rounds + 1)]
        if rounds:
            lines[names.get(market, market)] = rounds
    if not lines:
        return empty(title)

    def paint(axes: Axes) -> None:
        axes.axis("off")
        axes.plot([], [], color=GREY, lw=1, label="the other arms")
        spec = axes.get_subplotspec()
        assert spec is not None
        panels = spec.subgridspec(1, len(lines))
        first: Axes | None = None
        for place, (name, color) in enumerate(method_colors(lines).items()):
            panel = axes.figure.add_subplot(panels[0, place], sharey=first)
            first = first or panel
            panel.axhline(0.0, color=INK, lw=1, ls=(0, (5, 4)))
            for other, rounds in lines.items():
                x, means = zip(*((row["round"], row["difference"]) for row in rounds), strict=True)
                panel.plot(x, means, color=color if other == name else GREY, lw=2.5 if other == name else 0.8)
            for row in lines[name]:
                if row["low"] is not None:  # an interval cannot say that more than everything is lost
                    panel.plot([row["round"]] * 2, [max(row["low"], -1.0), row["high"]], color=color, lw=1.2)
            panel.set_title(name, color=INK)
            panel.set_xlabel("round")
            panel.grid(axis="y")
            in_percent(panel.yaxis)
            panel.tick_params(labelleft=not place)

    notes = f"Utility compared with no training; bars: 95 % intervals over users and {len(plan.worlds)} worlds"
    described = f"utility compared with no training, by round, with intervals: {', '.join(lines)}"
    return draw(title, described, paint, width=WIDE, height=HIGH, notes=notes)


def _spans(plan: LoopPlan) -> Iterator[tuple[int | str, list[int]]]:
    yield from ((number, [number]) for number in range(plan.rounds + 1))
    yield "last", list(range(max(1, plan.rounds - 2), plan.rounds + 1))


def _pairs(out: Path, world: str, market: str, reference: str, worth: str) -> pl.DataFrame | None:
    """round, arm, user, both values of each list that has its like in the reference."""
    own, other = visits_of(out, world, market), visits_of(out, world, reference)
    if own is None or other is None:
        return None
    columns = pl.col("user", "day"), pl.col(worth).alias("usual")
    return own.select("round", "arm", "user", "day", worth).join(other.select(*columns), on=["user", "day"])


def _relative(table: pl.DataFrame, arm: str, rounds: Sequence[int]) -> NDArray[np.float64] | None:
    """(N,) the difference of each user, as a share of the reference's mean."""
    rows = table.filter(pl.col("round").is_in(list(rounds)))
    rows = rows if arm == ALL else rows.filter(pl.col("arm") == arm)
    if rows["round"].n_unique() < len(rounds):
        return None
    worth = next(name for name in rows.columns if name not in ("round", "arm", "user", "day", "usual"))
    users = rows.group_by("user", maintain_order=True).agg(pl.col(worth).mean(), pl.col("usual").mean())
    usual = float(users["usual"].mean())  # type: ignore[arg-type]
    return (users[worth] - users["usual"]).to_numpy() / usual


def _interval(values: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """The mean over worlds and its interval over users and worlds; of one world the mean alone."""
    if len(values) < 2:
        return {"worlds": 1, "difference": float(values[0].mean()), "low": None, "high": None, "p_value": None}
    starts = np.cumsum([0, *map(len, values)])
    places = [np.arange(start, start + len(part)) for start, part in zip(starts, values, strict=False)]
    found = crossed_interval(crossed_parts(values, places))
    content = {"difference": found.mean, "low": found.low, "high": found.high, "p_value": found.p_value}
    return {"worlds": len(values), **content}


def _arms(out: Path, plan: LoopPlan) -> Iterator[tuple[str, str, str, pl.DataFrame]]:
    for world in plan.worlds:
        for market in plan.markets:
            table = visits_of(out, world, market)
            if table is not None:
                for arm in sorted(table["arm"].unique()):
                    yield world, market, arm, table.filter(pl.col("arm") == arm)


def _harmed(out: Path, plan: LoopPlan, world: str, market: str, arm: str) -> int | None:
    """The first day of the first round whose utility is more than 2 % below that of the reference."""
    reference = reference_of(plan, market)
    if reference is None or reference == market:
        return None
    pairs = _pairs(out, world, market, reference, WORTH)
    if pairs is None:
        return None
    for number in range(1, plan.rounds + 1):
        values = _relative(pairs, arm, [number])
        if values is not None and values.mean() < -HARM:
            return plan.start_days + (number - 1) * plan.days
    return None
