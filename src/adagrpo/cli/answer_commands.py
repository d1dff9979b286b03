"""The commands diagnose, compare, report and status."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from adagrpo.cli.lazy import library
from adagrpo.cli.options import Command, Common, DryRun, Elsewhere, Out, RunDirectory, close, session
from adagrpo.cli.printing import plan_text, print_values
from adagrpo.errors import UserError

Strata = Annotated[
    bool,
    typer.Option(
        "--strata", help="Instead: gains by difficulty and by the gate's tests, shuffled rewards beside; strata.html."
    ),
]


@Command("diagnose", "answers", sets="recipe", plans=True)
def diagnose(run: RunDirectory, common: Common, out: Elsewhere = None, strata: Strata = False) -> None:
    """Does re-ranking by the reward help, and is its sign right? On validation cases; writes diagnose.html."""
    opened = common.open(run, out)
    if strata:
        with session(opened):
            content = opened.strata()
        if common.as_json:
            typer.echo(json.dumps(content))
            return
        for title, table in library.strata_page.strata_tables(content).items():
            typer.echo(f"{title}\n\n{library.tables.to_text(table)}\n")
        typer.echo("\n".join([*library.strata_page.strata_summary(content), ""]))
        typer.echo(f"page: {opened.directory / 'strata.html'}")
        return
    with session(opened):
        found = opened.diagnose()
    if common.as_json:
        typer.echo(json.dumps(found.content))
        return
    tables = library.diagnosis_page.diagnosis_tables(found.content)
    typer.echo("\n\n".join(library.tables.to_text(tables[name]) for name in ("orders", "evidence")))
    typer.echo(f"\nverdict: {found.verdict}\n" + "\n".join(found.sentences))
    if found.serve is not None:
        typer.echo(f"\n{found.serve}")
    typer.echo(f"\npage: {opened.directory / 'diagnose.html'}")


@Command("compare", "answers", sets="recipe", tracks=True)
def compare(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipes, each on data of its own.")],
    out: Out,
    common: Common,
    objectives: Annotated[
        str | None, typer.Option(help="Arms by name: nll,mixture,adagrpo-random,rerank; the recipe's if not given.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds: 0,1,2; the recipe's if not given.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Make only the runs of these seeds; the same command without it compares.")
    ] = None,
    data: Annotated[
        list[Path], typer.Option(help="The folder of the recipes' relative paths: one for all, or one each.")
    ] = [Path()],  # noqa: B006 (typer reads the default, nothing changes it)
    dry_run: DryRun = False,
) -> None:
    """Train and test arms under several seeds against a baseline; continues an interrupted comparison."""
    part = None if only is None else _seeds("--only", only)
    configs = [library.config.load_config(recipe, common.overrides()) for recipe in recipes]
    console = common.console(out)
    names = [config.name for config in configs] if len(configs) > 1 else []
    for name in names:
        if names.count(name) > 1 or Path(name).name != name:
            raise UserError(f"name: '{name}' cannot name a folder of its own below {out}; names must differ")
    for folder in data:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder (--data)")
    if len(data) not in (1, len(configs)):
        raise UserError(f"--data: {len(data)} folders for {len(configs)} recipes; give one for all, or one each")
    folders, roots = [out / name for name in names] or [out], data * len(configs) if len(data) == 1 else data
    comparisons = [
        library.compare.Comparison(
            folder,
            config,
            root,
            objectives=None if objectives is None else [name.strip() for name in objectives.split(",")],
            seeds=None if seeds is None else _seeds("--seeds", seeds),
            console=console,
            code=recipe.parent,
        )
        for recipe, folder, config, root in zip(recipes, folders, configs, roots, strict=True)
    ]
    if dry_run:
        plans: list[dict[str, Any]] = []
        texts = []
        for comparison in comparisons:
            runs = {str(seed): comparison.plan_of(seed) for seed in comparison.seeds}
            plans.append(comparison.describe() | {"runs": runs})
            comments = "\n\n".join(f"seed {seed}\n{plan_text(content)}" for seed, content in runs.items())
            text = library.yaml_text.dump_yaml(comparison.describe())
            texts.append(text + textwrap.indent(comments, "# ", lambda line: True))
        typer.echo(json.dumps(plans if len(plans) > 1 else plans[0]) if common.as_json else "\n---\n".join(texts))
        return
    try:
        if part is not None:
            made = [str(folder) for comparison in comparisons for folder in comparison.make_runs(part)]
            typer.echo(json.dumps({"runs": made}) if common.as_json else "\n".join(f"run: {folder}" for folder in made))
            return
        results = [comparison.carry_out() | {"page": str(comparison.page)} for comparison in comparisons]
    finally:
        close(console)
    if common.as_json:
        typer.echo(json.dumps(results[0] if len(results) == 1 else {"comparisons": results}))
        return
    for content in results:
        typer.echo(library.tables.to_text(library.comparison_page.comparison_table(content)))
        typer.echo("\n" + "\n".join(content["finding"]) + f"\n\npage: {content['page']}")


@Command("report", "answers", draws=False)
def report(
    run: Annotated[Path, typer.Option("--run", help="The run directory, or the folder of a comparison.")],
    common: Common,
    figures: Annotated[Path | None, typer.Option(help="Also write the charts as SVG files into this folder.")] = None,
    out: Elsewhere = None,
) -> None:
    """Write report.html from what the run has measured so far; of a comparison, its page from comparison.json."""
    if figures is not None and figures.exists() and not figures.is_dir():
        raise UserError(f"{figures}: is a file; --figures takes a folder")
    if (run / "comparison.json").is_file():
        content = library.comparison_page.read_comparison(run / "comparison.json")
        library.marks.check_kind(run, "comparison", "--run")
        if out is not None and out.resolve() != run.resolve():
            if (out / "comparison.json").exists():
                raise UserError(f"--out: {out} is a comparison of its own, with a page; take a new folder")
            library.marks.claim(out, "comparison")
        page = library.comparison_page.write_comparison(out or run, content)
        written = [] if figures is None else library.comparison_page.write_comparison_figures(content, figures)
    else:
        if library.marks.is_marked(run) and library.marks.read_mark(run).get("kind") == "comparison":
            raise UserError(
                f"{run}: its comparison.json is not written yet; `adagrpo status --run {run}` says what to do"
            )
        opened = common.open(run, out)
        with session(opened):
            page = opened.report()
            written = (
                []
                if figures is None
                else library.run_page.write_figures(library.current_files.CurrentFiles(opened), figures)
            )
    print_values({"report": str(page)} | ({"figures": len(written)} if written else {}), common.as_json)


@Command("status", "answers", draws=False)
def show_status(
    run: Annotated[Path, typer.Option("--run", help="The run directory, or the folder of a comparison.")],
    common: Common,
) -> None:
    """Say which stages of a run are done, stale, interrupted or missing, why, and what to do next. Writes nothing."""
    content = library.status.status(run)
    table, lines = library.status.status_tables(content)
    text = [] if table is None else [library.tables.to_text(table), ""]
    typer.echo(json.dumps(content) if common.as_json else "\n".join([*text, *lines]))


def _seeds(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) >= 2**31:
            raise UserError(f"{option}: '{part}' is no seed; write whole numbers from 0 on, for example 0,1,2")
    return [int(part) for part in parts]
