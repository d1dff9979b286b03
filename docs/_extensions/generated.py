"""Parts of pages that the code writes at each build, so that they cannot fall behind it.

A line `<!-- generated: commands -->` becomes every command with its arguments and options, `metrics` the table of
metrics, `gates` that of the gates which do not test the logged item themselves, and `gate_options` the rows of what
gates read in the table of a recipe's keys. Equations in the docstrings of modules, which are indented blocks there, are
shown as they stand.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import typer

from adagrpo.cli import app as command_line
from adagrpo.metrics import METRICS, comparable
from adagrpo.objective import GATES

__all__ = ["commands", "gate_options", "gates", "metrics", "setup", "written"]

MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
BETTER = {"higher": "higher", "lower": "lower", None: "neither"}


def commands() -> str:
    """Markdown: a section a command, in the order of `adagrpo --help`."""
    group: Any = typer.main.get_command(command_line)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def metrics() -> str:
    """Markdown: the table of metrics, a row a name before the `@`."""
    planned = {name.partition("@")[0] for name in comparable()}
    lines = ["| metric | in print | cut-offs | better | a comparison may claim it |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        at = ", ".join(str(k) for k in metric.at if k is not None) or "none"
        claim = "yes" if metric.name in planned else "no"
        lines.append(f"| `{metric.name}` | {metric.label} | {at} | {BETTER[metric.better]} | {claim} |")
    return "\n".join(lines)


def gates() -> str:
    """Markdown: the gates that are compared with those that test the logged item, and what each admits."""
    rows = [f"| `{gate.name}` | {_cell(gate.summary)} |" for gate in GATES.values() if not gate.tests_logged_item]
    return "\n".join(["| gate | what it does |", "|---|---|", *rows])


def gate_options() -> str:
    """Markdown: the rows of the keys that gates read, from what their functions say of them."""
    rows = []
    for gate in GATES.values():
        for name, (_, default) in gate.options.items():
            said = re.search(rf"^    {name}: (.*(?:\n        .*)*)", inspect.getdoc(gate.rule) or "", re.MULTILINE)
            value = "null" if default is None else default
            rows.append(f"| `objective.{gate.name}.{name}` | `{value}` | {_cell(said[1] if said else '')} |")
    return "\n".join(rows)


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "metrics": metrics,
    "gates": gates,
    "gate_options": gate_options,
}


def _command(name: str, command: Any) -> str:
    arguments = [_metavar(one) for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(["adagrpo", name, "[OPTIONS]", *arguments])
    options = [one for one in command.params if one.param_type_name == "option"]
    rows = [
        f"| {_cell(_flags(one))} | {_cell(_flags_as_code(one.help or ''))} | {_cell(_default(one))} |"
        for one in options
    ]
    parts = [f"## `adagrpo {name}`", _flags_as_code(command.help or ""), f"```text\n{usage}\n```"]
    arguments = [one for one in command.params if one.param_type_name == "argument" and one.help]
    told = [f"- `{_metavar(one)}`: {_flags_as_code(one.help)}" for one in arguments]
    if told:
        parts.append("\n".join(told))
    if rows:
        parts.append("\n".join(["| option | | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _flags_as_code(text: str) -> str:
    """Options in a text as code, where two dashes do not become a long one."""
    return re.sub(r"(?<![\w`-])--[a-z][a-z-]*", r"`\g<0>`", text)


def _metavar(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper()
    return name if parameter.nargs == 1 or name.endswith("...") else f"{name}..."


def _flags(option: Any) -> str:
    names = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    word = " or ".join(map(str, _choices(option))) or option.metavar or option.name.upper()
    return f"{names} {word}"


def _choices(option: Any) -> Sequence[Any]:
    """What an option may be, where it is one of a few words; some versions of typer keep click's type, others hints."""
    described = getattr(option, "type_descriptor", None)
    if described is None:
        return getattr(option.type, "choices", ())
    hint = described.annotation
    return get_args(hint) if get_origin(hint) is Literal else ()


def _default(option: Any) -> str:
    if option.required:
        return "*required*"
    value = option.default() if callable(option.default) else option.default
    if option.is_flag or value is None or value == [] or value == "":
        return ""
    return f"`{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def written(page: str) -> str:
    """A page with what the code writes in it."""
    return MARKER.sub(lambda marker: GENERATED[marker.group(1)](), page)


def _write(app: Any, name: str, source: list[str]) -> None:
    source[0] = written(source[0])


def _equations(app: Any, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    """Make each indented block of a module's docstring a literal one."""
    if what == "module":
        begins = [i for i in range(1, len(lines)) if lines[i].startswith("    ") and not lines[i - 1].strip()]
        for i in reversed(begins):
            lines[i:i] = ["::", ""]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _write)
    app.connect("autodoc-process-docstring", _equations)
    return {"parallel_read_safe": True}
