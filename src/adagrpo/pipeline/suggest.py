"""Initial recipe for a log: columns, and sizes by fixed rules.

Two levels of K balanced codes, K the least power of two with K² >= 1.25 V; colliding items move to the nearest free
code. Measurements: docs/how-to/own-logs.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.config.models import TokenizerConfig
from adagrpo.config.yaml_text import json_text
from adagrpo.data.logs.question import Question, question_lines
from adagrpo.errors import UserError
from adagrpo.readers.cells import ONE_EACH
from adagrpo.readers.formats import UNNAMED, one_line

DENSITY = 1.25  # least code sequences per item; balanced codes need 1.1
MOST_CODES = 512  # per level; more items get three levels
STEPS = 2000  # least steps of sft, up to MOST_EPOCHS
LEAST_EPOCHS, MOST_EPOCHS = 10, 60
MANY_USERS, MANY_ITEMS = 20_000, 20_000
HR_50 = 50  # beam width for the default margin on hr@50
MOST_OF_BASKETS = 100  # items of a history of baskets
REPEATS = 0.01  # share of repeated interactions from which repeats are allowed as answers


class Sizes(NamedTuple):
    """Sizes of a recipe."""

    levels: int
    codes: int
    quantizer: str
    collisions: str
    batch_size: int
    epochs: int
    beam_width: int
    exclude_history: bool
    max_history: int


def sizes_for(*, users: int, items: int, longest: int, repeats: float, baskets: bool = False) -> Sizes:
    """Return sizes by the rules of this module.

    `longest` is the 95th percentile of interactions per user, `repeats` the share of those with an earlier item.

    >>> sizes_for(users=3000, items=800, longest=31, repeats=0.0)[:4]
    (2, 32, 'balanced_kmeans', 'nearest')
    """
    codes = max(4, 2 ** math.ceil(math.log2(math.sqrt(DENSITY * items))))
    few = codes <= MOST_CODES
    levels, codes = (2, codes) if few else (3, 256)
    quantizer, collisions = ("balanced_kmeans", "nearest") if few else ("kmeans", "level")
    batch = 256 if users >= MANY_USERS else 128
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(STEPS * batch / users)))
    beam = max(10, min(50, items))
    history = max(5, min(MOST_OF_BASKETS if baskets else 50, longest))
    return Sizes(levels, codes, quantizer, collisions, batch, epochs, beam, repeats < REPEATS, history)


def sizes_note(tokenizer: TokenizerConfig, items: int) -> str | None:
    """Suggest tokenizer sizes; None if set, or those of `init`.

    >>> sizes_note(TokenizerConfig(), 800).partition("; ")[2]
    'for 800 items `adagrpo init` chooses 2 levels of 32'
    """
    chosen = sizes_for(users=1, items=items, longest=1, repeats=0.0)
    given = (tokenizer.levels, tokenizer.codes)
    default = TokenizerConfig()
    if tokenizer.published is not None or given != (default.levels, default.codes) or given == chosen[:2]:
        return None
    return (
        f"note: Semantic IDs have the default size, {tokenizer.levels} levels of {tokenizer.codes} codes;"
        f" for {items:,} items `adagrpo init` chooses {chosen.levels} levels of {chosen.codes}"
    )


def recipe_text(
    preview: Mapping[str, Any],
    name: str,
    shown: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> str:
    """Return a commented recipe for the results of `preview_logs` on all rows of logs and of impressions (`shown`).

    `beside` has the keys of `data` for impressions and a service's exposure log.
    """
    file = preview["files"][0]
    if preview["missing"]:
        role = preview["missing"][0]
        if preview["unread_time"] is not None:
            raise UserError(f"{file}, {preview['unread_time']}")
        listed = ", ".join(column["name"] for column in preview["columns"])
        found = f"{file}: no column looks like the {role}; say which it is, --set data.columns.{role}=NAME, of {listed}"
        raise UserError(found + (f"; {UNNAMED}" if preview["unnamed"] else ""))
    if preview["lists"]:
        column = one_line(preview["roles"]["item"]["column"])
        raise UserError(f"{file}: {column} holds lists, each of which would be one item; {ONE_EACH}")
    counts = preview["counts"]
    if not {"timestamp", "order"} & preview["mapping"].keys():
        which = "say which does, --set data.columns.timestamp=NAME"
        raise UserError(f"{file}: no column says in which order things happened; {which}")
    if counts["users_with_fewer_than_3"] == counts["users"]:
        held_out = "of each the last two are held out, and the rest is learned from"
        raise UserError(f"{file}: no user has three interactions; {held_out}")
    question: Question | None = preview["question"]
    of_log = counts["repeats_of_user_and_item"] / max(1, counts["interactions"])
    repeats = of_log if question is None else question.repeats
    baskets = question is not None and question.baskets
    longest = counts["interactions_a_user"]["95 % have at most"]
    sizes = sizes_for(users=counts["users"], items=counts["items"], longest=longest, repeats=repeats, baskets=baskets)
    width = 160 if counts["items"] >= MANY_ITEMS else 96
    table, more = preview.get("items"), "with data.items also text and attributes"
    if table is not None:
        kinds = ", ".join(f"{kind}: 1.0" for kind in ("text", "attributes") if table[kind])
        more = f"add {kinds} to let items be close by their table too" if kinds else "the table has no text"
    lines = [
        "# Written by `adagrpo init` from the data; change what you know better. Every key: docs/reference/recipe.md",
        f"name: {json_text(name)}",
        f"max_history: {sizes.max_history}  # 95 % of the users have at most {longest} interactions",
        *_data(preview, shown, beside or {}),
        f"tokenizer:  # {counts['items']:,} items on {sizes.codes**sizes.levels:,} code sequences",
        f"  vectors: {{cooccurrence: 1.0}}  # {more}",
        f"  levels: {sizes.levels}",
        f"  codes: {sizes.codes}",
        f"  quantizer: {sizes.quantizer}",
        f"  collisions: {sizes.collisions}",
        f"policy: {{width: {width}, heads: 4, decoder_hidden: {2 * width}}}",
        f"sft: {{epochs: {sizes.epochs}, batch_size: {sizes.batch_size}, learning_rate: 2.0e-3}}",
        f"ranker: {{fit: {{epochs: {max(5, sizes.epochs // 2)}}}}}",
        "train:",
        "  arms: [nll, distill-tuned]  # docs/how-to/choose-an-objective.md; run `adagrpo diagnose` first",
        f"  fit: {{epochs: 2, batch_size: {sizes.batch_size}, learning_rate: 2.0e-4}}",
        "evaluation:",
        f"  beam_width: {sizes.beam_width}",
        f"  exclude_history: {json_text(sizes.exclude_history)}"
        f"  # {100 * repeats:.1f} % of the interactions repeat an item",
        *([] if sizes.exclude_history else ["  own_items: true  # a user's own items are a list too"]),
    ]
    if sizes.beam_width < HR_50:
        lines.append(
            f"compare: {{margins: {{hallucination@10: 0.005}}}}  # no list has {HR_50} items: none for HR@{HR_50}"
        )
    return "\n".join(lines) + "\n"


def _data(preview: Mapping[str, Any], shown: Mapping[str, Any] | None, beside: Mapping[str, Any]) -> list[str]:
    counts = preview["counts"]
    lost = max(sum(entry["rows"] for entry in one["lost"]) for one in (preview, shown) if one is not None)
    understood = preview["understood"]
    logs = [f"    - {json_text(str(Path(path).resolve()))}" for path in preview["files"]]
    columns = [
        f"    {role}: {json_text(column)}  # {preview['roles'][role]['reason']}"
        for role, column in preview["mapping"].items()
    ]
    lines = [f"data:  # {counts['rows']:,} rows, {counts['users']:,} users", "  logs:", *logs, "  columns:", *columns]
    if "time" in understood and "from" in understood["time"]:
        lines.append(f"  # times are from {understood['time']['from']} to {understood['time']['to']}")
    if "event" in preview["mapping"]:
        kinds = json_text(preview["events"])
        if preview["kept"] is None:
            lines.append(f"  # all kinds of events count; to read some: --set 'data.keep_events=[KIND]', of {kinds}")
        else:
            lines.append(f"  keep_events: {json_text(preview['kept'])}  # of {kinds}")
    if "rating" in preview["mapping"]:
        lines.append("  # min_rating: 4  # all ratings count as interactions as it is")
    if preview["no_items"]:
        lines.append(
            f"  drop_items: {json_text(preview['no_items'])}  # ids without a digit: postage, fees and the like"
        )
    asked: Question | None = preview["question"]
    if asked is not None and (asked.by_time is not None or asked.baskets):
        lines.append(f"  split:  # {question_lines(asked)[0]}")
        if (times := asked.by_time) is not None:
            lines += ["    kind: temporal  # or leave_one_out", f"    validation_from: {times.validation_from}"]
            lines.append(f"    test_from: {times.test_from}")
        lines += ["    baskets: true"] if asked.baskets else []
    if lost:
        lines.append(f"  max_bad_rows: {lost}  # so many cannot be read; `adagrpo inspect` says why")
    for key, content in beside.items():
        rows = "" if shown is None or key != "impressions" else f"{shown['counts']['rows']:,} rows of "
        use = " at random, judges the lists" if key == "random" else "; rankers learn from it"
        lines.append(f"  {key}: {json_text(content)}  # {rows}what was shown{use}")
    if "items" in preview:
        table = preview["items"] | {"path": str(Path(preview["items"]["path"]).resolve())}
        lines.append(f"  items: {json_text(table)}")
    lines.append(f"  drop_duplicates: false  # {counts['exact_duplicates']:,} rows repeat user, item and time")
    tied = counts["same_user_and_time_as_another"]
    if tied and preview["kind"] == "interactions" and not (asked is not None and asked.baskets):
        lines.append(
            f"  # shuffle_ties: {{}}  # {tied:,} share user and time with another; as it is they stand as in the file"
        )
    return lines
