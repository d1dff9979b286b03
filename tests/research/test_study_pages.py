"""Tables and charts of studies are what their results say, and their pages quote them; more in `test_documents`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml

from adagrpo.metrics import hit_rate
from adagrpo.report.page import read_rows
from adagrpo.report.tables import to_markdown
from adagrpo.statistics import holm
from research.closed_loop import tables as closed_loop
from research.decisions import tables as decisions
from research.decisions.sets import difference, unpacked
from research.decisions.shops import upper_share
from research.decisions.single_models import comparisons
from research.exposed_feed import fused
from research.exposure_bias import tables as exposure_bias
from research.figures.public_sets import PUBLISHED, label
from research.gate_best_case import tables as gate_best_case
from research.interleaving import measure as interleaving
from research.off_policy_logs import measure as off_policy_logs
from research.pages.frontier import power_table
from research.pages.gate_ratio import beside_curve, ratio_table, read_ratio
from research.paper_gate import random_exposures
from research.random_exposure import propensity
from research.shop_script import __main__ as shop_script
from research.small_data import table as small_data
from research.tokenizers import measure as tokenizers
from research.worlds import tables as worlds

STUDIES = Path(__file__).parents[2] / "research"
SETS_PLAN = STUDIES / "decisions" / "sets.yaml"

INTERVAL = re.compile(r"[+−-]?[\d.]+(?: %)? \([+−-]?[\d.]+ (?:…|to) [+−-]?[\d.]+(?:; [^)]*)?\)")
GENERATED = re.compile(r"<!-- table: .*?<!-- end of table -->", re.DOTALL)  # `research.pages --check` compares these
MARKS = re.compile(r"<!-- (?:end of )?\w+(?:: [^>]*)? -->")


def tables() -> list[Path]:
    return [*STUDIES.glob("*/tables.md"), *STUDIES.glob("*/tables/*.md")]


def page(study: str) -> str:
    return (STUDIES / study / "tables.md").read_text(encoding="utf-8")


def rows(study: str, name: str = "rows") -> list[dict[str, object]]:
    return [dict(row) for row in read_rows(STUDIES / study / f"{name}.jsonl")]


def of_tokenizers() -> Iterable[str]:
    found = rows("tokenizers", "tokenizers")
    names = list(dict.fromkeys(str(row["tokenizer"]) for row in found))
    yield from to_markdown(tokenizers.audit_table(found, names)).splitlines()
    for line in to_markdown(tokenizers.policy_table(STUDIES / "nowhere", found, names)).splitlines():
        yield " | ".join(line.split(" | ")[:4])  # the differences need the users' ranks, which are not kept


PARTS: dict[str, Callable[[], Iterable[str]]] = {
    "decisions": lambda: [decisions.written()],
    "exposed_feed": lambda: [fused.table(rows("exposed_feed", "fused"))],
    "exposure_bias": lambda: map(to_markdown, exposure_bias.tables(rows("exposure_bias", "exposure-bias")).values()),
    "gate_best_case": lambda: [
        gate_best_case.written(page("gate_best_case"), rows("gate_best_case", group), group)
        for group in ("gates", "paper")
    ],
    "interleaving": lambda: [interleaving.table(rows("interleaving"))],
    "off_policy_logs": lambda: off_policy_logs.tables(rows("off_policy_logs")).values(),
    "paper_gate": lambda: [random_exposures.table(rows("paper_gate", "random-kuairand-clicks"))],
    "random_exposure": lambda: (
        f"| {' | '.join(cells[3:])} |\n" for cells in propensity.table(rows("random_exposure", "propensity")).rows
    ),
    "shop_script": lambda: [shop_script.table(rows("shop_script"))],
    "small_data": lambda: [to_markdown(small_data.table(read_rows(STUDIES / "small_data" / "small-data.jsonl")))],
    "tokenizers": of_tokenizers,
}


@pytest.mark.parametrize("study", PARTS)
def test_tables_say_what_their_results_say(study: str) -> None:
    parts = list(PARTS[study]())
    assert parts and all(part in page(study) for part in parts)


def test_intervals_that_a_page_quotes_stand_in_a_table() -> None:
    known = "".join(path.read_text(encoding="utf-8") for path in tables())
    folders = {STUDIES, *(path.parent for path in STUDIES.glob("*/tables*"))}
    pages = [folder / "README.md" for folder in folders if (folder / "README.md").is_file()]
    by_hand = {path.parent.name: GENERATED.sub("", path.read_text(encoding="utf-8")) for path in pages}
    quoted = {name: INTERVAL.findall(text) for name, text in by_hand.items()}
    assert len(pages) >= 9 and sum(map(len, quoted.values())) > 100
    assert [(name, text) for name, found in quoted.items() for text in found if text not in known] == []


def of_paper_gate() -> Iterable[str]:
    plan, found = read_ratio()
    tested = ratio_table(plan, found, short=True).rows
    ratios = [short(row[5].split()[0]) for row in tested]
    yield f"has {said(ratios)} of a random gate's invalid Semantic IDs"
    yield f"none is significant (p {said(short(f'{float(row[6]):.2f}') for row in tested)})"
    yield f"ratios of {said(short(row[7]) for row in tested)} would have been found"
    costs = [short(row[8].split()[0].strip("\N{MINUS SIGN}")) for row in tested[1:]]
    yield f"is paid with {costs[0]} and {costs[1]} points of HR@10"
    pairs = {(row[0], row[1]): row[5] for row in ratio_table(plan, found).rows}
    sets = dict.fromkeys(name for name, _ in pairs)
    yield f"a random one to {said(short(pairs[name, 'random-a over none-1'].split()[0]) for name in sets)} of no gate's"
    yield f"has {pairs['Office', 'paper-c over random-c'][1:]} of the random gate's invalid ones on Office"
    yield f"has {said(short(pairs[name, 'paper-a over variance-a'].split()[0]) for name in sets)} of their invalid ones"
    curve = [row[3] for row in beside_curve(found).rows if row[1] in ("paper-a", "random-a")]
    assert all("+" in text.split("to")[1] for text in curve)  # no interval excludes zero
    below = sorted(short(text.split()[0].strip("\N{MINUS SIGN}")) for text in curve)
    yield f"both gates have {below[0]} to {below[-1]} points less HR@10 than the curve"
    earlier = {row[0]: row for row in power_table(STUDIES, ["gate-kuairand-clicks"]).rows}
    yield "KuaiRand's " + joined(earlier["KuaiRand"][1], " and ")


def said(numbers: Iterable[str]) -> str:
    *first, last = numbers
    return f"{', '.join(first)} and {last}"


def short(number: str) -> str:
    return number.removeprefix("0")


def joined(numbers: str, last: str) -> str:
    *first, end = (re.sub("^0", "", number) for number in numbers.split(", "))
    return ", ".join(first) + last + end


def of_leaks() -> Iterable[str]:
    found = [(str(row["reward"]), bool(row["honest"]), bool(row["signs"])) for row in rows("leaks", "leaks")]
    kinds = {
        "planted": [named for name, honest, named in found if not honest and "whole logs" not in name],
        "plainest": [named for name, _, named in found if name.startswith("all users")],
        "tenth": [named for name, _, named in found if name.startswith("10 %")],
        "whole": [named for name, _, named in found if "whole logs" in name],
        "honest": [named for _, honest, named in found if honest],
    }
    counts = {kind: (sum(named), len(named)) for kind, named in kinds.items()}
    assert counts["honest"] == (0, 84) and counts["plainest"] == (24, 24)
    yield f"None of 84 honest rewards was named, and {counts['planted'][0]} of {counts['planted'][1]} planted leaks"
    yield f"{counts['tenth'][0]} of {counts['tenth'][1]} that know a tenth of the users'"
    yield f"it was {counts['whole'][0]} of {counts['whole'][1]}"


def of_random_videos() -> Iterable[str]:
    found = read_rows(STUDIES / "exposed_feed" / "exposed-feed.jsonl")
    for order, strength in (("samples-1", 1), ("samples-4", 4)):
        gained = [row["judges"]["random"]["clicked"]["difference"]["auc"] for row in found if row["order"] == order]
        assert all(one["low"] < 0 < one["high"] for one in gained) == (strength == 1)
        yield joined(", ".join(f"{100 * one['mean']:+.2f}" for one in gained), " and ")


def of_shops_counts() -> tuple[int, int]:
    """In how many runs the fused list is best by truth, and from how many `decide` departed, each to its loss."""
    best = left = 0
    for row in read_rows(STUDIES / "decisions" / "shops.jsonl"):
        served = {name: one["true_utility@10"] for name, one in row["lists"].items() if "/" not in name}
        best += max(served, key=served.__getitem__) == "fuse"
        left += row["chosen"] != "fuse"
        assert row["chosen"] == "fuse" or served[row["chosen"]] < served["fuse"]
    return best, left


def of_shops() -> Iterable[str]:
    found = read_rows(STUDIES / "decisions" / "shops.jsonl")
    best, left = of_shops_counts()
    yield f"the fused list was best by truth in {best} of {len(found)} runs"
    yield f"each of the {left} departures from it cost utility"
    means = (np.mean([row["lists"][name]["true_utility@10"] for row in found]) for name in ("ranker", "popularity"))
    ranker, popularity = (f"{mean:.4f}".removeprefix("0") for mean in means)
    yield f"its utility is {ranker}, below popularity's {popularity}"


def means_over(best: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of a set's rows, of pairs of a set and a value."""
    pairs = list(best)
    return {name: float(np.mean([value for one, value in pairs if one == name])) for name, _ in pairs}


def of_sets() -> Iterable[str]:
    found, plan = read_rows(STUDIES / "decisions" / "sets.jsonl"), yaml.safe_load(SETS_PLAN.read_text("utf-8"))
    own = [row for row in found if row["set"] in plan["december"]["sets"]]
    assert all(row["chosen"] == "fuse" for row in own)
    compared = [one for one in comparisons(found, plan["december"]) if one.p_holm is not None]
    assert {one.single for one in compared if one.set != "ml-1m"} == {"ranker"}
    gained = [100 * min(over.mean for over in (one.gained[0], one.reward) if over is not None) for one in compared]
    yield f"in all {len(own)} runs of the {len(compared)} public sets that log choices"
    yield f"{min(gained):.1f} to {max(gained):.1f} points of HR@10 above the strongest of our single models and the"
    for other, said in (("rerank", "above re-ranking"), ("fuse-without-reward", "above the one without a reward")):
        means = [100 * mean for mean in means_over((row["set"], row["gained"][other][0]) for row in own).values()]
        yield f"{min(means):.1f} to {max(means):.1f} points {said}"
    not_above = {one.set for one in compared if one.reward is not None and one.reward.low <= 0}
    assert not_above == {"lastfm"}  # the one that is named
    times = [row["contenders"]["fuse"]["milliseconds"] for row in own]
    yield f"A fused list takes {min(times):.0f} to {max(times):.0f} ms in these rows"
    for name in ("amazon-office", "amazon18-scientific", "lastfm"):
        tests = [row["contenders"]["reward"]["test"]["hr@10"] for row in own if row["set"] == name]
        yield f"{np.mean(tests):.4f} on {label(name)}".replace("0.", ".")
    below = {
        one.set: f"{100 * (PUBLISHED[one.set][0] - one.means['single'][0]):.2f}".removeprefix("0")
        for one in compared
        if one.set in PUBLISHED
    }
    order = ("amazon-beauty", "amazon-toys", "amazon-sports", "amazon18-scientific", "ml-1m")
    yield "by {} (Beauty), {} (Toys), {} (Sports), {} (Scientific) and {} points".format(*(below[one] for one in order))
    without = [(row["set"], row["trained"], row["gained"]["fuse-without-reward"][0]) for row in found]
    november = [
        (row["set"], row["trained"], row["gained"]["fuse-without-reward"][0])
        for row in read_rows(STUDIES / "decisions" / "sets-november.jsonl")
        if "fuse-without-reward" in row["gained"]
    ]
    parts = [
        means_over((name, gain) for name, trained, gain in rows if not trained)[name]
        for rows in (november, without)
        for name in ("amazon-beauty", "amazon-toys")
    ]
    first, second, third, last = (f"{100 * part:.2f}".removeprefix("0") for part in parts)
    yield f"{first} points on Beauty and {second} on Toys, now {third} and {last}"


def of_rewards_part() -> Iterable[str]:
    found, plan = read_rows(STUDIES / "decisions" / "sets.jsonl"), yaml.safe_load(SETS_PLAN.read_text("utf-8"))
    above = []
    for name in plan["december"]["sets"]:
        ranks = [row["ranks"] for row in found if row["set"] == name]
        hits = ([hit_rate(unpacked(one[of]), 10) for one in ranks] for of in ("fuse", "fuse-without-reward"))
        if difference(*hits).low > 0:
            above.append(label(name))
    yield "an interval above zero on " + joined(", ".join(above), " and ")


def of_feed() -> Iterable[str]:
    found = read_rows(STUDIES / "decisions" / "sets.jsonl")
    feeds = [[row for row in found if row["set"] == name] for name in ("kuairand-clicks", "kuairand-clicks-alike")]
    weighted, alike = (np.mean([row["contenders"]["fuse"]["test"]["hr@10"] for row in rows]) for rows in feeds)
    yield f"they cost {100 * (alike - weighted):.1f} points of logged hits"
    for rows in feeds:
        better = [re.match(r"click_through orders .* by \+([\d.]+) ", row["doubts"][0])[1] for row in rows]
        yield joined(", ".join(better), " and ")
    assert [sum(row["chosen"] != "fuse" for row in rows) for rows in feeds] == [0, 1]


def of_ties() -> Iterable[str]:
    found = [row for row in read_rows(STUDIES / "decisions" / "sets.jsonl") if row["seed"] == 1]
    tests = {row["set"]: {name: one["test"] for name, one in row["contenders"].items()} for row in found}
    changes = []
    for name in ("amazon-beauty", "amazon-toys", "amazon-sports"):
        pair = (tests[name], tests[f"{name}-ties"])
        both = (" / ".join(f"{one['fuse'][metric]:.4f}" for metric in ("hr@10", "ndcg@10")) for one in pair)
        yield "from {} to {} on ".format(*both).replace("0.", ".") + label(name)
        changes.append({one: [f"{test[one]['hr@10']:.4f}".removeprefix("0") for test in pair] for one in pair[0]})
    for one, called in (("ranker", "the single ranker goes"), ("ease", "EASE")):
        yield f"{called} from " + joined(", ".join(" to ".join(change[one]) for change in changes), " and ")
    gained = [
        100
        * (test["fuse"]["hr@10"] - max(test[one]["hr@10"] for one in ("ease", "ranker", "sft", "item_knn", "user_knn")))
        for name, test in tests.items()
        if name.endswith("-ties")
    ]
    yield f"the fused list stays {min(gained):.1f} to {max(gained):.1f} points above it"


def of_earlier() -> Iterable[str]:
    rows = {row["set"]: row for row in read_rows(STUDIES / "decisions" / "earlier.jsonl")}
    said = (
        f"{{:+.1f}} ({{:+.1f}} to {{:+.1f}}){unit} on {label(name)}".format(
            *(1000 * end for end in rows[name]["fused"]["gained"])
        )
        for name, unit in (("lastfm", " thousandths"), ("amazon18-scientific", ""), ("amazon-office", ""))
    )
    yield joined(", ".join(said), " and ")
    below = {name for name, row in rows.items() if row["trees"]["ndcg@10"][1] < row["fused"]["ndcg@10"][0]}
    assert below == {"lastfm", "amazon-office"}
    trees, fused = (rows["amazon18-scientific"][order]["ndcg@10"][1] for order in ("trees", "fused"))
    yield f"on Scientific they have {trees:.4f} where it, with the same choices, has {fused:.4f}".replace("0.", ".")


def of_look_ups() -> Iterable[str]:
    rows = {row["set"]: row["gained"] for row in read_rows(STUDIES / "decisions" / "look_ups.jsonl")}
    order = ("lastfm", "amazon-office", "amazon18-scientific", "online-retail", "ml-100k")
    for gained in rows.values():
        alone = [interval for name, interval in gained.items() if name != "kept"]
        adjusted = holm([interval[3] for interval in alone])
        assert not [one for one, p_value in zip(alone, adjusted, strict=True) if one[0] > 0 and p_value <= 0.05]
    texts = ["{:+.1f} ({:+.1f} to {:+.1f})".format(*(1000 * end for end in rows[name]["kept"][:3])) for name in order]
    yield f"would keep gain {', '.join(texts[:-1])} and {texts[-1]} thousandths"


def of_powers() -> Iterable[str]:
    rows = read_rows(STUDIES / "exposed_feed" / "power.jsonl")
    assert [row["power"] for row in rows] == [0.5] * 3
    first, last = (
        [f"{-100 * row['against'][power][0]:.2f}".removeprefix("0") for row in rows] for power in ("0.0", "1.0")
    )
    yield f"worse, power 1 {last[0]}, {last[1]} and {last[2]}"
    yield f"{first[0]}, {first[1]} and {first[2]} points of AUC"


def of_shops_of_kinds() -> Iterable[str]:
    found = read_rows(STUDIES / "worlds" / "worlds.jsonl")
    mean = {name: 100 * worlds.of_worlds(found, values).mean() for name, values in worlds.regrets(found).items()}
    yield f"It loses {mean[worlds.CHOICE]:.1f} % of the best list's true utility"
    constant = min((name for name in mean if name not in (worlds.CHOICE, worlds.HIGHEST)), key=lambda name: mean[name])
    yield f"({constant}) loses {mean[constant]:.1f} %"
    yield f"highest NDCG@10 on validation loses {mean[worlds.HIGHEST]:.1f} %"
    gained = worlds.of_worlds(found, worlds.gained_on_start(found))
    below = int((gained < 0).sum())
    bound = 100 * upper_share(below, len(gained))
    share = 100 * below / len(gained)
    yield f"in {below} of {len(gained)} worlds ({share:.1f} %; the goal was 5 %)"
    yield f"by the exact bound in at most {bound:.1f} %"
    slots = [row for row in found if row["kind"] == "slots"]
    best = sum(max(row["utility"], key=row["utility"].__getitem__) == "item_knn" for row in slots)
    yield f"item-kNN is the best in {best} of {len(slots)} runs and is never taken"


QUOTED: dict[str, list[Callable[[], Iterable[str]]]] = {
    "decisions": [of_shops, of_sets, of_rewards_part, of_feed, of_ties, of_look_ups, of_earlier],
    "exposed_feed": [of_random_videos, of_powers],
    "leaks": [of_leaks],
    "paper_gate": [of_paper_gate],
    "worlds": [of_shops_of_kinds],
}


@pytest.mark.parametrize("study", QUOTED)
def test_sentences_of_a_page_have_the_figures_of_its_rows(study: str) -> None:
    text = (STUDIES / study / "README.md").read_text(encoding="utf-8")
    said = [sentence for made in QUOTED[study] for sentence in made()]
    assert said and [sentence for sentence in said if sentence not in text] == []


def test_other_pages_repeat_the_figures_of_a_study() -> None:
    research, *gate = (
        (STUDIES.parent / place).read_text(encoding="utf-8")
        for place in ("research/README.md", "docs/explanation/gate.md", "docs/how-to/choose-an-objective.md")
    )
    ratio = next(iter(of_paper_gate())).removeprefix("has ").partition(" of ")[0]
    assert all(ratio in page for page in (research, *gate))
    named = re.findall(r"\d+ of 168", next(iter(of_leaks())))
    best, left = of_shops_counts()
    strengths = [said.replace(" and ", ", ") for said in of_random_videos()]
    quoted = [*named, f"in {best} of 180 runs and each of {left} departures", *strengths]
    assert [said for said in quoted if said not in research] == []
    _, over_single, _, of_reward, *_ = of_sets()
    front = (STUDIES.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"{over_single.partition(' of HR')[0]} above the strongest" in text for text in (front, research))
    first, last = (of_reward.split()[place] for place in (0, 2))
    assert f"the reward gives {first} to {last}" in front and f"{first} to {last} points lower" in research


def test_the_chart_of_reward_quality_calls_the_earlier_gate_so() -> None:
    folder = STUDIES / "reward_quality" / "figures" / "quality-marketplace"
    drawn = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.svg"))
    assert ">earlier gate<" in drawn and "adagrpo" not in drawn


@pytest.mark.parametrize("path", tables(), ids=lambda path: path.relative_to(STUDIES).as_posix())
def test_files_of_tables_hold_headings_commands_and_tables_alone(path: Path) -> None:
    text = re.sub(r"^```\n.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in MARKS.sub("", text).splitlines() if line and not line.startswith(("#", "|"))] == []


@pytest.mark.slow  # draws charts anew
def test_files_of_studies_are_those_of_their_rows() -> None:
    for path, text in closed_loop.written().items():
        assert path.read_text(encoding="utf-8") == text, path.name
