"""Tables of Markdown pages, written between markers from the rows of the studies, and nothing else of the page.

    <!-- table: KIND NAME... KEY=VALUE... -->
    whatever stands here is replaced
    <!-- end of table -->

| kind | names | keys |
|---|---|---|
| `arms` | one `NAME.jsonl` | `seed`, `columns` (metrics), `checkpoint` (`best`, `final`), `form=text` |
| `comparison` | one `NAME.comparison.json`; several, of other seeds, are pooled | `form=short`, `checkpoint` |
| `headline` | several `NAME.comparison.json`; `NAME+NAME` is pooled (`pairs`, `pressed` too) | `arms`, `split` |
| `starting` | several `NAME.jsonl`, a sign such as † after the name | |
| `ablation` | one `NAME.jsonl` of `research.starting_policies.ablation` | |
| `quality` | one `NAME.jsonl` of `research.reward_quality.measure` | `metric` |
| `crossing` | the same: from which quality of the reward on each arm gains | `metric` |
| `contenders` | one `NAME.trial.json`, the `demo.json` of a demo | `form=text` |
| `trained` | one `NAME.training.json`, `training` of a `demo.json`: arms by a reward | `reward`, its number |
| `trial` | the same, of a demo whose arms are shown at their last steps | |
| `orders` | one `NAME.jsonl` of `research.exposed_feed.measure` | `measure`, `less`, `form=exposure` |
| `tuned` | one `NAME.jsonl` of `research.fair_trial.tune` | |
| `matched` | several `NAME.jsonl` of the same: gates at one setting, in its first rung | |
| `admitted` | one `NAME.jsonl` of `research.fair_trial.admitted` | |
| `hard` | one `NAME.jsonl` of `research.fair_trial.hard_cases` | `less=nll` |
| `diagnosed` | one `NAME.jsonl` of `research.fair_trial.diagnosed` | |
| `pairs` | one `NAME.comparison.json`: arms against each other; several: last steps | `checkpoint=final`, `metric` |
| `teachers` | a set: its `teacher-NAME-*.comparison.json` | |
| `corrected` | the `NAME.comparison.json` of the trials: what is significant, by how many tests are counted | |
| `pressed` | one `NAME.comparison.json`: how hard each arm pressed, and both its checkpoints | |
| `frontier` | one `NAME.comparison.json` of `research.paper_gate.trial` | `form=short`: its pairs of arms alone |
| `ratio`, `ratio_arms`, `beside_curve` | `ratio`, once all its rows are there | `form=short`: fewer lines |
| `strata` | one `NAME.jsonl` of `research.paper_gate.strata` | |
| `field` | one `NAME.jsonl` of `research.field_arms` | |
| `alone` | one `NAME.jsonl` of `research.paper_gate.alone` | |
| `moved` | one `NAME.jsonl` of `research.paper_gate.moved` | |
| `lists` | `sets`, of `research.decisions.sets` | `form=short` |
| `single_models` | `sets`, of `research.decisions.sets`: the fused list beside the strongest of them | |
| `verdicts` | `shops`, of `research.decisions.shops` | |
| `leaks` | `leaks`, of `research.leaks.measure` | |

A file is found by its name alone, in whichever study it lies, so that two studies cannot have files of the same name.
Prose stays with those who write it. A marker in a code block is an example and is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from adagrpo.errors import UserError
from adagrpo.report.comparison_page import comparison_figures, pairs_table, read_comparison
from adagrpo.report.decision import contenders_table
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table, to_markdown, to_text
from adagrpo.report.training import training_table
from adagrpo.storage.writing import write_file
from research.decisions import single_models
from research.decisions.sets import lists
from research.decisions.shops import verdicts
from research.fair_trial.corrected import corrected_table, read_differences
from research.field_arms.measure import summary
from research.figures.public_sets import lists_of_sets, public_sets_picture
from research.leaks.measure import found_table
from research.pages.feed import difference_table, exposure_table, order_table
from research.pages.frontier import (
    alone_table,
    frontier_pairs,
    frontier_table,
    moved_table,
    power_table,
    strata_table,
)
from research.pages.gate_ratio import beside_curve, ratio_arms, ratio_picture, ratio_table, read_ratio
from research.pages.last_steps import trial_table
from research.pages.pooling import pool
from research.pages.quality import crossing_table, quality_figure, quality_table
from research.pages.readings import admitted_table, diagnosed_table, hard_table, matched_table
from research.pages.results import ablation_table, arms_table, find, starting_table
from research.pages.study_pictures import study_pictures
from research.pages.summary import headline_table, summary_table, validation_table
from research.pages.tuning import pairs_over_sets, pressed_table, teachers_table, tuned_table

__all__ = ["BEGIN", "END", "figures_into", "tables_into", "with_tables"]

BEGIN, CLOSE, END = "<!-- table:", "-->", "<!-- end of table -->"
FENCE = "```"
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+\.svg)\)")
KEYS = {
    "arms": ("seed", "columns", "checkpoint", "form"),
    "comparison": ("form", "checkpoint"),
    "starting": (),
    "ablation": (),
    "quality": ("metric",),
    "crossing": ("metric",),
    "contenders": ("form",),
    "trained": ("reward",),
    "trial": (),
    "tuned": (),
    "matched": (),
    "admitted": (),
    "hard": ("less",),
    "diagnosed": (),
    "pairs": ("checkpoint", "metric"),
    "teachers": (),
    "pressed": (),
    "corrected": (),
    "frontier": ("form",),
    "power": (),
    "ratio": ("form",),
    "ratio_arms": (),
    "beside_curve": ("form",),
    "strata": (),
    "moved": (),
    "alone": (),
    "field": (),
    "headline": ("arms", "split"),
    "lists": ("form",),
    "single_models": (),
    "verdicts": (),
    "leaks": (),
    "orders": ("measure", "less", "form"),
}
TUNED = ("research.fair_trial.tune", ("rung", "candidate", "final", "pressure_found"))
QUALITY = ("research.reward_quality.measure", ("variant", "diagnosis", "arms"))
CALLED = {"quality-marketplace": {"adagrpo": "earlier gate"}}  # measured before the paper's gate had the name
POOLED = ("headline", "pairs", "pressed")  # kinds for which `NAME+NAME` is one comparison
# kinds that take several files
SEVERAL = ("starting", "comparison", "corrected", "headline", "pairs", "matched", "power")
FORMS = {
    "arms": "text",
    "comparison": "short",
    "contenders": "text",
    "frontier": "short",
    "ratio": "short",
    "beside_curve": "short",
    "lists": "short",
    "orders": "exposure",
}


class Marker(NamedTuple):
    """What a marker asks for."""

    kind: str
    names: tuple[str, ...]
    options: dict[str, str]


def tables_into(results: Path, places: Sequence[Path], *, check: bool = False) -> list[Path]:
    """Write the tables of the pages; none is written if one of them cannot be made.

    Args:
        results: the folder whose files of rows are read, those of its subfolders too.
        places: Markdown files, or folders of them.
        check: only compare.

    Returns:
        The pages that were written.

    Raises:
        UserError: a place, a result or an end of a table is missing, a marker asks for what there is not, no page has
            a marker, or, under `check`, a page is not what would be written.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder of results")
    before = {page: _read(page) for place in places for page in _pages(place)}
    after = {page: with_tables(text, results, str(page)) for page, text in before.items()}
    if not any(line.startswith(BEGIN) for text in before.values() for line in text.split("\n")):
        raise UserError(f"{', '.join(map(str, places))}: no page has a line {BEGIN} ... {CLOSE}")
    stale = [page for page in before if before[page] != after[page]]
    if check and stale:
        raise UserError(f"{', '.join(map(str, stale))}: not what the results say; without --check they are written")
    for page in stale:
        write_file(page, after[page])
    return stale


def figures_into(results: Path, *, check: bool = False) -> list[Path]:
    """Write the charts that pages show: `figures/<name>/<what it shows>.svg` beside the comparison or quality map.

    A chart that no page of the folder shows is not drawn. Charts of studies (`research.pages.study_pictures`) and the
    picture of the README, `figures/public-sets.svg`, and the frontier of the gate are drawn where their rows are.

    Args:
        results: as in `tables_into`; comparisons are `<name>.comparison.json`, maps `quality-<name>.jsonl`. What is
            there of other names is left alone.
        check: only compare.

    Returns:
        The charts that were written.

    Raises:
        UserError: the folder of results is missing or a file is damaged or, under `check`, a chart is not what would be
            written.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder of results")
    drawn: dict[Path, str] = {}
    for path in sorted(results.rglob("*.comparison.json")):
        folder = path.parent / "figures" / path.name.removesuffix(".comparison.json")
        for shown, figure in comparison_figures(read_comparison(path)).items():
            drawn[folder / f"{shown}.svg"] = figure.svg
    for path in sorted(results.rglob("quality-*.jsonl")):
        rows = read_rows(path)
        _expect(path, rows, *QUALITY)
        known = [name for name in ("hr@10", "true_utility@10") if name in rows[0]["arms"][0]["test"]]
        for name in known:
            chart = path.parent / "figures" / path.stem / f"{name.partition('@')[0]}.svg"
            drawn[chart] = quality_figure(rows, name, CALLED.get(path.stem, {})).svg
    pages = {page: _read(page) for page in results.rglob("*.md")}
    on_pages = {(page.parent / target).resolve() for page, text in pages.items() for target in IMAGE.findall(text)}
    drawn = {path: svg for path, svg in drawn.items() if path.resolve() in on_pages}
    drawn |= study_pictures(results)
    ratio = results / "paper_gate" / "figures" / "ratio.svg"
    if ratio.resolve() in on_pages:
        drawn[ratio] = ratio_picture(read_ratio()[1])
    if found := lists_of_sets(results):
        drawn[results / "figures" / "public-sets.svg"] = public_sets_picture(found)
    stale = [path for path, svg in drawn.items() if not path.is_file() or path.read_text(encoding="utf-8") != svg]
    if check and stale:
        raise UserError(f"{', '.join(map(str, stale))}: not what the results say; without --check they are written")
    for path in stale:
        write_file(path, drawn[path])
    return stale


def with_tables(page: str, results: Path, name: str = "page") -> str:
    """The page with every marked table made anew.

    Args:
        page: Markdown.
        results: as in `tables_into`.
        name: what the page is called in errors.

    Raises:
        UserError: see `tables_into`.
    """
    lines: list[str] = []
    opened, fenced = 0, False
    for number, line in enumerate(page.split("\n"), start=1):
        if opened and line.startswith(BEGIN):
            raise UserError(f"{name}: line {number} begins a table before the one of line {opened} has its {END}")
        if not opened:
            lines.append(line)
            fenced ^= line.startswith(FENCE)
            if line.startswith(BEGIN) and not fenced:
                lines += ["", *_table(line, results, f"{name}: line {number}").split("\n"), ""]
                opened = number
        elif line.strip() == END:
            lines.append(line)
            opened = 0
    if opened:
        raise UserError(f"{name}: the table of line {opened} has no {END} behind it")
    return "\n".join(lines)


def _table(line: str, results: Path, place: str) -> str:
    """The Markdown that belongs behind a marker."""
    marker = _marker(line, place)
    try:
        table = _made(marker, results)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return f"{FENCE}\n{to_text(table)}\n{FENCE}" if marker.options.get("form") == "text" else to_markdown(table)


def _marker(line: str, place: str) -> Marker:
    kind, *parts = line.removeprefix(BEGIN).strip().removesuffix(CLOSE).split() or [""]
    if not line.rstrip().endswith(CLOSE) or kind not in KEYS:
        raise UserError(f"{place}: expected {BEGIN} KIND NAME {CLOSE} on one line, KIND one of {', '.join(KEYS)}")
    names = tuple(part for part in parts if "=" not in part)
    options = dict(part.split("=", 1) for part in parts if "=" in part)
    if unknown := [key for key in options if key not in KEYS[kind]]:
        known = f"it has {', '.join(KEYS[kind])}" if KEYS[kind] else "it has none"
        raise UserError(f"{place}: a table of {kind} has no {unknown[0]}=; {known}")
    if options.get("form", FORMS.get(kind)) != FORMS.get(kind):
        raise UserError(f"{place}: form={options['form']}; a table of {kind} has form={FORMS[kind]} or none")
    if options.get("checkpoint", "best") not in ("best", "final") or not options.get("seed", "0").isdecimal():
        raise UserError(f"{place}: seed is a number, checkpoint is best or final")
    if options.get("split", "test") not in ("test", "validation"):
        raise UserError(f"{place}: split={options['split']}; a headline is of test or validation")
    if kind == "pairs" and options.get("checkpoint", "final") != "final":
        raise UserError(
            f"{place}: without checkpoint=final one table of pairs has both checkpoints, and several the last"
        )
    if not names or (len(names) > 1 and kind not in SEVERAL):
        raise UserError(f"{place}: a table of {kind} is of one file of results, {len(names)} are named")
    return Marker(kind, names, options)


def _made(marker: Marker, results: Path) -> Table:
    name, options = marker.names[0], marker.options
    if marker.kind == "starting":
        return starting_table(results, marker.names)
    if marker.kind in POOLED:
        contents = [_pooled_named(named, results) for named in marker.names]
        if marker.kind == "pressed":
            return pressed_table(contents[0])
        titles = _titles(contents, marker.names)
        if marker.kind == "headline":
            arms = options["arms"].split(",") if "arms" in options else []
            if options.get("split", "test") == "validation":
                return validation_table(contents, arms, titles)
            return headline_table(contents, arms, titles)
        last = len(contents) > 1 or "checkpoint" in options or "metric" in options
        return pairs_over_sets(contents, titles, options.get("metric")) if last else pairs_table(contents[0])
    if marker.kind == "corrected":
        return corrected_table(read_differences(find(results, f"{name}.comparison.json").parent), marker.names)
    if marker.kind == "comparison":
        contents = [read_comparison(find(results, f"{named}.comparison.json")) for named in marker.names]
        return summary_table(_pooled(contents, marker.names), "form" in options, options.get("checkpoint"))
    if marker.kind == "frontier":
        compared = read_comparison(find(results, f"{name}.comparison.json"))
        return frontier_pairs(compared) if "form" in options else frontier_table(compared)
    if marker.kind == "teachers":
        return _teachers(name, results)
    if marker.kind in ("contenders", "trial"):
        content = _trial(find(results, f"{name}.trial.json"))
        return contenders_table(content) if marker.kind == "contenders" else trial_table(content)
    if marker.kind == "trained":
        return _trained(find(results, f"{name}.training.json"), int(options.get("reward", 0)))
    if marker.kind == "matched":
        return _matched(marker.names, results)
    path = find(results, f"{name}.jsonl")
    if marker.kind == "arms":
        seed = int(options["seed"]) if "seed" in options else None
        columns = options["columns"].split(",") if "columns" in options else None
        return arms_table(path, seed, columns, options.get("checkpoint"))
    rows = read_rows(path)
    if marker.kind == "orders":
        return _orders(path, rows, options)
    if marker.kind == "tuned":
        _expect(path, rows, *TUNED)
        return tuned_table(rows)
    if marker.kind == "power":
        return power_table(results, marker.names)
    if marker.kind in ("ratio", "ratio_arms", "beside_curve"):
        plan, whole = read_ratio()
        short = options.get("form") == "short"
        if marker.kind == "ratio":
            return ratio_table(plan, whole, short)
        return ratio_arms(whole) if marker.kind == "ratio_arms" else beside_curve(whole, short)
    if marker.kind == "strata":
        _expect(path, rows, "research.paper_gate.strata", ("stratum", "users", "gain_hr@10"))
        return strata_table(rows)
    if marker.kind == "field":
        _expect(path, rows, "research.field_arms", ("arm", "pressure", "reward"))
        return summary(rows)
    if marker.kind == "lists":
        _expect(path, rows, "research.decisions.sets", ("set", "chosen", "contenders", "gained"))
        return lists(rows, short="form" in options)
    if marker.kind == "single_models":
        _expect(path, rows, "research.decisions.sets", ("set", "chosen", "contenders", "ranks"))
        return single_models.table(rows)
    if marker.kind == "verdicts":
        _expect(path, rows, "research.decisions.shops", ("world", "verdict", "lists"))
        return verdicts(rows)
    if marker.kind == "leaks":
        _expect(path, rows, "research.leaks.measure", ("world", "reward", "honest", "signs"))
        return found_table(rows)
    if marker.kind == "alone":
        _expect(path, rows, "research.paper_gate.alone", ("arm", "admission", "less_nll"))
        return alone_table(rows)
    if marker.kind == "moved":
        _expect(path, rows, "research.paper_gate.moved", ("distance", "leaves_at", "users"))
        return moved_table(rows)
    if marker.kind == "admitted":
        _expect(path, rows, "research.fair_trial.admitted", ("arm", "admission", "shuffled_admission"))
        return admitted_table(rows)
    if marker.kind == "hard":
        _expect(path, rows, "research.fair_trial.hard_cases", ("stratum", "users", "against"))
        return hard_table(rows, options.get("less"))
    if marker.kind == "diagnosed":
        _expect(path, rows, "research.fair_trial.diagnosed", ("set", "decision", "evidence"))
        return diagnosed_table(rows)
    if marker.kind in ("quality", "crossing"):
        _expect(path, rows, *QUALITY)
        table = quality_table if marker.kind == "quality" else crossing_table
        return table(rows, options.get("metric", "hr@10"))
    _expect(path, rows, "research.starting_policies.ablation", ("variant", "metrics", "worth"))
    return ablation_table(rows)


def _orders(path: Path, rows: Sequence[Mapping[str, Any]], options: Mapping[str, str]) -> Table:
    """Orders of exposures, or what they gain over a reference."""
    _expect(path, rows, "research.exposed_feed.measure", ("order", "judges"))
    if "form" in options:
        return exposure_table(rows)
    measure = options.get("measure", "auc")
    return difference_table(rows, options["less"], measure) if "less" in options else order_table(rows, measure)


def _matched(names: Sequence[str], results: Path) -> Table:
    """Rows of tuning by the set that they are of."""
    rungs = {}
    for name in names:
        path = find(results, f"{name}.jsonl")
        rungs[name.removeprefix("tuning-")] = rows = read_rows(path)
        _expect(path, rows, *TUNED)
    return matched_table(rungs)


def _teachers(name: str, results: Path) -> Table:
    """The comparisons of a set's teachers that were carried out, in the order of the plan of the trial."""
    plan = yaml.safe_load((results / "fair_trial" / "plan.yaml").read_text(encoding="utf-8"))
    files = {
        teacher: find(results, f"teacher-{name}-{teacher}.comparison.json") for teacher in plan["trial"]["teachers"]
    }
    tried = {teacher: path for teacher, path in files.items() if path.is_file()} or files
    return teachers_table({teacher: read_comparison(path) for teacher, path in tried.items()})


def _pooled_named(named: str, results: Path) -> dict[str, Any]:
    """A comparison, or `NAME+NAME`, the same under other seeds."""
    names = named.split("+")
    return _pooled([read_comparison(find(results, f"{name}.comparison.json")) for name in names], names)


def _titles(contents: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Comparisons by the names of their sets, and by those of their files where two are of the same set."""
    sets = [content["name"] for content in contents]
    return [own if sets.count(own) == 1 else name for own, name in zip(sets, names, strict=True)]


def _pooled(contents: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    if len(contents) == 1:
        return contents[0]
    try:
        return pool(contents)
    except ValueError as error:
        raise UserError(f"{', '.join(names)}: cannot be pooled, {error}") from error


def _expect(path: Path, rows: Sequence[Mapping[str, Any]], source: str, keys: Sequence[str]) -> None:
    if not rows or any(set(keys) - row.keys() for row in rows):
        raise UserError(f"{path}: expected rows of {source}, with {', '.join(keys[:-1])} and {keys[-1]}")


def _pages(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(place.rglob("*.md"))
    if not place.is_file():
        raise UserError(f"{place}: no such file or folder")
    return [place]


def _trained(path: Path, reward: int) -> Table:
    """The arms by one reward, without its means and without true utility."""
    whole = training_table([*json.loads(_read(path)).values()][reward])
    kept = [column for column, text in enumerate(whole.header) if not text.startswith(("mean", "true"))]
    kept.remove(len(whole.header) - 3)  # of true utility
    rows = [tuple(row[column] for column in kept) for row in whole.rows]
    return Table.of([whole.header[column] for column in kept], rows)


def _trial(path: Path) -> Mapping[str, Any]:
    """The content of a `demo.json`."""
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON that this program wrote ({error})") from error
    if not isinstance(content, dict) or {"rewards", "rows"} - content.keys():
        raise UserError(f"{path}: not the demo.json of a demo")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error
