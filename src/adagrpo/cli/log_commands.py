"""Commands for logs: inspect, init, prepare, collect, and simulate, which makes some."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.options import Command, Common, DryRun, LogFiles, MaxBadRows, Out, session
from adagrpo.cli.planning import print_plan
from adagrpo.cli.printing import print_values
from adagrpo.errors import UserError

__all__ = [
    "EXPOSURE_BIAS",
    "ITEMS",
    "USERS",
    "collect_exposures",
    "inspect",
    "prepare",
    "simulate_logs",
    "write_recipe",
]

# what `Marketplace` has, whose import takes seconds
USERS, ITEMS, EXPOSURE_BIAS = 2000, 1000, 0.5
REFUSED_SHOWN = 20  # rows of `collect` that are named


@Command("inspect", "your logs", sets="columns", draws=False)
def inspect(
    logs: LogFiles,
    common: Common,
    all_rows: Annotated[bool, typer.Option("--all", help="Read all rows, not only the first ones.")] = False,
) -> None:
    """Look at logs: columns, what they seem to be, what would be read and what would be lost. Writes nothing."""
    from adagrpo.data.logs.formats import UNNAMED, one_line
    from adagrpo.data.logs.lists import ONE_EACH
    from adagrpo.data.logs.preview import ROWS, format_lines, preview_logs
    from adagrpo.report import Table, to_text

    given, kept = _said(common.settings)
    preview = preview_logs(logs, None if all_rows else ROWS, given, kept)
    preview["next"] = _next_commands(preview)
    if common.as_json:
        typer.echo(json.dumps(preview))
        return
    taken_for = {entry["column"]: f"{role} ({entry['reason']})" for role, entry in preview["roles"].items()}
    for one in preview["passed_over"]:
        taken_for.setdefault(one["column"], f"not read: {one['role']} needs {one['needs']}")
    rows = [
        (one["name"], one["type"], ", ".join(one["examples"]), taken_for.get(one["name"], ""))
        for one in preview["columns"]
    ]
    typer.echo(to_text(Table(("column", "values", "for example", "taken for"), tuple(rows), ("left",) * 4)))
    if preview["lists"]:
        column = preview["roles"]["item"]["column"]
        typer.echo(f"\n{one_line(column)} holds lists, each of which would be one item; {ONE_EACH}")
    if preview["missing"]:
        role = preview["missing"][0]
        typer.echo(f"\nno column looks like the {role}; say which it is: --set data.columns.{role}=NAME")
        if preview["unnamed"]:
            typer.echo(UNNAMED)
        return
    typer.echo("\n" + "\n".join(format_lines(preview["understood"])) + f"\nthese are {preview['kind']}")
    if len(preview["events"]) > 1:
        kinds = ", ".join(map(one_line, preview["events"]))
        which = (
            "all are read; --set 'data.keep_events=[KIND]' reads some" if kept is None else f"read: {', '.join(kept)}"
        )
        typer.echo(f"kinds of events: {kinds}; {which}")
    print_values({name.replace("_", " "): value for name, value in preview["counts"].items()}, as_json=False)
    for entry in preview["lost"]:
        typer.echo(f"lost: {entry['rows']:,} rows, the first is row {entry['first_row']}: {entry['example']}")
    if preview["next"]:
        typer.echo("\n" + "\n".join(preview["next"]))


@Command("init", "your logs", sets="columns", draws=False)
def write_recipe(
    logs: LogFiles,
    common: Common,
    out: Annotated[Path, typer.Option("--out", help="The recipe, a new file.")] = Path("recipe.yaml"),
    items: Annotated[Path | None, typer.Option(help="A table of the items, with titles or attributes.")] = None,
) -> None:
    """Write a commented recipe for logs, with columns filled in and sizes chosen from all their rows."""
    if out.exists():
        raise UserError(f"{out}: is there already; give another name with --out")
    text, notes = recipe_of_logs(logs, items, out.stem, common.settings)
    for note in notes:
        common.console(out).note(note)
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder (--out)")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another name with --out") from error
    print_values({"recipe": str(out), "next": f"adagrpo run {out} --out runs/{out.stem}"}, common.as_json)


def recipe_of_logs(logs: list[Path], items: Path | None, name: str, settings: tuple[str, ...]) -> tuple[str, list[str]]:
    """The text of a recipe for logs, and what there is to say of columns that it leaves out.

    Args:
        logs: files of the same columns.
        items: a table of the items.
        name: of the recipe.
        settings: which column has which role, as `--set` takes it.
    """
    from adagrpo.data.logs.formats import one_line
    from adagrpo.data.logs.items import read_items
    from adagrpo.data.logs.preview import preview_items, preview_logs
    from adagrpo.pipeline.suggest import recipe_text

    preview, notes = preview_logs(logs, None, *_said(settings)), []
    if items is not None and not preview["missing"]:
        found = preview["items"] = preview_items(items, preview["roles"]["item"]["column"])
        named = {"text_columns": found["text"], "attribute_columns": found["attributes"]}
        notes = [
            f"note: column '{one_line(column)}' of {items} looks like numbers with decimal commas, such as"
            f" {one_line(value)}; it is left out, as numbers are neither text nor attributes"
            for column, value in found.pop("commas").items()
        ]
        read_items(items, id_column=found["id_column"], **named)  # whole: the recipe is to run as it stands
    text = recipe_text(preview, name)
    notes += [
        f"note: column '{one['column']}' is named like {one['role']} and is not read: its values are not {one['needs']}"
        for one in preview["passed_over"]
    ]
    return text, notes


@Command("prepare", "your logs", sets="recipe")
def prepare(
    out: Out,
    common: Common,
    logs: Annotated[list[Path] | None, typer.Argument(help="Log files of the same columns.")] = None,
    exposures: Annotated[
        str | None, typer.Option("--exposures", help="In place of log files, the exposure log of a service.")
    ] = None,
    max_bad_rows: MaxBadRows = None,
    dry_run: DryRun = False,
) -> None:
    """Read logs into a new run directory: filter, number, split. Columns: --set data.columns.user=uid."""
    from adagrpo import pipeline
    from adagrpo.config import resolve_config
    from adagrpo.data.logs.preview import format_lines
    from adagrpo.pipeline.suggest import sizes_note
    from adagrpo.report import dataset_table, to_text

    if bool(logs) == (exposures is not None):
        raise UserError("prepare: give log files, or --exposures and the folder of an exposure log")
    if exposures is not None:
        source: dict[str, Any] = {"exposures": pipeline.latest_exposures(exposures, publish=not dry_run)}
    else:
        source = {"logs": [str(path.resolve()) for path in logs or ()]}
    content = {"name": out.name} | pipeline.kept_settings(out) | {"data": source}
    config = resolve_config(content, common.overrides(max_bad_rows), "prepare")
    run = pipeline.Run(out, config, Path(), common.console(out))
    reset = pipeline.reset_settings(out, config)
    if reset:
        run.console.note(
            f"note: {', '.join(reset)} of run.yaml {'is' if len(reset) == 1 else 'are'} as by default from here on; to"
            f" keep what was set, give it by --set, or carry out `adagrpo run RECIPE --out {shlex.quote(str(out))}`"
        )
    if dry_run:
        print_plan(run, "prepare", common.as_json)
        return
    with session(run):
        summary = run.prepare()
    hint = sizes_note(config.tokenizer, summary["items"]) if config.data.split.kind != "impressions" else None
    if hint is not None:
        run.console.note(hint)
    joined = run.checked("exposures", "summary.json") if exposures is not None else None
    counts = {} if joined is None else json.loads(joined.read_text(encoding="utf-8"))
    if common.as_json:
        typer.echo(json.dumps(summary | ({"exposures": counts} if counts else {})))
        return
    if counts:
        print_values({name.replace("_", " "): count for name, count in counts.items() if count}, as_json=False)
    understood = summary.pop("understood")
    typer.echo("\n".join(format_lines(understood)) + "\n\n" + to_text(dataset_table(summary)) + f"\n\nrun: {out}")


@Command("collect", "your logs", draws=False)
def collect_exposures(
    sources: Annotated[
        list[Path], typer.Argument(help="Files of JSON lines, parts of exposure logs, or folders that hold them.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder of an exposure log, or a new one.")],
    common: Common,
) -> None:
    """Bring exposure logs of other machines into one folder; the next time, what came since."""
    from adagrpo.exposures.exposure_collect import collect_log

    found = collect_log(sources, to)
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
    from adagrpo.data.simulation.marketplace import Marketplace, simulate, write_simulation
    from adagrpo.storage.artifacts import check_replaceable, publish, seal
    from adagrpo.storage.hashes import hash_json
    from adagrpo.storage.writing import temporary

    kind = "simulation"
    world = Marketplace(users=users, items=items, exposure_bias=exposure_bias, seed=common.seed or 0)
    check_replaceable(out, kind)
    simulation = simulate(world)
    work = temporary(out)
    write_simulation(simulation, work)
    seal(work, kind=kind, fingerprint=hash_json(asdict(world)))
    publish(work, out)
    shown = simulation.impressions
    made = {"impressions": len(shown), "interactions": int(shown["clicked"].sum()), "folder": str(out)}
    print_values(made, common.as_json)


def _said(settings: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...] | None]:
    """Columns by role, as `--set data.columns.user=uid` gives them, and the events of `data.keep_events=[click]`."""
    from pydantic import ValidationError

    from adagrpo.config.data import EVENT_KINDS
    from adagrpo.config.yaml_text import column_name, parse_yaml
    from adagrpo.data.logs.interactions import ColumnMapping

    roles: dict[str, str] = {}
    kept: tuple[str, ...] | None = None
    for setting in settings:
        key, equals, column = setting.partition("=")
        if equals and key == "data.keep_events":
            try:
                kept = EVENT_KINDS.validate_python(parse_yaml(column))
            except ValidationError as error:
                form = "write data.keep_events=[KIND, KIND], each a text or a whole number"
                raise UserError(f"--set {setting}: {form}") from error
            continue
        role = key.removeprefix("data.columns.")
        if not equals or role == key or role not in ColumnMapping.__dataclass_fields__:
            known = ", ".join(ColumnMapping.__dataclass_fields__)
            raise UserError(
                f"--set {setting}: write data.columns.ROLE=NAME, or data.keep_events=[KIND]; the roles are {known}"
            )
        roles[role] = column_name(column) or column
    return roles, kept


def _set(role: str, column: str) -> str:
    """The option that says which column has a role; in quotes where the name would be read as something else."""
    from adagrpo.config.yaml_text import column_name, json_text

    return f"--set data.columns.{role}={shlex.quote(column if column_name(column) == column else json_text(column))}"


def _next_commands(preview: dict[str, Any]) -> list[str]:
    """List the commands after `inspect`; none where a role is missing, or items are lists."""
    from adagrpo.config.yaml_text import json_text

    if preview["missing"] or preview["lists"]:
        return []
    files = shlex.join(preview["files"])
    sets = [_set(role, name) for role, name in preview["mapping"].items()]
    stated = [_set(role, entry["column"]) for role, entry in preview["roles"].items() if entry["given"]]
    if preview["kept"] is not None:
        events = f"--set {shlex.quote('data.keep_events=' + json_text(preview['kept']))}"
        sets, stated = [*sets, events], [*stated, events]
    lost = sum(entry["rows"] for entry in preview["lost"])
    bad = [f"--max-bad-rows {lost}"] if lost else []
    prepare = " ".join([f"adagrpo prepare {files} --out runs/mine", *sets, *bad])
    if not {"timestamp", "order"} & preview["mapping"].keys():  # init refuses it: there is no next item to learn
        return [f"{prepare} --set data.split.kind=impressions"]
    return [" ".join([f"adagrpo init {files} --out recipe.yaml", *stated]), prepare]
