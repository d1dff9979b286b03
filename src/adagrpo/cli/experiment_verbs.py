"""The verb for experiments on users: freeze a plan, size it, and read what the log says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.options import Common, verb
from adagrpo.cli.printing import print_values
from adagrpo.errors import UserError

__all__ = ["ab"]


@verb("ab", "serve")
def ab(
    plan: Annotated[Path, typer.Argument(help="The plan of an experiment, a YAML file.")],
    common: Common,
    exposures: Annotated[
        Path | None, typer.Option("--exposures", help="The exposure log of the service, with its feedback.")
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Write the hash of the plan beside it.")] = False,
    daily: Annotated[bool, typer.Option("--daily", help="Show the effects until each day too.")] = False,
    power: Annotated[bool, typer.Option("--power", help="Say how many users and days the plan takes.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for a page of the result and experiment.json.")
    ] = None,
    share: Annotated[
        float | None, typer.Option("--share", help="Let this share of the users in from now on, all arms alike.")
    ] = None,
    stop: Annotated[
        str | None, typer.Option("--stop", help="Switch an arm off for good; its users get the control.")
    ] = None,
) -> None:
    """Hold arms against each other on users: freeze a plan, size it, read its verdict from the exposure log."""
    from adagrpo.pipeline.experiment import experiment, experiment_size, freeze_experiment, switch_experiment
    from adagrpo.report import daily_table, to_text, write_experiment
    from adagrpo.storage.artifacts import write_file

    if freeze + power + (share is not None) + (stop is not None) > 1:
        raise UserError("ab: give one of --freeze, --power, --share and --stop")
    if share is not None or stop is not None:
        print_values(switch_experiment(plan, share=share, stop=stop), common.as_json)
    elif freeze:
        print_values(freeze_experiment(plan), common.as_json)
    elif power:
        _print_size(experiment_size(plan, exposures), common.as_json)
    elif exposures is None:
        raise UserError("ab: give --exposures and the folder of an exposure log, or --freeze, or --power")
    else:
        result = experiment(plan, exposures)
        _print_result(result, common.as_json)
        if daily and not common.as_json:
            typer.echo("\n" + to_text(daily_table(result["daily"])))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_file(out / "experiment.json", json.dumps(result) + "\n")
            page = write_experiment(out / "experiment.html", result)
            if not common.as_json:
                typer.echo(f"\n{page}")


def _print_size(rows: list[dict[str, Any]], as_json: bool) -> None:
    from adagrpo.report import Table, to_text

    if as_json:
        typer.echo(json.dumps(rows))
        return
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
    typer.echo(to_text(Table(head, tuple(body), ("left", *("right",) * 4))))


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    from adagrpo.report import effects_table, guardrails_table, to_text

    if as_json:
        typer.echo(json.dumps(result))
        return
    for treatment, verdict in result["verdicts"].items():
        typer.echo(f"{treatment}: {verdict}; {result['reasons'][treatment]}")
    late = " (after the start)" if result["frozen_after_the_start"] else ""
    users = ", ".join(f"{arm} {count:,}" for arm, count in result["users"].items())
    typer.echo(f"users: {users}\nplan: {result['plan'][:12]}, frozen {result['frozen']}{late}")
    for table in (effects_table(result["effects"]), guardrails_table(result["guardrails"])):
        if table.rows:
            typer.echo("\n" + to_text(table))
