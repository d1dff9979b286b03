"""The commands inspect, init, prepare, collect and simulate."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from adagrpo.cli import log_roles
from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common, DryRun, LogFiles, MaxBadRows, Out, Replace, session
from adagrpo.cli.printing import print_plan, print_values
from adagrpo.errors import UserError

if TYPE_CHECKING:
    from adagrpo.data.logs.question import Question

# as in `Marketplace`, whose import takes seconds
USERS, ITEMS, EXPOSURE_BIAS = 2000, 1000, 0.5
REFUSED_SHOWN = 20  # rows that `collect` names


@Command("inspect", "your logs", sets="columns", draws=False)
def inspect(
    logs: LogFiles,
    common: Common,
    all_rows: Annotated[bool, typer.Option("--all", help="Read all rows, not only the first ones.")] = False,
) -> None:
    """Show columns of logs of one role, what they seem to be, and which rows would be dropped. Writes nothing."""
    logs = library.formats.files_of(logs)
    given, _, kept = column_settings(common.settings)
    for path in logs:
        library.formats.columns_of(path)
    try:  # read as one log, impressions would count as purchases
        roles = log_roles.by_role(logs, given=given)
        alike = not (roles.impressions or roles.exposures or roles.items)
    except UserError:  # the role of some file is unknown
        alike = False
    if not alike:
        raise UserError(
            f"inspect looks at files of one role; give {', '.join(map(str, logs))} one at a time, and all to `adagrpo"
            " init`, whose --orders, --impressions, --exposures and --items say which is which"
        )
    preview = library.preview.preview_logs(logs, None if all_rows else library.preview.ROWS, given, kept)
    preview["next"] = _next_commands(preview)
    if common.as_json:
        asked = preview.get("question")
        as_dict = asked and asked._asdict() | {"by_time": asked.by_time and asked.by_time._asdict()}
        typer.echo(json.dumps(preview | ({"question": as_dict} if "question" in preview else {})))
        return
    taken_for = {entry["column"]: f"{role} ({entry['reason']})" for role, entry in preview["roles"].items()}
    for one in preview["passed_over"]:
        taken_for.setdefault(one["column"], f"not read: {one['role']} needs {one['needs']}")
    rows = [
        (one["name"], one["type"], ", ".join(one["examples"]), taken_for.get(one["name"], ""))
        for one in preview["columns"]
    ]
    head = ("column", "values", "for example", "taken for")
    typer.echo(library.tables.to_text(library.tables.Table.of(head, rows, 4)))
    if preview["lists"]:
        column = preview["roles"]["item"]["column"]
        one_each = f"holds lists, each of which would be one item; {library.cells.ONE_EACH}"
        typer.echo(f"\n{library.formats.one_line(column)} {one_each}")
    if preview["missing"]:
        role = preview["missing"][0]
        unread = preview["unread_time"]
        which = f"say which it is: --set data.columns.{role}=NAME" if unread is None else unread
        typer.echo(f"\nno column looks like the {role}; {which}")
        if preview["unnamed"]:
            typer.echo(library.formats.UNNAMED)
        return
    typer.echo("\n" + "\n".join(library.preview.format_lines(preview["understood"])) + f"\nthese are {preview['kind']}")
    if len(preview["events"]) > 1:
        kinds = ", ".join(map(library.formats.one_line, preview["events"]))
        which = (
            "all are read; --set 'data.keep_events=[KIND]' reads some" if kept is None else f"read: {', '.join(kept)}"
        )
        typer.echo(f"kinds of events: {kinds}; {which}")
    print_values({name.replace("_", " "): value for name, value in preview["counts"].items()}, as_json=False)
    for entry in preview["lost"]:
        typer.echo(f"lost: {entry['rows']:,} rows, the first is row {entry['first_row']}: {entry['example']}")
    asked = [] if preview["question"] is None else library.question.question_lines(preview["question"])
    for note in [*preview["notes"], *library.question.order_notes(preview["left_out"], preview["no_items"]), *asked]:
        typer.echo(note)
    if preview["next"]:
        typer.echo("\n" + "\n".join(preview["next"]))


@Command("init", "your logs", sets="columns", draws=False)
def write_recipe(
    common: Common,
    logs: log_roles.RoledFiles = None,
    out: Annotated[Path, typer.Option("--out", help="The recipe, a new file.")] = Path("recipe.yaml"),
    orders: log_roles.Orders = None,
    impressions: log_roles.Impressions = None,
    exposures: log_roles.Exposures = None,
    random: log_roles.RandomExposures = None,
    user_key_file: log_roles.UserKeyFile = None,
    items: log_roles.ItemFile = None,
) -> None:
    """Write a commented recipe for logs, with columns filled in and sizes chosen from all their rows."""
    if out.exists():
        raise UserError(f"{out}: is there already; give another name with --out")
    given = column_settings(common.settings).logs
    roles = log_roles.by_role(logs, orders, impressions, exposures, items, user_key_file, random, given=given)
    text, notes, question = recipe_of_logs(roles, out.stem, common.settings)
    for note in [*notes, *([] if question is None else library.question.question_lines(question))]:
        common.console(out).note(note)
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder (--out)")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another name with --out") from error
    print_values({"recipe": str(out), "next": f"adagrpo run {out} --out runs/{out.stem}"}, common.as_json)


def recipe_of_logs(
    roles: log_roles.LogRoles, name: str, settings: tuple[str, ...]
) -> tuple[str, list[str], Question | None]:
    """Return the recipe for logs, notes on detected roles and unused columns, and what the recipe asks."""
    given, notes, items = column_settings(settings), list(roles.notes), roles.items
    preview = library.preview.preview_logs(roles.logs, None, given.logs, given.kept)
    if items is not None and not preview["missing"]:
        found = preview["items"] = library.preview.preview_items(items, preview["roles"]["item"]["column"])
        named = {"text_columns": found["text"], "attribute_columns": found["attributes"]}
        notes += [
            f"note: column '{library.formats.one_line(column)}' of {items} looks like numbers with decimal commas,"
            f" such as {library.formats.one_line(value)}; it is left out, as numbers are neither text nor attributes"
            for column, value in found.pop("commas").items()
        ]
        library.items.read_items(
            items, id_column=found["id_column"], **named
        )  # all of it: the recipe must run as written
    columns = _impression_columns(roles, given.shown)
    shown = library.preview.preview_logs(roles.impressions, None, columns) if columns else None
    text = library.suggest.recipe_text(preview, name, shown, roles.beside(columns))
    notes += library.question.order_notes(preview["left_out"], preview["no_items"])
    notes += [
        f"note: column '{one['column']}' is named like {one['role']} and is not read: its values are not {one['needs']}"
        for one in preview["passed_over"]
    ]
    return text, notes, preview["question"]


def _impression_columns(roles: log_roles.LogRoles, given: dict[str, str]) -> dict[str, str]:
    if not roles.impressions:
        return {}
    first = roles.impressions[0]
    found = library.preview.roles_of(first, given)
    for role in ("user", "item", "timestamp", "clicked"):
        if role not in found:
            columns = library.formats.listed(library.formats.columns_of(first))
            raise UserError(
                f"{first}: no column of impressions looks like {role}; say which it is,"
                f" --set data.impressions.columns.{role}=NAME, of {columns}"
            )
    return found


@Command("prepare", "your logs", sets="recipe")
def prepare(
    out: Out,
    common: Common,
    logs: log_roles.RoledFiles = None,
    orders: log_roles.Orders = None,
    impressions: log_roles.Impressions = None,
    exposures: log_roles.Exposures = None,
    random: log_roles.RandomExposures = None,
    user_key_file: log_roles.UserKeyFile = None,
    max_bad_rows: MaxBadRows = None,
    dry_run: DryRun = False,
    replace: Replace = False,
) -> None:
    """Read logs into a new run directory: filter, number, split. Columns: --set data.columns.user=uid."""
    given, (before, data) = column_settings(common.settings, only=False), library.pipeline.kept_settings(out)
    own = before.pop("data", {})
    judged = bool(own) and bool(random)  # random exposures for an existing run
    if not (logs or orders or impressions or exposures or judged):
        raise UserError("prepare: give log files, or --exposures and the folder of an exposure log")
    joins = (bool(own.get("logs")) or judged) and not logs and not orders
    kept = joins or not impressions
    roles = log_roles.by_role(
        logs, orders, impressions, exposures, None, user_key_file, random, given=given.logs, kept=kept
    )
    if roles.items is not None:
        raise UserError(f"{roles.items}: has no column of users; `adagrpo init` takes a table of items, prepare none")
    source = roles.beside(_impression_columns(roles, given.shown), publish=not dry_run)
    if joins:  # keep the catalogue and numbering of the run that served
        source = own | {key: (own.get(key) or {}) | value for key, value in source.items()}
    elif roles.logs:
        source["logs"] = [str(path.resolve()) for path in roles.logs]
    content = {"name": out.name} | before | {"data": source}
    config = library.config.resolve_config(content, common.overrides(max_bad_rows), "prepare")
    run = library.pipeline.Run(out, config, data if joins else Path(), common.console(out))
    if not (replace or dry_run):
        library.checks.check_logs(run)
    reset = library.pipeline.reset_settings(out, config)
    if reset:
        run.console.note(
            f"note: {', '.join(reset)} of run.yaml {'is' if len(reset) == 1 else 'are'} as by default from here on; to"
            f" keep what was set, give it by --set, or carry out `adagrpo run RECIPE --out {shlex.quote(str(out))}`"
        )
    for note in roles.notes:
        run.console.note(note)
    if config.data.exposures is not None and not config.data.logs:
        run.console.note(
            "note: the exposure log stands alone, so the catalogue is what was shown; to keep that of the run which"
            " served, give its folder as --out, or its logs beside --exposures"
        )
    if dry_run:
        print_plan(run, "prepare", common.as_json)
        return
    with session(run):
        summary = run.prepare()
    if config.data.split.kind != "impressions" and (
        hint := library.suggest.sizes_note(config.tokenizer, summary["items"])
    ):
        run.console.note(hint)
    joined = run.checked("exposures", "summary.json") if exposures is not None else None
    counts = {} if joined is None else json.loads(joined.read_text(encoding="utf-8"))
    if common.as_json:
        typer.echo(json.dumps(summary | ({"exposures": counts} if counts else {})))
        return
    if counts:
        print_values({name.replace("_", " "): count for name, count in counts.items() if count}, as_json=False)
    understood = summary.pop("understood")
    table = library.tables.to_text(library.run_tables.dataset_table(summary))
    typer.echo("\n".join(library.preview.format_lines(understood)) + f"\n\n{table}\n\nrun: {out}")


@Command("collect", "your logs", draws=False)
def collect_exposures(
    sources: Annotated[
        list[Path], typer.Argument(help="Files of JSON lines, parts of exposure logs, or folders that hold them.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder of an exposure log, or a new one.")],
    common: Common,
) -> None:
    """Copy exposure logs of other machines into one folder; again later, only what is new."""
    found = library.exposure_collect.collect_log(sources, to)
    counts = asdict(found) | {"refused": len(found.refused), "log": str(to)}
    if common.as_json:
        typer.echo(json.dumps(counts | {"refused_rows": found.refused[:REFUSED_SHOWN]}))
        return
    print_values({name.replace("_", " "): count for name, count in counts.items() if count}, as_json=False)
    for line in found.refused[:REFUSED_SHOWN]:
        typer.echo(f"refused: {line}")
    if len(found.refused) > REFUSED_SHOWN:
        typer.echo(f"and {len(found.refused) - REFUSED_SHOWN:,} more")


@Command("simulate", "your logs")
def simulate_logs(
    out: Out,
    common: Common,
    users: Annotated[int, typer.Option(min=1, help="Users of the shop.")] = USERS,
    items: Annotated[int, typer.Option(min=1, help="Items of the shop.")] = ITEMS,
    exposure_bias: Annotated[
        float, typer.Option(min=0.0, help="Exponent of popularity in what the shop shows; 0 ignores it.")
    ] = EXPOSURE_BIAS,
) -> None:
    """Write the logs, item table and truth of a simulated marketplace."""
    kind = "simulation"
    world = library.marketplace.Marketplace(
        users=users, items=items, exposure_bias=exposure_bias, seed=common.seed or 0
    )
    library.artifacts.check_replaceable(out, kind)
    simulation = library.marketplace.simulate(world)
    work = library.writing.temporary(out)
    library.marketplace.write_simulation(simulation, work)
    library.artifacts.seal(work, kind=kind, fingerprint=library.hashes.hash_json(asdict(world)))
    library.artifacts.publish(work, out)
    shown = simulation.impressions
    made = {"impressions": len(shown), "interactions": int(shown["clicked"].sum()), "folder": str(out)}
    print_values(made, common.as_json)


COLUMN_SETTINGS = ("data.columns.", "data.impressions.columns.", "data.keep_events")  # what `column_settings` reads


class ColumnSettings(NamedTuple):
    """Columns and events given by `--set`."""

    logs: dict[str, str]  # by role, of `data.columns.user=uid`
    shown: dict[str, str]  # by role, of `data.impressions.columns.user=uid`
    kept: tuple[str, ...] | None = None  # of `data.keep_events=[click]`


def column_settings(settings: tuple[str, ...], *, only: bool = True) -> ColumnSettings:
    """Return columns by role and events to keep; `only` refuses other settings."""
    given = ColumnSettings({}, {})
    of = {"data.columns": given.logs, "data.impressions.columns": given.shown}
    for setting in settings:
        key, equals, column = setting.partition("=")
        if equals and key == "data.keep_events":
            try:
                given = given._replace(
                    kept=library.data.EVENT_KINDS.validate_python(library.yaml_text.parse_yaml(column))
                )
            except library.pydantic.ValidationError as error:
                form = "write data.keep_events=[KIND, KIND], each a text or a whole number"
                raise UserError(f"--set {setting}: {form}") from error
            continue
        section, _, role = key.rpartition(".")
        if equals and section in of and role in library.data.Columns.model_fields:
            of[section][role] = library.yaml_text.column_name(column) or column
        elif only:
            known = ", ".join(library.data.Columns.model_fields)
            raise UserError(
                f"--set {setting}: write data.columns.ROLE=NAME, or data.keep_events=[KIND]; the roles are {known}"
            )
    return given


def _next_commands(preview: dict[str, Any]) -> list[str]:
    if preview["missing"] or preview["lists"]:
        return []

    def option(role: str, column: str) -> str:  # quoted where YAML would misread the name
        name = column if library.yaml_text.column_name(column) == column else library.yaml_text.json_text(column)
        return f"--set data.columns.{role}={shlex.quote(name)}"

    files = shlex.join(preview["files"])
    sets = [option(role, name) for role, name in preview["mapping"].items()]
    stated = [option(role, entry["column"]) for role, entry in preview["roles"].items() if entry["given"]]
    if preview["kept"] is not None:
        events = f"--set {shlex.quote('data.keep_events=' + library.yaml_text.json_text(preview['kept']))}"
        sets, stated = [*sets, events], [*stated, events]
    lost = sum(entry["rows"] for entry in preview["lost"])
    bad = [f"--max-bad-rows {lost}"] if lost else []
    if not {"timestamp", "order"} & preview["mapping"].keys():  # the others refuse logs without an order
        prepare = " ".join([f"adagrpo prepare {files} --out runs/mine", *sets, *bad])
        return [f"{prepare} --set data.split.kind=impressions"]
    decide = " ".join([f"adagrpo decide {files} --out runs/mine", *stated, *bad])
    return [" ".join([f"adagrpo init {files} --out recipe.yaml", *stated]), decide]
