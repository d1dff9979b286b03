"""The page of a run: what to serve, how the methods did, their curves, and what all of it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from adagrpo.config.yaml_text import dump_yaml
from adagrpo.errors import UserError
from adagrpo.metrics import ReportPart
from adagrpo.objective.admission import thresholds_sentence
from adagrpo.report import figures
from adagrpo.report.decision import decision_sentences, decision_table, list_advice
from adagrpo.report.figures import Figure, Log, of_this_reward
from adagrpo.report.page import Block, RunFiles, Section, page, read_mapping, read_rows
from adagrpo.report.run_tables import (
    REFERENCES,
    calibration_text,
    exposure_figures,
    exposure_table,
    facts,
    failures_table,
    levels_table,
    paired_figures,
    paired_table,
    ranking_table,
    stage_table,
    strata_table,
)
from adagrpo.report.strata_page import strata_figures, strata_summary
from adagrpo.report.summary import summary_sentences
from adagrpo.report.tables import MISSING, START, Split, Table, checkpoints, results_table, shown_columns
from adagrpo.storage.writing import write_file

Shown = TypeVar("Shown")
Content = Mapping[str, Any]
SPLITS: tuple[Split, ...] = ("test", "validation")


def write_report(run: RunFiles | Path, notes: Sequence[str] = ()) -> Path:
    """Write `report.html` into a run directory, atomically; see `build_report`."""
    files = RunFiles(run) if isinstance(run, Path) else run
    path = files.directory / "report.html"
    write_file(path, build_report(files, notes))
    return path


def write_figures(run: RunFiles | Path, directory: Path) -> list[Path]:
    """Write the charts of a report as SVG files."""
    files = RunFiles(run) if isinstance(run, Path) else run
    metrics = _metrics(files)
    charts = {
        directory / f"{name}-{number}.svg": figure.svg
        for name, drawn in _figures(_logs(files, metrics), metrics).items()
        for number, figure in enumerate(drawn, start=1)
    }
    for path, svg in charts.items():
        write_file(path, svg)
    return list(charts)


def build_report(run: RunFiles | Path, notes: Sequence[str] = ()) -> str:
    """Return the report of a run as HTML; UserError if `metrics.json` is missing, or a file cannot be read."""
    files = RunFiles(run) if isinstance(run, Path) else run
    metrics = _metrics(files)
    name = metrics.get("name") or files.directory.resolve().name
    decided = _read(files, ("decision.json",), lambda content: (content, _decision(content)))
    decision, opening = (None, []) if decided is None else (decided[0], [decided[1]])
    if "exposures" in metrics:
        title, report = "The ranker on held-out impressions", metrics["exposures"]
        text = (
            "These logs have no order, so there is a ranker and no policy. AUC: a clicked item among what the same user"
            " was shown and did not click, means over users with 95 % bootstrap intervals. Biased: items that the"
            " platform chose to show; random: items shown at random. The strata divide the clicked items."
        )
        blocks = [Block("quiet", text), Block("charts", exposure_figures(report))]
        blocks.append(Block("table", exposure_table(report), title))
        outcome = [Section("exposures", title, blocks, "Held-out impressions")]
    else:
        outcome = _training(files, metrics, decision)
        if (files.directory / USERS_PAGE).is_file():
            text = "What twenty users had, each list beside the others, and what they took next"
            outcome.insert(0, Section("users", "Lists of some users", [Block("link", text, USERS_PAGE)]))
    sections = [*opening, Section("notes", "Notes", [Block("list", notes)]), *outcome, *_made_from(files, metrics)]
    return page(f"{name}: adagrpo report", name, sections)


def _metrics(files: RunFiles) -> Content:
    path = files.find("metrics.json")
    if path is None:
        where = files.directory / "metrics.json"
        raise UserError(f"{where}: not there; the report is made from it, evaluate the run first")
    return read_mapping(path)


def _read(files: RunFiles, path: Sequence[str], show: Callable[[Content], Shown]) -> Shown | None:
    found = files.find(*path)
    if found is None:
        return None
    try:
        return show(read_mapping(found))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(f"{found}: damaged ({type(error).__name__}: {error}); delete its folder") from error


def _logs(files: RunFiles, metrics: Content) -> list[Log]:
    points = checkpoints(metrics)
    best = {point.arm: point.step for point in points if point.kind == "best"}
    folders = {START: ("sft",)} | {arm: ("train", arm) for arm in files.trained()}
    logs = []
    for arm in dict.fromkeys([START, *(point.arm for point in points if point.arm in folders), *folders]):
        paths = (files.find(*folders[arm], name) for name in ("steps.jsonl", "validation.jsonl"))
        steps, validation = ([] if path is None else read_rows(path) for path in paths)
        lost = files.find(*folders[arm], "lost.json")
        found = files.find(*folders[arm], "thresholds.json")
        contents = (None if path is None else read_mapping(path) for path in (lost, found))
        logs.append(Log(arm, steps, validation, best.get(arm), *contents))
    return logs


def _figures(logs: Sequence[Log], metrics: Content) -> dict[str, list[Figure]]:
    kept, _ = of_this_reward(logs, metrics)
    frontier, utility = figures.frontier_figure(metrics), figures.utility_figure(metrics)
    return {
        "curves": figures.learning_curves(kept),
        "supervised": figures.supervised_curves(kept),
        "signals": figures.training_signals(kept),
        "admission": figures.admission_figures(kept, metrics),
        "frontier": [frontier] if frontier else [],
        "utility": [utility] if utility else [],
    }


def _decision(content: Content) -> Section:
    trial = content["experiment"]
    blocks = [
        Block("verdict", decision_sentences(content)),
        Block("pre", content["serve"]),
        Block("table", decision_table(content), "The lists that compete"),
        Block(
            "quiet",
            "The simplest list first. NDCG@10, with 95 % intervals over users, is from validation, by which the list is"
            " chosen; test cases do not influence the choice. Coverage: the share of the catalogue in some list of ten."
            " Tail: the share of recommended items that are not among the most bought. Invalid: the share of Semantic"
            " IDs in a beam that name no item. The last column is the median time of one list.",
        ),
    ]
    if trial:
        asked = f"To try it on users, half of whom get {content['control']}; the plan is {trial['plan']}:"
        blocks += [Block("p", asked), Block("pre", trial["serve"])]
    return Section("decision", "Decision", blocks, "Decision")


def _training(files: RunFiles, metrics: Content, decision: Content | None) -> list[Section]:
    def diagnosis(content: Content) -> list[Block]:
        verdict = content["verdict"]
        asked = f"Does re-ranking by this reward help? {verdict['decision'].replace('_', ' ').capitalize()}."
        text = [*verdict["sentences"][:2], *list_advice(content, decision, files.directory)]
        link = "The whole diagnosis" if (files.directory / "diagnose.html").is_file() else ""
        return [Block("verdict", [asked, *text], verdict["decision"]), Block("link", link, "diagnose.html")]

    def strata(content: Content) -> list[Block]:
        link = "The tables" if (files.directory / "strata.html").is_file() else ""
        how = Block("quiet", " ".join(strata_summary(content)))
        drawn = [how, Block("charts", strata_figures(content)), Block("link", link, "strata.html")]
        return [Block("details", drawn, "Where re-ranking by the reward helps, and where shuffled rewards do")]

    def paired(content: Content) -> list[Block]:
        tables = {name: table for key, name in REFERENCES.items() if (table := paired_table(content, key))}
        return [
            Block("h3", "User by user, test cases"),
            Block(
                "quiet",
                f"Each checkpoint minus the reference, over the same {content['users']:,} users, with 95 % bootstrap"
                " intervals. An interval that holds 0 shows no difference. Among many arms, some intervals exclude 0 by"
                " chance, and another seed can differ by more: adagrpo compare tests both.",
            ),
            Block("charts", [figure for key in REFERENCES for figure in paired_figures(content, key)]),
            *(
                block
                for name, table in tables.items()
                for block in (Block("h4", f"Minus {name}"), Block("table", table, f"Minus {name}"))
            ),
        ]

    against = _read(files, ("report", "paired", "paired.json"), lambda content: content)
    summary = summary_sentences(metrics, baselines=decision is None, paired=against)
    first = 3 if decision is None else 0
    verdict = [Block("verdict", summary[:first]), Block("p", " ".join(summary[first:]))]
    verdict += _read(files, ("diagnose", "diagnose.json"), diagnosis) or []
    verdict += _read(files, ("strata", "strata.json"), strata) or []
    points = checkpoints(metrics)
    measured = [split for split in SPLITS if any(point.value(split, "hr@10") is not None for point in points)]
    results = [
        block
        for split in measured
        for block in (Block("h3", f"{split.capitalize()} cases"), Block("table", results_table(metrics, split)))
    ]
    if results:
        results.append(
            Block(
                "quiet",
                "Bold: the best of its column. The best checkpoint was chosen on validation, where step 0 is a"
                " candidate; the final one is the last step. Hallucination: the share of the first ten sequences of an"
                " unconstrained beam that name no item. A high mean reward says only that the ranker likes the list.",
            )
        )
        results += _read(files, ("report", "paired", "paired.json"), paired) or []
        breadth = {split: columns for split in SPLITS if (columns := shown_columns(points, split, ReportPart.BREADTH))}
        for split, columns in list(breadth.items())[:1]:
            results.append(Block("h3", f"Head, tail and breadth, {split} cases"))
            results.append(Block("table", results_table(metrics, split, columns)))
    logs = _logs(files, metrics)
    drawn, (_, elsewhere) = _figures(logs, metrics), of_this_reward(logs, metrics)
    curves, supervised, signals = drawn["curves"], drawn["supervised"], drawn["signals"]
    text = (
        "Measured on a fixed sample of users during training; step 0 is the starting policy. A ring marks the best"
        " checkpoint."
    )
    why = "is left out: the arm was trained when the run had another reward."
    learning = [
        Block("quiet", text if curves else ""),
        Block("quiet", f"The mean reward of {', '.join(elsewhere)} {why}" if elsewhere else ""),
        Block("charts", curves),
        Block("h3", "Starting policy" if supervised else ""),
        Block("charts", supervised),
    ]
    admitted = (
        "The gate admits a sample that is hard for the policy and whose logged item the reward ranks high. If the"
        " dashed line (shuffled rewards) is close to the top of the admitted samples, the gate does not depend on the"
        " reward."
    )
    failures = failures_table(logs)
    went_wrong = (
        "A step with a number that is not finite is skipped. A group without a valid item has no effect. An arm that"
        " loses its policy is stopped, and its best checkpoint counts."
    )
    count = f"{len(signals)} chart{'' if len(signals) == 1 else 's'} of what was logged at each step"
    training = [
        Block("details", [Block("charts", signals)] if signals else [], count),
        *([Block("h3", "What went wrong while training"), Block("quiet", went_wrong)] if failures else []),
        Block("table", failures),
    ]
    searched = next((log for log in logs if log.thresholds is not None), None)
    thresholds = (
        []
        if searched is None
        else [
            Block("h3", "Thresholds by admission"),
            Block("p", f"{searched.arm}: {thresholds_sentence(searched.thresholds or {})}."),
            Block("charts", figures.threshold_figures(searched)),
        ]
    )
    admission = [Block("quiet", admitted if drawn["admission"] else ""), Block("charts", drawn["admission"])]
    return [
        Section("verdict", "Verdict on training" if decision else "Verdict", verdict, "Verdict"),
        Section("results", "Results", results, "Results"),
        Section("validity", "Retrieval against validity", [Block("charts", drawn["frontier"])]),
        Section("truth", "Reward against truth", [Block("charts", drawn["utility"])]),
        Section("curves", "Learning curves", learning, "Learning curves"),
        Section("admission", "Admission", [*thresholds, *admission], "Admission"),
        Section("signals", "Training signals", training),
    ]


def _made_from(files: RunFiles, metrics: Content) -> list[Section]:
    def quality(report: Content) -> list[Block]:
        text = (
            "Validation cases over the full catalogue, means with 95 % bootstrap intervals over users. Item strata"
            " divide the cases by their logged item; the correlation is over the items of the stratum."
        )
        return [
            Block("h3", "As a reward, by stratum"),
            Block("quiet", f"{text} {calibration_text(report)}"),
            Block("table", strata_table(report)),
        ]

    data, catalog = [Block("facts", facts(metrics.get("dataset")))], facts(metrics.get("catalog"))
    if catalog:
        counted = (
            "Distinct sequences and collisions are counted before collisions are resolved. Density: items per possible"
            " sequence."
        )
        data += [Block("h3", "Semantic IDs"), Block("quiet", counted), Block("facts", catalog)]
        data += [Block("table", levels_table(metrics["catalog"]), "Codes by level")]
    ranker: list[Block] = []
    for split in SPLITS:
        if table := ranking_table(metrics, split):
            ranker += [Block("h3", f"{split.capitalize()} cases"), Block("table", table, f"Rankings on {split}")]
    if ranker:
        text = (
            "How well the reward model retrieves items by itself, and what re-ranking by it at serving time gives"
            " without training. Bold: the best of its column."
        )
        ranker.insert(0, Block("quiet", text))
    ranker += _read(files, ("ranker", "report", "report.json"), quality) or []
    described = {} if (path := files.find("run.yaml")) is None else read_mapping(path)
    threads = described.get("threads")
    versions = "Versions" if threads is None else f"Versions, {threads} thread{'' if threads == 1 else 's'}"
    configuration = [
        Block("details", [Block("pre", dump_yaml(part, allow_unicode=True))] if part else [], summary)
        for summary, part in (
            ("Resolved configuration", described.get("config")),
            ("Data files", described.get("data")),
        )
    ]
    if known := facts(described.get("versions")):
        configuration.insert(1, Block("details", [Block("facts", known)], versions))
    if any(block.content for block in configuration):
        configuration.insert(0, Block("quiet", metrics.get("config_hash")))
    return [
        Section("data", "Data and catalogue", data, "Data and catalogue"),
        Section("ranker", "Ranker", ranker, "Ranker"),
        Section("configuration", "Configuration", configuration, "Configuration"),
        Section("stages", "Stages", [Block("table", stage_table(files.events()))], "Stages"),
    ]


USERS_PAGE = "users.html"
MARK = "\N{HEAVY CHECK MARK} "


class ShownUser(NamedTuple):
    """A user with a test case; items are texts."""

    user: str
    history: Sequence[str]  # the latest, oldest first
    earlier: int  # items of the history before these
    wanted: Sequence[str]  # what the user took next
    lists: Mapping[str, Sequence[tuple[str, bool]]]  # items, best first, and whether the user took them; by list


def write_users(directory: Path, name: str, users: Sequence[ShownUser]) -> Path:
    """Write users.html and return its path."""
    sections = []
    for number, one in enumerate(users):
        names = [*one.lists]
        length = max(map(len, one.lists.values()), default=0)
        rows, hits = [], set()
        for rank in range(length):
            cells = [str(rank + 1)]
            for column, found in enumerate(one.lists.values(), 1):
                title, hit = found[rank] if rank < len(found) else (MISSING, False)
                cells.append(MARK + title if hit else title)
                hits |= {(rank, column)} if hit else set()
            rows.append(tuple(cells))
        had = f"{one.earlier} earlier items, then " if one.earlier else ""
        blocks = [
            Block("p", f"Had: {had}{'; '.join(one.history)}."),
            Block("p", f"Took next: {'; '.join(one.wanted)}."),
            Block("table", Table.of(["rank", *names], rows, left=len(names) + 1, best=hits), f"Lists of {one.user}"),
        ]
        sections.append(Section(f"user-{number + 1}", one.user, blocks, one.user))
    text = (
        f"{len(users)} users, drawn from the test cases by the seed of the run, and the first ten items of each list"
        f" that was measured, the chosen one first. {MARK.strip()} marks what the user took next."
    )
    link = Block("link", "The report", "report.html")
    opening = Section("lists", "Lists of some users", [Block("quiet", text), link])
    path = directory / USERS_PAGE
    write_file(path, page(f"{name}: lists of some users", name, [opening, *sections]))
    return path
