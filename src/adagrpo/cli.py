"""The command line: one verb a stage. Nothing here but arguments, printing and exit codes.

`accelerate launch --num_processes 2 -m adagrpo ...` carries out the verbs of `TOGETHER` in several processes, of which
the first one speaks for all.

Exit 0: done. 2: bad input or usage, one line on stderr. 130: interrupted. 143: terminated. 1: anything else.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import os
import platform
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
import yaml

from adagrpo import __version__, pipeline
from adagrpo.config import Config, dump_config, load_config, resolve_config
from adagrpo.console import StderrConsole
from adagrpo.data.logs.interactions import ColumnMapping
from adagrpo.data.logs.preview import ROWS, look_at
from adagrpo.data.logs.understood import sentences
from adagrpo.data.simulation.marketplace import Marketplace, simulate, write_simulation
from adagrpo.errors import ServiceError, UserError
from adagrpo.networks.layers import autocast_dtype
from adagrpo.pipeline import Run, Silent
from adagrpo.pipeline.compare import Comparison
from adagrpo.pipeline.suggest import recipe_text
from adagrpo.report import (
    Table,
    comparison_table,
    diagnosis_tables,
    exposure_table,
    read_comparison,
    results_table,
    to_text,
    write_comparison,
    write_comparison_figures,
    write_figures,
)
from adagrpo.stopping import Terminated, terminable
from adagrpo.storage.artifacts import check_replaceable, hash_json, publish, seal, temporary
from adagrpo.storage.marks import check_kind, claim, is_marked
from adagrpo.trainer.processes import processes

__all__ = ["main"]

# typer raises click's usage errors, of the package of that name or of its own copy, depending on its version
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
TOGETHER = ("demo", "run", "sft", "ranker", "train")  # they fit models
LONGEST_MESSAGE = 2000  # characters
INTERRUPTED, TERMINATED = 130, 143  # as shells say it; some versions of typer return it, others raise Abort

app = typer.Typer(
    help="Post-train generative recommenders with rewards that cannot be trusted everywhere.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Seed = Annotated[int | None, typer.Option(help="Seed of everything; the recipe's if not given.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Set = Annotated[list[str], typer.Option("--set", help="Change a key of the recipe: objective.lambda=0.5")]
RunDirectory = Annotated[Path, typer.Option("--run", help="The run directory.")]
MaxBadRows = Annotated[
    int | None, typer.Option(min=0, help="How many rows of the logs may be bad; the recipe's, or 0, if not given.")
]
ARM = "sft or a trained arm; the last one trained if not given."
Checkpoint = Annotated[Literal["best", "final"], typer.Option(help="Which checkpoint of it.")]
LogFiles = Annotated[list[Path], typer.Argument(help="Log files of the same columns.")]
Roles = Annotated[list[str], typer.Option("--set", help="Say what a column is: data.columns.user=uid")]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Elsewhere = Annotated[
    Path | None,
    typer.Option("--out", help="Another run directory, for all that is written; the run itself is only read."),
]


@app.callback()
def _begin(context: typer.Context) -> None:
    """Post-train generative recommenders with rewards that cannot be trusted everywhere."""
    verb = context.invoked_subcommand
    if not processes().is_main_process:
        silence = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (until the process ends)
        sys.stdout = silence
        sys.stderr = sys.stderr if os.environ.get("ADAGRPO_TRACEBACK") else silence
    if processes().count > 1 and verb not in TOGETHER:
        raise UserError(f"{verb}: is for one process; those that several can share are {', '.join(TOGETHER)}")


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    small: Annotated[bool, typer.Option("--small", help="A smaller world, for a quick check of the machine.")] = False,
    settings: Set = [],  # noqa: B006 (typer reads the default, nothing changes it)
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a marketplace and run the whole pipeline on it, with a report."""
    name = "demo-small.yaml" if small else "demo.yaml"
    with importlib.resources.as_file(importlib.resources.files("adagrpo") / "recipes" / name) as recipe:
        config = load_config(recipe, _overrides(settings, seed))
    _carry_out(Run(out, config, Path(), _console(quiet)), as_json)


@app.command(name="run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see recipes/.")],
    out: Out,
    data: Annotated[Path, typer.Option(help="The folder that the recipe's relative paths are in.")] = Path(),
    settings: Set = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, print it resolved, do nothing.")
    ] = False,
    max_bad_rows: MaxBadRows = None,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a recipe; the same command continues an interrupted run."""
    config = load_config(recipe, _overrides(settings, seed, max_bad_rows))
    if not data.is_dir():
        raise UserError(f"{data}: no such folder (--data)")
    if dry_run:
        content, arms = dump_config(config), config.settings_of_arms()
        # as a comment, so that what is printed is a recipe again
        comment = textwrap.indent(yaml.safe_dump({"arms": arms}, sort_keys=False), "# ")
        text = yaml.safe_dump(content, sort_keys=False) + comment
        typer.echo(json.dumps(content | {"arms": arms}) if as_json else text.rstrip())
        return
    _carry_out(Run(out, config, data, _console(quiet), recipe.parent), as_json)


@app.command()
def inspect(
    logs: LogFiles,
    settings: Roles = [],  # noqa: B006
    all_rows: Annotated[bool, typer.Option("--all", help=f"Read all rows, not the first {ROWS:,}.")] = False,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at logs: columns, what they seem to be, what would be read and what would be lost. Writes nothing."""
    preview = look_at(logs, None if all_rows else ROWS, _roles(settings))
    preview["next"] = _next_commands(preview)
    if as_json:
        typer.echo(json.dumps(preview))
        return
    roles = {entry["column"]: f"{role} ({entry['reason']})" for role, entry in preview["roles"].items()}
    rows = [
        (one["name"], one["type"], ", ".join(one["examples"]), roles.get(one["name"], "")) for one in preview["columns"]
    ]
    typer.echo(to_text(Table(("column", "values", "for example", "taken for"), tuple(rows), ("left",) * 4)))
    if preview["missing"]:
        role = preview["missing"][0]
        typer.echo(f"\nno column looks like the {role}; say which it is: --set data.columns.{role}=NAME")
        return
    typer.echo("\n" + "\n".join(sentences(preview["understood"])) + f"\nthese are {preview['kind']}")
    _print({name.replace("_", " "): value for name, value in preview["counts"].items()}, as_json)
    for entry in preview["lost"]:
        typer.echo(f"lost: {entry['rows']:,} rows, the first is row {entry['first_row']}: {entry['example']}")
    typer.echo("\n" + "\n".join(preview["next"]))


@app.command()
def init(
    logs: LogFiles,
    out: Annotated[Path, typer.Option("--out", help="The recipe, a new file.")] = Path("recipe.yaml"),
    settings: Roles = [],  # noqa: B006
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a commented recipe for logs, with columns filled in and sizes chosen from all their rows."""
    if out.exists():
        raise UserError(f"{out}: is there already; give another name with --out")
    text = recipe_text(look_at(logs, None, _roles(settings)), out.stem)
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder (--out)")
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    written = {"recipe": str(out), "next": f"adagrpo run {out} --out runs/{out.stem}"}
    _print(written, as_json)


@app.command()
def prepare(
    logs: LogFiles,
    out: Out,
    settings: Set = [],  # noqa: B006
    max_bad_rows: MaxBadRows = None,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read logs into a new run directory: filter, number, split. Columns: --set data.columns.user=uid."""
    content = {"name": out.name, "data": {"logs": [str(path.resolve()) for path in logs]}}
    config = resolve_config(content, _overrides(settings, seed, max_bad_rows), "prepare")
    run = Run(out, config, Path(), _console(quiet))
    with _session(run):
        pipeline.prepare(run)
    summary = json.loads(run.checked("prepare", "summary.json").read_text(encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps(summary))
        return
    understood = summary.pop("understood")
    typer.echo("\n".join(sentences(understood)))
    _print(summary, as_json)


@app.command(name="simulate")
def simulate_logs(
    out: Out,
    users: Annotated[int, typer.Option(min=1)] = Marketplace.users,
    items: Annotated[int, typer.Option(min=1)] = Marketplace.items,
    exposure_bias: Annotated[float, typer.Option(min=0.0)] = Marketplace.exposure_bias,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the logs, item table and truth of a simulated marketplace."""
    world = Marketplace(users=users, items=items, exposure_bias=exposure_bias, seed=seed or 0)
    if out.is_file() or is_marked(out):
        raise UserError(f"{out}: is a {'file' if out.is_file() else 'run'}; --out takes a folder of its own")
    check_replaceable(out)
    simulation = simulate(world)
    work = temporary(out)
    write_simulation(simulation, work)
    seal(work, kind="simulation", fingerprint=hash_json(asdict(world)))
    publish(work, out)
    shown = simulation.impressions
    _print({"impressions": len(shown), "interactions": int(shown["clicked"].sum()), "folder": str(out)}, as_json)


def _stage_command(name: str, work: Callable[[Run], object], text: str) -> None:
    """Add a verb that carries out one stage of an existing run."""

    def command(
        run: RunDirectory,
        settings: Set = [],  # noqa: B006
        seed: Seed = None,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        opened = _open(run, settings, seed, quiet)
        with _session(opened):
            result = work(opened)
        opened.processes.part()
        if isinstance(result, dict) and "exposures" in result:
            _print_metrics(result, as_json)
            return
        _print(result if isinstance(result, dict) else {"stage": name, "folder": str(opened.path(name))}, as_json)

    app.command(name=name, help=text)(command)


def _ranker(run: Run) -> dict[str, Any] | None:
    reported = pipeline.fit_and_report(run)
    return None if reported is None else reported[0] | {"report": str(reported[1])}


_stage_command("tokenize", pipeline.tokenize, "Make Semantic IDs of the items of a run.")
_stage_command("sft", pipeline.fit_sft, "Train the starting policy.")
_stage_command("ranker", _ranker, "Train the reward model; of impressions without order, its report too.")


@app.command()
def train(
    run: RunDirectory,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also on a reward that `diagnose` does not recommend for training.")
    ] = False,
    settings: Set = [],  # noqa: B006
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Post-train every arm of the recipe."""
    opened = _open(run, settings, seed, quiet)
    with _session(opened):
        pipeline.train(opened, anyway=anyway)
    opened.processes.part()
    _print({"stage": "train", "folder": str(opened.path("train"))}, as_json)


@app.command()
def evaluate(
    run: RunDirectory,
    settings: Set = [],  # noqa: B006
    out: Elsewhere = None,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate sft and every trained arm on validation and test."""
    opened = _open(run, settings, seed, quiet, out)
    with _session(opened):
        arms = pipeline.finished_arms(opened)
        pipeline.evaluate(opened, arms)
        pipeline.report_ranker(opened)
        result = pipeline.collect(opened, arms)
    _print(result, as_json)


@app.command()
def diagnose(
    run: RunDirectory,
    second_ranker: Annotated[
        Path | None, typer.Option(help="Checkpoint folder of another ranker, to form strata for the run's own.")
    ] = None,
    settings: Set = [],  # noqa: B006
    out: Elsewhere = None,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Should this reward be used here? On validation cases, before any post-training; writes diagnose.html."""
    opened = _open(run, settings, seed, quiet, out)
    with _session(opened):
        result = pipeline.diagnose_reward(opened, second_ranker)
    if as_json:
        typer.echo(json.dumps(result))
        return
    tables = diagnosis_tables(result)
    typer.echo("\n\n".join(to_text(tables[name]) for name in ("orders", "serving", "gate", "grid", "evidence")))
    typer.echo(f"\nverdict: {result['verdict']['decision']}\n" + "\n".join(result["verdict"]["sentences"]))
    typer.echo(f"\npage: {opened.directory / 'diagnose.html'}")


@app.command()
def compare(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipes, each on data of its own.")],
    out: Out,
    objectives: Annotated[
        str | None, typer.Option(help="Arms by name: nll,mixture,adagrpo-random,rerank; the recipe's if not given.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds: 0,1,2; the recipe's if not given.")] = None,
    data: Annotated[
        list[Path],
        typer.Option(help="The folder of the recipes' relative paths: one for all, or one each."),
    ] = [Path()],  # noqa: B006
    settings: Set = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print what would be done, do nothing.")] = False,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Arms x seeds of a recipe, and whether any is better than the baseline; continues an interrupted comparison."""
    configs = [load_config(recipe, _overrides(settings, seed)) for recipe in recipes]
    console = _console(quiet)
    comparisons = [
        Comparison(
            folder,
            config,
            root,
            objectives=None if objectives is None else [name.strip() for name in objectives.split(",")],
            seeds=None if seeds is None else [_seed(text) for text in seeds.split(",")],
            console=console,
            code=recipe.parent,
        )
        for recipe, folder, config, root in zip(
            recipes, _folders(out, configs), configs, _roots(data, len(configs)), strict=True
        )
    ]
    if dry_run:
        plans: Any = [comparison.describe() for comparison in comparisons]
        plans = plans if len(plans) > 1 else plans[0]
        typer.echo(json.dumps(plans) if as_json else yaml.safe_dump(plans, sort_keys=False).rstrip())
        return
    try:
        results = [comparison.carry_out() | {"page": str(comparison.page)} for comparison in comparisons]
    finally:
        if isinstance(console, StderrConsole):
            console.close()
    if as_json:
        typer.echo(json.dumps(results[0] if len(results) == 1 else {"comparisons": results}))
        return
    for content in results:
        typer.echo(to_text(comparison_table(content)))
        typer.echo("\n" + "\n".join(content["finding"]) + f"\n\npage: {content['page']}")


@app.command()
def report(
    run: Annotated[Path, typer.Option("--run", help="The run directory, or the folder of a comparison.")],
    figures: Annotated[Path | None, typer.Option(help="Also write the charts as SVG files into this folder.")] = None,
    out: Elsewhere = None,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html from what the run has measured so far; of a comparison, its page from comparison.json."""
    if (run / "comparison.json").is_file():
        content = read_comparison(run / "comparison.json")
        check_kind(run, "comparison", "--run")
        if out is not None:
            claim(out, "comparison")
        page = write_comparison(out or run, content)
        written = [] if figures is None else write_comparison_figures(content, figures)
    else:
        opened = _open(run, [], seed, quiet, out)
        with _session(opened):
            page = pipeline.write_report(opened)
            written = [] if figures is None else write_figures(opened, figures)
    _print({"report": str(page)} | ({"figures": len(written)} if written else {}), as_json)


@app.command()
def export(
    run: RunDirectory,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    arm: Annotated[str | None, typer.Option(help=ARM)] = None,
    checkpoint: Checkpoint = "best",
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a language-model policy as a Hugging Face folder, with catalogue and prefix function for `generate`."""
    opened = _open(run, [], seed, quiet)
    _print(pipeline.export(opened, to, arm, checkpoint), as_json)


@app.command()
def serve(
    run: RunDirectory,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    arm: Annotated[str | None, typer.Option(help=ARM)] = None,
    checkpoint: Checkpoint = "best",
    reward_weight: Annotated[
        float, typer.Option(min=0.0, help="Re-rank the beam by log-probability + this weight x reward.")
    ] = 0.0,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer requests over HTTP with a trained policy until interrupted: POST /recommend, GET /health."""

    def ready(about: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(about))
        elif not quiet:
            typer.echo(f"{about['name']}, {about['arm']} {about['checkpoint']}: {about['url']}", err=True)
        sys.stdout.flush()

    if not math.isfinite(reward_weight):
        raise UserError(f"--reward-weight: {reward_weight} is no weight; give a finite number of at least 0")
    opened = _open(run, [], seed, quiet=True)
    pipeline.serve(opened, arm, checkpoint, host=host, port=port, reward_weight=reward_weight, ready=ready)


@app.command()
def doctor(seed: Seed = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Say what this machine offers: versions, threads, native bf16, GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packages = ("torch", "numpy", "accelerate", "safetensors", "polars", "pydantic", "scipy")
    facts: dict[str, Any] = {"adagrpo": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing"
    facts |= {"threads": torch.get_num_threads(), "processors": os.cpu_count(), "device": str(device)}
    facts["mixed_precision"] = "bf16" if autocast_dtype(device) is not None else "no (bf16 would be emulated)"
    _print(facts, as_json)


def _carry_out(run: Run, as_json: bool) -> None:
    with _session(run):
        metrics, page = pipeline.run_all(run)
    run.processes.part()
    if run.processes.is_main_process:
        _print_metrics(metrics | {"report": str(page)}, as_json)


def _print_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    """The main table of metrics.json, and where the page is."""
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    typer.echo(to_text(exposure_table(metrics["exposures"]) if "exposures" in metrics else results_table(metrics)))
    typer.echo(f"\nreport: {metrics['report']}")


def _roles(settings: list[str]) -> dict[str, str]:
    """Columns by role, as `--set data.columns.user=uid` gives them."""
    roles: dict[str, str] = {}
    for setting in settings:
        key, equals, column = setting.partition("=")
        role = key.removeprefix("data.columns.")
        if not equals or role == key or role not in ColumnMapping.__dataclass_fields__:
            known = ", ".join(ColumnMapping.__dataclass_fields__)
            raise UserError(f"--set {setting}: write data.columns.ROLE=NAME; the roles are {known}")
        roles[role] = column
    return roles


def _next_commands(preview: dict[str, Any]) -> list[str]:
    """What to type after `inspect`; nothing where a role is missing."""
    if preview["missing"]:
        return []
    files = shlex.join(preview["files"])
    sets = [f"--set data.columns.{role}={shlex.quote(name)}" for role, name in preview["mapping"].items()]
    stated = [f"--set data.columns.{r}={shlex.quote(e['column'])}" for r, e in preview["roles"].items() if e["given"]]
    lost = sum(entry["rows"] for entry in preview["lost"])
    bad = [f"--max-bad-rows {lost}"] if lost else []
    return [
        " ".join([f"adagrpo init {files} --out recipe.yaml", *stated]),
        " ".join([f"adagrpo prepare {files} --out runs/mine", *sets, *bad]),
    ]


def _open(directory: Path, settings: list[str], seed: int | None, quiet: bool, out: Path | None = None) -> Run:
    return Run.open(directory, _overrides(settings, seed), _console(quiet), out)


@contextmanager
def _session(run: Run) -> Iterator[None]:
    """Work in a run directory: alone, and with the terminal as it was when it ends, in whatever way."""
    try:
        with terminable(), run.locked():
            yield
    finally:
        if isinstance(run.console, StderrConsole):
            run.console.close()


def _folders(out: Path, configs: list[Config]) -> list[Path]:
    """Where each recipe's comparison goes: the folder itself, or for several one below it by name."""
    if len(configs) == 1:
        return [out]
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1 or Path(name).name != name:
            raise UserError(f"name: '{name}' cannot name a folder of its own below {out}; names must differ")
    return [out / name for name in names]


def _roots(data: list[Path], count: int) -> list[Path]:
    for folder in data:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder (--data)")
    if len(data) not in (1, count):
        raise UserError(f"--data: {len(data)} folders for {count} recipes; give one for all, or one each")
    return data * count if len(data) == 1 else data


def _seed(text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= 2**31:
        raise UserError(f"--seeds: '{text.strip()}' is no seed; write whole numbers from 0 on, for example 0,1,2")
    return int(text)


def _overrides(settings: list[str], seed: int | None, max_bad_rows: int | None = None) -> list[str]:
    options = {"seed": seed, "data.max_bad_rows": max_bad_rows}
    return [*settings, *(f"{key}={value}" for key, value in options.items() if value is not None)]


def _console(quiet: bool) -> StderrConsole | Silent:
    return Silent() if quiet else StderrConsole()


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        typer.echo(f"{name}: {json.dumps(value) if isinstance(value, dict) else value}")


def main() -> None:
    """Run the command line."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except ServiceError as error:
        sys.exit(_fail(str(error), 1))
    except UsageError as error:
        message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        sys.exit(_fail(f"{message}; see `adagrpo --help`", 2))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Terminated:
        sys.exit(_fail("terminated; the same command continues", TERMINATED))
    except Exception as error:
        if os.environ.get("ADAGRPO_TRACEBACK"):
            raise
        text = " ".join(str(error).split())
        sys.exit(_fail(f"{type(error).__name__}: {text} (ADAGRPO_TRACEBACK=1 shows where)", 1))
    if status == INTERRUPTED:
        _fail("interrupted; the same command continues", status)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> int:
    line = " ".join(message[:LONGEST_MESSAGE].split()) + ("..." if len(message) > LONGEST_MESSAGE else "")
    typer.echo(f"adagrpo: {line}", err=True)
    return status
