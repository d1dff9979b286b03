"""What others give us is data: nothing is unpickled, no code of theirs runs, no name leads out of the run directory."""

from __future__ import annotations

import ast
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from adagrpo import cli
from adagrpo.config import load_config
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import checked_stage
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.run_page import write_report
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.model_folders import refuse_code
from adagrpo.trainer.checkpoints import load_weights

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    *(f"torch.{name}" for name in ("load", "save", "hub.load", "jit.load", "package.PackageImporter")),
    *(f"{numpy}.{name}" for numpy in ("np", "numpy") for name in ("load", "save", "savez", "savez_compressed")),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "dump", "Loader", "UnsafeLoader")),
    *("pd.read_pickle", "pandas.read_pickle", "os.system", "os.popen", "eval", "exec", "compile"),
}
FORBIDDEN_ARGUMENTS = {"allow_pickle", "trust_remote_code", "weights_only", "shell"}


def offences(tree: ast.AST) -> Iterator[str]:
    """What a module does that none of ours may do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            result = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            yield from (name for name in result if name.partition(".")[0] in FORBIDDEN_MODULES)
            yield from (name for name in result if name in FORBIDDEN_CALLS)
        elif isinstance(node, ast.Attribute | ast.Name):
            name = ast.unparse(node)
            if name in FORBIDDEN_CALLS:
                yield name
        elif isinstance(node, ast.keyword) and node.arg in FORBIDDEN_ARGUMENTS:
            yield node.arg
        elif isinstance(node, ast.Constant) and node.value in FORBIDDEN_ARGUMENTS:
            yield str(node.value)  # a name that reaches a call through a dictionary


def printing(tree: ast.AST) -> Iterator[ast.AST]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print")


def test_nothing_is_unpickled_no_code_of_others_runs_and_only_the_command_line_prints() -> None:
    for path in SOURCES:
        tree, name = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT / "src/adagrpo")
        assert not [*offences(tree)], name
        if name.parts[0] not in ("cli", "console.py"):
            assert not [*printing(tree)], name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "read = torch.load",
        "np.load('x')",
        "f(allow_pickle=True)",
        "f(**{'trust_remote_code': True})",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval('1')",
    ],
)
def test_the_check_of_sources_finds(text: str) -> None:
    assert [*offences(ast.parse(text))]
    assert [*printing(ast.parse(f"{text}\nprint('x')"))]


# ---------------------------------------------------------------- files that would run something


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def traps(mark: Path) -> dict[str, bytes]:
    """Malicious content by kind."""
    saved, array, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weight": Trap(mark)}, saved)
    np.save(array, np.array([Trap(mark)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../escaped.txt", "out")
    return {"pt": saved.getvalue(), "npy": array.getvalue(), "pkl": pickle.dumps(Trap(mark)), "zip": archive.getvalue()}


def test_the_traps_are_set(tmp_path: Path) -> None:
    pickle.loads(traps(tmp_path / "mark")["pkl"])
    assert (tmp_path / "mark").exists()


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("target", ["weights", "codes", "truth", "manifest", "run.yaml", "log.parquet", "lightgbm"])
def test_a_malicious_file_in_the_place_of_ours_runs_nothing(
    copied: Path, world: Any, data: Path, tmp_path: Path, target: str
) -> None:
    mark = tmp_path / "mark"
    run: Run = world.run(copied, data)
    outside = everything(data)
    places = {
        "weights": copied / "sft" / "best" / "model.safetensors",
        "codes": copied / "tokenize" / "codes.parquet",
        "truth": copied / "prepare" / "train.parquet",
        "manifest": copied / "sft" / "manifest.json",
        "run.yaml": copied / "run.yaml",
        "log.parquet": tmp_path / "log.parquet",
        "lightgbm": tmp_path / "model.txt",
    }
    for content in traps(mark).values():
        places[target].write_bytes(content)
        with pytest.raises(UserError) as caught:
            match target:
                case "weights":
                    models = Models(RunData(run))
                    load_weights(places[target].parent, models.policy())
                case "run.yaml":
                    Run.open(copied)
                case "log.parquet":
                    from adagrpo.data.logs.interactions import Columns, read_logs

                    read_logs([places[target]], Columns(timestamp="timestamp"))
                case "lightgbm":
                    from adagrpo.rewards import load_model

                    load_model(places[target])
                case _:
                    checked_stage(run, places[target].relative_to(copied).parts[0])
        assert places[target].name in str(caught.value)
    assert not mark.exists() and not [*tmp_path.rglob("escaped.txt")]
    assert everything(data) == outside


# ---------------------------------------------------------------- YAML


TAGS = [
    "!!python/object/apply:os.system ['touch MARK']",
    "!!python/object/new:pathlib.Path ['MARK']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!include MARK",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_are_refused(tmp_path: Path, tag: str, copied: Path) -> None:
    value = tag.replace("MARK", str(tmp_path / "mark"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{logs: [a.csv]}}\nname: {value}\n")
    with pytest.raises(UserError, match="not a YAML file"):
        load_config(recipe)
    recipe.write_text("data: {logs: [a.csv]}\n")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(recipe, [f"name={value}"])
    (copied / "run.yaml").write_text(f"config: {value}\n")
    with pytest.raises(UserError, match=r"run\.yaml: damaged"):
        Run.open(copied)
    with pytest.raises(UserError, match=r"run\.yaml: cannot be read"):
        write_report(copied)
    assert not (tmp_path / "mark").exists()


def test_a_yaml_of_a_billion_laughs_ends_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join(lines))
    with pytest.raises(UserError, match="stands for more than 1 MB"):
        load_config(recipe)


# ---------------------------------------------------------------- names


HOSTILE = ["../out", "/tmp/out", "a/../../out", "..", "a\x00b", "~/out"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_recipes_never_lead_out(tmp_path: Path, world: Any, data: Path, name: str, monkeypatch: Any) -> None:
    content = world.recipe(name=name)
    before = {path.name for path in tmp_path.iterdir()}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    command = ["adagrpo", "compare", str(recipe), str(recipe), "--out", str(tmp_path / "out"), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", [*command, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert {path.name for path in tmp_path.iterdir()} <= before | {"recipe.yaml"}


@pytest.mark.parametrize("name", [*HOSTILE, "sft/best", ""])
def test_an_arm_that_is_asked_for_by_name_is_one_of_the_run(
    copied: Path, name: str, monkeypatch: Any, capsys: Any
) -> None:
    to = copied.parent / "exported"
    command = ["adagrpo", "export", "--run", str(copied), "--to", str(to), "--arm", name, "--quiet"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and not to.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_manifest_that_names_files_elsewhere_is_refused(copied: Path) -> None:
    path = copied / "sft" / "manifest.json"
    content = json.loads(path.read_text())
    content["files"]["../../secret"] = {"size": 0, "sha256": "0" * 64}
    content["sha256"] = hash_json({name: value for name, value in content.items() if name != "sha256"})
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    with pytest.raises(UserError, match="leaves the folder"):
        checked_stage(Run.open(copied), "sft")


# ---------------------------------------------------------------- folders of models


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "inner/config.json"])
def test_a_model_folder_that_names_code_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=rf"policy\.lm\.checkpoint: .*{path.name} names code of its own"):
        refuse_code(tmp_path, "policy.lm.checkpoint")


def test_pickled_weights_are_refused_where_there_are_no_others(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="would have to be unpickled"):
        refuse_code(tmp_path, "policy.lm.checkpoint")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "broken.json").write_text("[" * 10_000)
    refuse_code(tmp_path, "policy.lm.checkpoint")


def test_a_causal_model_that_brings_code_is_refused_before_it_is_read(tmp_path: Path) -> None:
    language_model = pytest.importorskip("adagrpo.policies.language_model")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"}})
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    for read in (
        lambda: language_model.from_folder(tmp_path, (4, 4), seed=0, weights=True),
        lambda: language_model.template_tokens(tmp_path, "suffix", "text"),
        lambda: language_model.copy_tokenizer(tmp_path, tmp_path / "other"),
    ):
        with pytest.raises(UserError, match="names code of its own"):
            read()
