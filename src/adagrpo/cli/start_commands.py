"""The commands decide, demo, run and doctor."""

from __future__ import annotations

import importlib.resources
import json
import os
import platform
import shlex
import textwrap
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo import __version__
from adagrpo.cli import log_roles
from adagrpo.cli.lazy import library
from adagrpo.cli.log_commands import COLUMN_SETTINGS, column_settings, recipe_of_logs
from adagrpo.cli.options import Command, Common, DryRun, MaxBadRows, Out, Replace, Rules, close, session
from adagrpo.cli.printing import plan_text, print_metrics, print_values
from adagrpo.errors import UserError
from adagrpo.stopping import terminable


@Command("decide", "start", sets="recipe", tracks=True)
def decide(
    common: Common,
    logs: log_roles.RoledFiles = None,
    run: Annotated[Path | None, typer.Option("--run", help="An existing run, instead of logs.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory of the logs.")] = None,
    orders: log_roles.Orders = None,
    impressions: log_roles.Impressions = None,
    exposures: log_roles.Exposures = None,
    random: log_roles.RandomExposures = None,
    user_key_file: log_roles.UserKeyFile = None,
    items: log_roles.ItemFile = None,
    max_bad_rows: MaxBadRows = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="FILE|URL|MODULE:FUNCTION|KIND",
            help="A model file of LightGBM (.txt), XGBoost (.json, .ubj) or CatBoost (.cbm), an endpoint, a Python"
            " function, or a reward.kind; may be repeated.",
        ),
    ] = None,
    users: Annotated[
        Path | None, typer.Option("--users", help="A table of users, whose columns model files of --reward may name.")
    ] = None,
    budget_ms: Annotated[float | None, typer.Option(help="Milliseconds that one list may take.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Let the trained arms of the recipe compete too.")] = False,
    control: Annotated[
        str | None,
        typer.Option(
            metavar="LIST|FILE",
            help="What users get today, for the plan of an experiment: a list by name, or a file of users' items, which"
            " is measured beside the others. sft if not given.",
        ),
    ] = None,
    rules: Rules = None,
    replace_run: Replace = False,
) -> None:
    """Find the best list that logs and reward can give; print the commands to serve it and to test it on users."""
    if reward or users is not None:
        parts = [_reward_of(name) for name in reward or []]
        if users is not None:
            if not users.is_file():
                raise UserError(f"--users {users}: no such file")
            if not any("model" in part for part in parts):
                raise UserError("--users: is for a model file; give one by --reward")
            parts = [part | ({"users": str(users.resolve())} if "model" in part else {}) for part in parts]
        content = parts[0] if len(parts) == 1 else {"kind": "weighted", "members": parts}
        common = replace(common, settings=(f"reward={json.dumps(content)}", *common.settings))
    if max_bad_rows is not None:
        common = replace(common, settings=(*common.settings, f"data.max_bad_rows={max_bad_rows}"))
    if control is not None and set(control) & {".", "/"}:  # no list has such a name
        if not Path(control).is_file():
            raise UserError(f"--control {control}: no such file")
        given_file = f"decide.control={json.dumps(str(Path(control).resolve()))}"
        common, control = replace(common, settings=(*common.settings, given_file)), None
    common = common.with_rules(rules)
    if run is not None:
        if logs or out is not None or any((orders, impressions, exposures, random, user_key_file, items)):
            raise UserError("decide: --run has logs and a folder of its own; give it alone, or files and --out DIR")
        opened = common.open(run)
    else:
        first = next(iter([*(logs or ()), *(orders or ()), *(impressions or ())]), None)
        if first is None:
            raise UserError("decide: give log files and --out DIR, or --run DIR")
        if out is None:
            folder = shlex.quote(f"runs/{first.name.partition('.')[0]}")
            raise UserError(f"decide: give the folder of the run too, a new one such as --out {folder}")
        given = column_settings(common.settings, only=False).logs
        roles = log_roles.by_role(logs, orders, impressions, exposures, items, user_key_file, random, given=given)
        of_columns = tuple(setting for setting in common.settings if setting.startswith(COLUMN_SETTINGS))
        text, notes, question = recipe_of_logs(roles, out.name, of_columns)
        content = library.yaml_text.parse_yaml(text)
        content["data"].pop("max_bad_rows", None)  # bad rows end the command, as in `prepare`
        config = library.config.resolve_config(content, common.overrides(), "decide")
        table = config.data.items
        if rules is not None and config.rules is not None and (columns := config.rules.columns):
            if table is None:
                raise UserError(f"{rules}: reads {', '.join(columns)} of the items; name their table by --items FILE")
            kept = [name for name in columns if name in library.formats.columns_of(Path(table.path))]
            table = table.model_copy(update={"groups": tuple(dict.fromkeys([*table.groups, *kept]))})
            config = config.model_copy(update={"data": config.data.model_copy(update={"items": table})})
        opened = library.pipeline.Run(out, config, Path(), common.console(out))
        if table is not None:
            read = {table.id_column, *table.text, *table.attributes, *table.groups}
            named = library.checks.features_named(opened, config.reward)
            unread = library.question.unread_note(Path(table.path), {*read, *named})
            notes += [] if unread is None else [unread]
        notes += [] if question is None else library.question.question_lines(question, config.data.split)
        for note in notes:
            opened.console.note(note)
    if not replace_run:
        library.checks.check_logs(opened)
    with session(opened):
        decision = opened.decide(budget_ms, train=train, control=control)
    if common.as_json:
        typer.echo(json.dumps(decision))
        return
    typer.echo(
        library.tables.to_text(library.decision.decision_table(decision))
        + "\n\n"
        + library.decision.decision_text(decision)
    )


def _reward_of(name: str) -> dict[str, Any]:
    path, libraries = Path(name), library.rewards.LIBRARIES
    if name.startswith(("http://", "https://")):
        return {"kind": "http", "url": name}
    if path.suffix in libraries or path.is_file():
        if not path.is_file():
            raise UserError(f"--reward {name}: no such file")
        if path.suffix not in libraries:
            suffixes = "LightGBM's .txt, XGBoost's .json and .ubj, and CatBoost's .cbm"
            raise UserError(f"--reward {name}: no model file by its name; those that are read are {suffixes}")
        return {"kind": libraries[path.suffix], "model": str(path.resolve())}
    if ":" in name:
        return {"kind": "callable", "function": name}
    if name not in library.reward.REWARD_KINDS:
        alone = [
            kind
            for kind, options in library.reward.REWARD_KINDS.items()
            if not any(field.is_required() for field in options.model_fields.values())
        ]
        raise UserError(
            f"--reward {name}: no kind of reward; give {', '.join(alone)}, a Python function, MODULE:FUNCTION, an"
            " address, http://..., or a model file, .txt of LightGBM, .json or .ubj of XGBoost, .cbm of CatBoost"
        )
    return {"kind": name}


@Command("demo", "start", sets="recipe", tracks=True)
def demo(
    common: Common,
    out: Out = Path("runs/demo"),
    small: Annotated[bool, typer.Option("--small", help="A smaller world, for a quick check of the machine.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Let the trained arms compete in what is served.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Train AdaGRPO and its controls by a good and a wrong reward in a simulated shop, and decide under each."""
    name = "demo-small.yaml" if small else "demo.yaml"
    with importlib.resources.as_file(importlib.resources.files("adagrpo") / "recipes" / name) as recipe:
        config = library.config.load_config(recipe, common.overrides())
    if dry_run:
        rest, plans = ("ranker", "train", "evaluate", "diagnose"), dict[str, dict[str, Any]]()
        for name, run in library.demo.demo_runs(out, config, common.console(out)).items():
            plans[name] = library.status.plan(run, rest if plans else (*library.stage.RUN, "diagnose"))
        texts = [f"reward: {name}\n\n{plan_text(content)}" for name, content in plans.items()]
        typer.echo(json.dumps(plans) if common.as_json else "\n\n".join(texts))
        return
    console = common.console(out)
    try:
        with terminable():
            result = library.demo.run_demo(out, config, console, compete=train)
    finally:
        close(console)
    if common.as_json:
        pages = {name: str(page) for name, page in result.pages.items()}
        typer.echo(
            json.dumps(result.metrics | {"report": str(out / "report.html"), "demo": result.rewards, "reports": pages})
        )
        return
    for name, trained in result.rewards["training"].items():
        if trained["rows"]:
            typer.echo(f"Post-training by the reward {name}, last step:\n")
            typer.echo(library.tables.to_text(library.training.training_table(trained)))
            typer.echo("\n" + "\n".join(library.training.training_sentences(trained)) + "\n")
    typer.echo("Lists that could be served:\n")
    typer.echo(library.tables.to_text(library.decision.contenders_table(result.rewards)))
    typer.echo("\n" + "\n".join(library.decision.trial_sentences(result.rewards)) + "\n")
    for name, page in result.pages.items():
        typer.echo(f"report, {name}: {page}")
    typer.echo(f"next: {next(iter(result.rewards['decisions'].values()))['serve']}")


@Command("run", "start", sets="recipe", tracks=True, together=True)
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see recipes/.")],
    out: Out,
    common: Common,
    data: Annotated[Path, typer.Option(help="The folder that the recipe's relative paths are in.")] = Path(),
    dry_run: DryRun = False,
    max_bad_rows: MaxBadRows = None,
    replace: Replace = False,
) -> None:
    """Run a recipe; the same command continues an interrupted run."""
    config = library.config.load_config(recipe, common.overrides(max_bad_rows))
    if not data.is_dir():
        raise UserError(f"{data}: no such folder (--data)")
    run = library.pipeline.Run(out, config, data, common.console(out), recipe.parent)
    if dry_run:
        content, arms = library.config.dump_config(run.config), run.config.settings_of_arms()
        planned = library.status.plan(run)
        if common.as_json:
            typer.echo(json.dumps(content | {"arms": arms, "plan": planned}))
            return
        comment = library.yaml_text.dump_yaml({"arms": arms}) + "\n" + plan_text(planned)
        text = library.yaml_text.dump_yaml(content) + textwrap.indent(comment, "# ", lambda line: True)
        typer.echo(text.rstrip())
        return
    if not replace:
        library.checks.check_logs(run)
    with session(run):
        run.complete()
    together = library.processes.processes()
    together.part()
    if together.is_main_process:
        print_metrics(run.results | {"report": str(run.path("report.html"))}, common.as_json)


@Command("doctor", "machine", draws=False)
def doctor(common: Common) -> None:
    """Say what this machine offers: versions, threads, native bf16, GPU."""
    device = library.torch.device("cuda" if library.torch.cuda.is_available() else "cpu")
    packages = ("torch", "numpy", "accelerate", "safetensors", "polars", "pydantic", "scipy")
    facts: dict[str, Any] = {"adagrpo": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing"
    facts |= {"threads": library.torch.get_num_threads(), "processors": os.cpu_count(), "device": str(device)}
    facts["mixed_precision"] = (
        "bf16" if library.networks.autocast_dtype(device) is not None else "no (bf16 would be emulated)"
    )
    print_values(facts, common.as_json)
