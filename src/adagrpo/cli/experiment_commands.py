"""The commands ab and estimate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.lazy import experiments, library
from adagrpo.cli.options import CatalogChoice, Checkpoint, Command, Common, ExcludeHistory, RunDirectory
from adagrpo.cli.printing import print_values
from adagrpo.errors import UserError


@Command("ab", "serve", draws=False)
def ab(
    plan: Annotated[Path, typer.Argument(help="The plan of an experiment, a YAML file.")],
    common: Common,
    exposures: Annotated[
        Path | None, typer.Option("--exposures", help="The exposure log of the service, with its feedback.")
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Freeze the plan: write its hash next to it.")] = False,
    daily: Annotated[bool, typer.Option("--daily", help="Show the effects until each day too.")] = False,
    power: Annotated[bool, typer.Option("--power", help="Say how many users and days the plan takes.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for a page of the result and experiment.json.")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option("--share", help="From now on this share of the users takes part, equal for all arms."),
    ] = None,
    stop: Annotated[
        str | None, typer.Option("--stop", help="Switch an arm off for good; its users get the control.")
    ] = None,
) -> None:
    """Compare arms on users: freeze a plan, compute its size, read its verdict from the exposure log."""
    if freeze + power + (share is not None) + (stop is not None) > 1:
        raise UserError("ab: give one of --freeze, --power, --share and --stop")
    if share is not None or stop is not None:
        print_values(experiments.switch_experiment(plan, share=share, stop=stop), common.as_json)
    elif freeze:
        print_values(experiments.freeze_experiment(plan), common.as_json)
    elif power:
        rows = experiments.experiment_size(plan, exposures)
        typer.echo(json.dumps(rows) if common.as_json else _size_text(rows))
    elif exposures is None:
        raise UserError("ab: give --exposures and the folder of an exposure log, or --freeze, or --power")
    else:
        if out is not None:
            library.marks.check_kind(out, "experiment")
        result = experiments.experiment(plan, exposures)
        _print_result(result, common.as_json)
        if daily and not common.as_json:
            table = (
                library.experiment_page.preference_table
                if result["kind"] == "interleaving"
                else library.experiment_page.daily_table
            )
            typer.echo(
                "\n" + (library.tables.to_text(table(result["daily"])) if result["daily"] else "no effect by day yet")
            )
        if out is not None:
            library.marks.claim(out, "experiment")
            library.writing.write_file(out / "experiment.json", json.dumps(result) + "\n")
            page = library.experiment_page.write_experiment(out / "experiment.html", result)
            if not common.as_json:
                typer.echo(f"\n{page}")


@Command("estimate", "serve", draws=False)
def estimate(
    run: RunDirectory,
    exposures: Annotated[Path, typer.Option("--exposures", help="The exposure log of a service that explored.")],
    requests: Annotated[Path, typer.Option("--requests", help="CSV, Parquet or JSONL: request_id and history.")],
    policy: Annotated[str, typer.Option("--policy", help="The arm of the run that is estimated, or sft.")],
    common: Common,
    checkpoint: Checkpoint = "best",
    temperature: Annotated[
        float | None, typer.Option(min=0.01, max=100, help="Temperature of the policy; that of each list if not given.")
    ] = None,
    reward: Annotated[str, typer.Option("--reward", help="The kind of feedback that is counted.")] = "click",
    exclude_history: ExcludeHistory = None,
    catalog: CatalogChoice = "latest",
) -> None:
    """Estimate from logged drawn lists what another policy would have earned, by item and by list."""
    found = library.estimate.estimate_policy(
        replace(common, quiet=True).open(run),
        exposures,
        requests,
        policy,
        checkpoint,
        temperature=temperature,
        reward=reward,
        exclude_history=exclude_history,
        catalog=catalog,
    )
    if common.as_json:
        typer.echo(json.dumps(found))
        return
    counts = found["counts"]
    typer.echo(
        f"{found['policy']['arm']} on {counts['lists']:,} drawn lists of {counts['users']:,} users"
        f" ({counts['without_history']:,} without a history, {counts['with_other_items']:,} with other items,"
        f" {counts['with_other_probabilities']:,} with other probabilities, {counts['narrowed']:,} of requests with"
        " filters left out)"
    )
    body = []
    for row in found["estimates"]:
        seen = row.get("overlap")
        value = "refused" if "value" not in row else f"{row['value']:.4f}"
        span = "" if "value" not in row else f"{row['low']:.4f} to {row['high']:.4f}"
        weighs = ("", "") if seen is None else (f"{seen['effective_size']:,.0f}", f"{seen['mean']:.3f}")
        body.append((row["of"], row["estimator"], value, span, *weighs))
    head = ("of", "estimator", f"{found['reward']}s", "interval", "effective lists", "mean weight")
    typer.echo("\n" + library.tables.to_text(library.tables.Table.of(head, body, 2)))
    refused: dict[tuple[str, str], list[str]] = {}
    for row in found["estimates"]:
        if row["refused"]:
            refused.setdefault((row["of"], row["refused"]), []).append(row["estimator"])
    for (of, reason), names in refused.items():
        typer.echo(f"refused, {of} by {', '.join(names)}: {reason}")


def _size_text(rows: list[dict[str, Any]]) -> str:
    body = [
        (
            row["metric"],
            f"{row['expected']:+.2%}",
            f"{row['variation']:.2f}",
            f"{row['users']:,}",
            "users_a_day is not given" if row["days"] is None else f"{row['days']:,}",
        )
        for row in rows
    ]
    head = ("metric", "expected", "deviation / mean", "users", "days")
    read, table = rows[0]["read"], library.tables.to_text(library.tables.Table.of(head, body))
    days = "" if read is None else f"\nread: {read['days']:.1f} days of the log, {read['from']} to {read['to']}"
    return table + days


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    for treatment, verdict in result["verdicts"].items():
        typer.echo(f"{treatment}: {verdict}; {result['reasons'][treatment]}")
    if result["kind"] == "interleaving":
        counts = result["users"]
        typer.echo(f"users: {counts['shown']:,} were shown {result['answers']:,} lists, {counts['clicked']:,} clicked")
        typer.echo(f"plan: {result['plan'][:12]}, frozen {result['frozen']}")
        for arm, time in result["stopped"].items():
            typer.echo(f"{arm} was stopped on {time}; lists until then are counted")
        for note in result["notes"]:
            typer.echo(f"note: {note}")
        return
    late = " (after the start)" if result["frozen_after_the_start"] else ""
    users = ", ".join(f"{arm} {count:,}" for arm, count in result["users"].items())
    left = ", ".join(f"{name.removeprefix('answers_')} {count:,}" for name, count in result["counts"].items() if count)
    typer.echo(f"users: {users}\nanswers: {left.removeprefix('answers ')}")
    typer.echo(f"plan: {result['plan'][:12]}, frozen {result['frozen']}{late}")
    for note in result["notes"]:
        typer.echo(f"note: {note}")
    for table in (
        library.experiment_page.effects_table(result["effects"]),
        library.experiment_page.guardrails_table(result["guardrails"]),
    ):
        if table.rows:
            typer.echo("\n" + library.tables.to_text(table))
