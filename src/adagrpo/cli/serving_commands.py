"""The commands refresh, export, serve, recommend and watch."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.options import (
    ARM,
    AsMeasured,
    CatalogChoice,
    Checkpoint,
    Command,
    Common,
    ExcludeHistory,
    Out,
    Precision,
    RewardWeight,
    Rules,
    RunDirectory,
    close,
    session,
)
from adagrpo.cli.printing import print_values
from adagrpo.errors import UserError

STAYS = 3  # exit status


@Command("refresh", "serve", draws=False)
def refresh(
    run: RunDirectory,
    common: Common,
    logs: Annotated[
        list[Path] | None, typer.Argument(help="Only the new rows, or longer logs; with the columns of the run's.")
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="Serve what was served before the last refresh that took over.")
    ] = False,
) -> None:
    """Take newer rows into the list that decide chose; it is served unless it is worse on the newest, else status 3."""
    if bool(logs) == back:
        raise UserError("refresh: give log files with newer rows, or --back")
    opened = common.open(run)
    with session(opened):
        content = opened.serve_before() if back else opened.refresh(logs or [])
    if common.as_json:
        typer.echo(json.dumps(content))
    elif back:
        names = [f"refresh {content[key]}" if content[key] else "the refit" for key in ("number", "instead_of")]
        typer.echo(f"{names[0]} is served from now on, instead of {names[1]}")
    else:
        typer.echo("\n".join(library.refresh.sentences(content)))
    if not back and not content["takes_over"]:
        raise typer.Exit(STAYS)


FILTER = "column=value of the item table, a file of item ids, or a .json filter. May be repeated."


@Command("export", "serve", draws=False)
def export(
    run: RunDirectory,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    common: Common,
    arm: Annotated[str | None, typer.Option(help=ARM)] = None,
    checkpoint: Checkpoint = "best",
    catalog: CatalogChoice = "latest",
) -> None:
    """Write a language-model policy as a Hugging Face folder, with catalogue and prefix function for `generate`."""
    print_values(library.export.export(common.open(run), to, arm, checkpoint, catalog), common.as_json)


@Command("serve", "serve", draws=False, instead="--explore-seed")
def serve(
    run: RunDirectory,
    common: Common,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    arm: Annotated[str | None, typer.Option(help=ARM)] = None,
    checkpoint: Checkpoint = "best",
    reward_weight: RewardWeight = 0.0,
    exclude_history: ExcludeHistory = None,
    precision: Precision = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Bearer tokens, one a line; else the environment variable ADAGRPO_TOKENS.")
    ] = None,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Allow a public address without a token.")
    ] = False,
    user_key_file: Annotated[
        Path | None, typer.Option(help="Key that user ids are hashed with; made if there is none.")
    ] = None,
    exposures: Annotated[
        Path | None, typer.Option(help="Folder of the exposure log: a row for each list, durable before it is sent.")
    ] = None,
    explore: Annotated[
        float | None, typer.Option(min=0.01, max=100, help="Draw lists at this temperature; needs --exposures.")
    ] = None,
    explore_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the requests that get drawn lists; all if not given.")
    ] = None,
    explore_seed: Annotated[int | None, typer.Option(min=0, help="Seed of the drawn lists; 0 if not given.")] = None,
    deadline: Annotated[float, typer.Option(min=0.01, max=60, help="Seconds that a request may take.")] = 2.0,
    drain: Annotated[float, typer.Option(min=0, max=600, help="Seconds for open requests after SIGTERM.")] = 10.0,
    log_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the requests that are logged.")] = 0.0,
    rerank_seconds: Annotated[
        float,
        typer.Option(min=0.001, max=60, help="Seconds that the reward may take for a batch, within the deadline."),
    ] = 1.0,
    catalog: CatalogChoice = "latest",
    as_measured: AsMeasured = False,
    rules: Rules = None,
    experiment: Annotated[
        Path | None, typer.Option(help="Plan of an experiment, whose arms are all served; needs --exposures.")
    ] = None,
) -> None:
    """Serve lists over HTTP until interrupted: POST /recommend, GET /health, and /docs."""

    def ready(about: dict[str, Any]) -> None:
        if common.as_json:
            typer.echo(json.dumps(about))
        elif not common.quiet:
            trial = about.get("experiment")
            if trial is not None:
                typer.echo(f"experiment {trial['name']}, plan {trial['plan']}; the control is:", err=True)
            without = "without" if about["exclude_history"] else "that may hold"
            typer.echo(
                f"{about['name']}, {about['arm']} {about['checkpoint']} ({about['why']}) in {about['precision']},"
                f" lists {without} items of the history: {about['url']}",
                err=True,
            )
        sys.stdout.flush()

    _check_weight(reward_weight)
    if explore is None and (explore_share is not None or explore_seed is not None):
        raise UserError("--explore-share, --explore-seed: draw nothing without --explore TEMPERATURE")
    if (
        exposures is not None
        and experiment is None
        and user_key_file is None
        and library.user_hash.VARIABLE not in os.environ
        and not common.quiet
    ):
        typer.echo(
            f"note: no --user-key-file and no {library.user_hash.VARIABLE}: users have other hashes in the exposure log"
            " after each start",
            err=True,
        )
    drawn = (1.0 if explore_share is None else explore_share, explore_seed or 0)
    opened = replace(common.with_rules(rules), quiet=True).open(run)
    library.pipeline.serve(
        opened,
        library.pipeline.ListOptions(arm, checkpoint, reward_weight, exclude_history, precision, catalog, as_measured),
        host=host,
        port=port,
        operation=library.pipeline.Operation(
            token_file=token_file,
            without_token=without_token,
            user_key_file=user_key_file,
            exposures=exposures,
            explore=None if explore is None else library.exploration.Exploration(explore, *drawn),
            limits=library.options.Limits(deadline_seconds=deadline, drain_seconds=drain),
            log_share=log_share,
            rerank_seconds=rerank_seconds,
            experiment=experiment,
        ),
        ready=ready,
    )


@Command("recommend", "serve", draws=False)
def recommend(
    run: RunDirectory,
    users: Annotated[Path, typer.Option(help="CSV, Parquet or JSONL: users and their histories, or users alone.")],
    out: Out,
    common: Common,
    k: Annotated[int, typer.Option("--k", min=1, help="Length of the lists.")] = 10,
    arm: Annotated[str | None, typer.Option(help=ARM)] = None,
    checkpoint: Checkpoint = "best",
    reward_weight: RewardWeight = 0.0,
    exclude_history: ExcludeHistory = None,
    precision: Precision = None,
    catalog: CatalogChoice = "latest",
    as_measured: AsMeasured = False,
    user_column: Annotated[
        str | None, typer.Option(help="The column of user ids; user_id, or as in the run's logs, if not given.")
    ] = None,
    history_column: Annotated[
        str | None, typer.Option(help="The column of histories; history, where the file has it, if not given.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help=f"Only what matches: {FILTER}")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help=f"Nothing that matches: {FILTER}")] = None,
    rules: Rules = None,
    popular: Annotated[bool, typer.Option("--popular", help="Popular items for users with no known history.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say for each item why it is there, a JSON text in the column reasons.")
    ] = False,
    ray: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Number of Ray Data actors that make the parts.")
    ] = None,
) -> None:
    """Write lists for the users of a file as Parquet; without histories there, the logged ones are used."""
    _check_weight(reward_weight)
    opened = common.with_rules(rules).open(run)
    try:
        summary = library.pipeline.recommend_users(
            opened,
            users,
            out,
            library.pipeline.ListOptions(
                arm, checkpoint, reward_weight, exclude_history, precision, catalog, as_measured
            ),
            k=k,
            columns=(user_column, history_column),
            include=library.eligibility.parse_filter(include or (), "--include"),
            exclude=library.eligibility.parse_filter(exclude or (), "--exclude"),
            popular=popular,
            explain=explain,
            ray_actors=ray,
        )
    finally:
        close(opened.console)
    print_values(summary, common.as_json)


@Command("watch", "serve", draws=False)
def watch(
    exposures: Annotated[Path, typer.Option("--exposures", help="The exposure log of the service, with its feedback.")],
    common: Common,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run that is served; its ranker predicts the clicks.")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="The lists of one arm of the log; all if not given.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare --arm with this arm on the same days, not with a baseline.")
    ] = None,
    since: Annotated[
        int | None, typer.Option(help="The first day, in days since 1970; the log's if not given.")
    ] = None,
    baseline: Annotated[int, typer.Option(min=1, max=365, help="Days of the baseline.")] = 7,
    window: Annotated[int, typer.Option(min=1, max=365, help="Days that are pooled.")] = 3,
    errors: Annotated[
        float, typer.Option(min=1, max=10, help="Standard errors above which a sign is reported.")
    ] = 3.29,
    days: Annotated[bool, typer.Option("--days", help="Print every day.")] = False,
) -> None:
    """Look for signs of reward hacking in a service's log by day: reward up and feedback down, and others."""

    def said(value: float | None, form: str) -> str:
        return library.tables.MISSING if value is None else format(value, form)

    opened = None if run is None else common.open(run)
    result = library.watch.watch(
        exposures,
        opened,
        rule=library.monitoring.SignRule(baseline, window, errors),
        arm=arm,
        against=against,
        since=since,
    )
    if common.as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    if days:
        names = ("feedback", "reward", "calibration", "concentration")
        head = ("day", "lists", "clicked", "predicted", "gini", *names, "on")
        rows = [
            (
                *(str(row["day"]), f"{row['lists']:,}", f"{row['clicked']:.4f}", said(row["predicted"], ".4f")),
                *(said(row["gini"], ".3f"), *(said(row[name], "+.1f") for name in names), ", ".join(row["on"])),
            )
            for row in result["days"]
        ]
        typer.echo(library.tables.to_text(library.tables.Table.of(head, rows, 0, 1)) + "\n")
    for sign, day in result["signs"].items():
        typer.echo(f"{sign}: " + ("off" if day is None else f"on from day {day}"))
    for name, share in result.get("invalid", {}).items():
        typer.echo(f"invalid codes, {name}: {share:.1%} of histories")


def _check_weight(reward_weight: float) -> None:
    if not math.isfinite(reward_weight):
        raise UserError(f"--reward-weight: {reward_weight} is no weight; give a finite number of at least 0")
