from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrpo.config import Config
from adagrpo.console import Silent
from adagrpo.errors import UserError
from adagrpo.pipeline import Run
from adagrpo.pipeline import make as module
from adagrpo.pipeline.description import config_hash, read_description, write_description
from adagrpo.pipeline.directory import events_of, hash_of, locked
from adagrpo.pipeline.outputs import keep_settings, record, write_output
from adagrpo.pipeline.stage import Declaration
from adagrpo.storage.artifacts import verify
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.marks import claim
from adagrpo.storage.writing import TOKEN

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.reliability.processes import Server, server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(tmp_path / "run", tmp_path)


def open_run(directory: Path, data: Path) -> Run:
    return Run(directory, Config.model_validate({"data": {"logs": ["log.csv"]}}), data)


def writer(text: str) -> Callable[[Path], None]:
    def build(work: Path) -> None:
        (work / "report.json").write_text(text, encoding="utf-8")

    return build


def refuse(work: Path) -> None:
    raise AssertionError("built again")


def events(run: Run) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in run.path("events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"time", "stage", "event", "seconds", "check"} for row in rows)
    assert [row | {"check": None} for row in rows] == [row | {"check": None} for row in events_of(run)]
    return [(row["stage"], row["event"]) for row in rows]


def stage(run: Run, name: str, **given: Any) -> None:
    module.make(run, name, Declaration(files=("report.json", "metrics.json"), **given))


def make(run: Run, text: str, *, config: Any = 0, inputs: tuple[Path, ...] = ()) -> str:
    stage(run, "a/b", also=config, reads=inputs, build=writer(text))
    return run.path("a", "b", "report.json").read_text(encoding="utf-8")


def test_a_stage_is_made_once_for_one_configuration_and_input(run: Run) -> None:
    source_file = run.data / "given.txt"
    source_file.write_text("1", encoding="utf-8")
    assert make(run, "first", inputs=(source_file,)) == "first"
    stage(run, "a/b", also=0, reads=[source_file], build=refuse)
    assert make(run, "other config", config=1, inputs=(source_file,)) == "other config"
    source_file.write_text("2", encoding="utf-8")
    assert make(run, "other input", config=1, inputs=(source_file,)) == "other input"
    assert [event for _, event in events(run)] == ["start", "end", "skip", "start", "end", "start", "end"]
    assert list(run.path(".work").iterdir()) == []


def test_a_fingerprint_does_not_depend_on_where_the_run_is(tmp_path: Path) -> None:
    fingerprints = set()
    for place in ("here", "there/below"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "given.txt").write_text("1", encoding="utf-8")
        run = open_run(folder / "run", folder)
        make(run, "x", inputs=(folder / "given.txt",))
        fingerprints.add(json.loads(run.path("a", "b", "manifest.json").read_text(encoding="utf-8"))["fingerprint"])
    assert len(fingerprints) == 1


def test_an_interrupted_stage_goes_on_from_its_work_folder(run: Run) -> None:
    def stops(work: Path) -> None:
        (work / "checkpoints").mkdir()
        (work / "metrics.json").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    def continues(work: Path) -> None:
        assert (work / "metrics.json").read_text(encoding="utf-8") == "half"
        writer("whole")(work)

    with pytest.raises(KeyboardInterrupt):
        stage(run, "a", also=0, reads=[], build=stops)
    assert not run.path("a").exists()
    stage(run, "a", also=0, reads=[], build=continues)
    assert sorted(verify(run.path("a"))) == ["metrics.json", "report.json"]  # and no checkpoints
    assert events(run) == [("a", "start"), ("a", "start"), ("a", "end")]


def test_a_work_folder_of_another_configuration_is_thrown_away(run: Run) -> None:
    def stops(work: Path) -> None:
        (work / "metrics.json").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    for config in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            stage(run, "a", also=config, reads=[], build=stops)
    stage(run, "a", also=2, reads=[], build=writer("whole"))
    assert sorted(verify(run.path("a"))) == ["report.json"]


def test_a_crash_while_a_work_folder_is_removed_leaves_nothing_to_continue(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(work: Path) -> None:
        (work / "metrics.json").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    def crash(path: Path, known: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(run, "a", also=0, reads=[], build=stops)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "remove", crash)
        stage(run, "a", also=1, reads=[], build=writer("1"))
    stage(run, "a", also=0, reads=[], build=writer("0"))
    assert sorted(verify(run.path("a"))) == ["report.json"]


@pytest.mark.parametrize("moment", ["before publishing", "between the two renames", "after publishing"])
def test_an_interrupted_publish_loses_no_work(run: Run, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    real = module.publish

    def crash(directory: Path, target: Path) -> None:
        if moment == "between the two renames":
            target.rename(directory.with_name(f"{directory.name}.{TOKEN}.old"))
        if moment == "after publishing":
            real(directory, target)
        raise KeyboardInterrupt

    stage(run, "a", also=0, reads=[], build=writer("old"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "publish", crash)
        stage(run, "a", also=1, reads=[], build=writer("new"))
    stage(run, "a", also=1, reads=[], build=refuse)
    assert run.path("a", "report.json").read_text(encoding="utf-8") == "new"
    verify(run.path("a"))
    assert list(run.path(".work").iterdir()) == []


def test_a_crash_after_publishing_leaves_nothing_behind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the marker of the attempt nor what was there before, which must not come back under its old name."""
    real = module.publish

    def crash(directory: Path, target: Path) -> None:
        kept = directory.with_name("kept")
        target.rename(kept)
        real(directory, target)
        kept.rename(directory)  # as after an exchange, before the old folder is removed
        raise KeyboardInterrupt

    stage(run, "a", also=0, reads=[], build=writer("old"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "publish", crash)
        stage(run, "a", also=1, reads=[], build=writer("new"))
    assert run.path(".work", "a", "report.json").read_text(encoding="utf-8") == "old"
    again = shutil.copytree(run.directory, run.directory.with_name("again"))
    stage(run, "a", also=1, reads=[], build=refuse)
    assert list(run.path(".work").iterdir()) == []
    shutil.rmtree(again / "a")
    other = open_run(again, run.data)
    stage(other, "a", also=1, reads=[], build=writer("new"))
    assert other.path("a", "report.json").read_text(encoding="utf-8") == "new"


def test_a_stage_whose_manifest_is_gone_is_named_with_what_to_delete(copied: Path, world: Any, data: Path) -> None:
    (copied / "ranker/manifest.json").unlink()
    changed: Run = world.run(copied, data, ranker={"width": 8})
    with pytest.raises(UserError) as caught:
        changed.ranker()
    assert str(caught.value) == f"{copied}/ranker/manifest.json: missing; delete {copied}/ranker to have it made again"
    mine = copied / "ranker/mine.txt"  # somebody else's file is still no part of it
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.txt: not made by this program; move it away"):
        changed.ranker()
    mine.unlink()
    (copied / "ranker/best/checkpoint.json").rename(copied / "mine")
    (copied / "ranker/best/checkpoint.json").symlink_to(copied / "mine")
    with pytest.raises(UserError, match=r"checkpoint\.json: not made by this program; move it away"):
        changed.ranker()
    shutil.rmtree(copied / "ranker")
    changed.ranker()
    assert "ranker" in changed.made


def test_half_written_files_of_a_killed_process_do_not_get_into_a_stage(run: Run) -> None:
    def stops(work: Path) -> None:
        (work / f".metrics.json.{TOKEN}.tmp").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(run, "a", also=0, reads=[], build=stops)
    stage(run, "a", also=0, reads=[], build=writer("whole"))
    assert sorted(verify(run.path("a"))) == ["report.json"]


def test_a_damaged_work_folder_is_not_published(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(directory: Path, target: Path) -> None:
        (directory / "report.json").write_text("damaged", encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "publish", crash)
        stage(run, "a", also=0, reads=[], build=writer("x"))
    with pytest.raises(UserError, match=r"report\.json: content differs"):
        stage(run, "a", also=0, reads=[], build=refuse)


def test_a_changed_file_of_a_stage_is_refused_by_name(run: Run) -> None:
    make(run, "x")
    changed = run.path("a", "b", "report.json")
    changed.write_text("y", encoding="utf-8")
    with pytest.raises(UserError, match=r"a/b/report\.json: "):
        make(run, "x")
    with pytest.raises(UserError, match=r"a/b/report\.json: content differs .*delete .*a/b to have it made again"):
        stage(run, "c", also=0, reads=[changed], build=refuse)
    stranger = run.path("a", "b", "stranger.txt")
    stranger.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"stranger\.txt"):
        hash_of(run, stranger)


def test_missing_inputs_say_what_to_do(run: Run) -> None:
    with pytest.raises(UserError, match=r"codes\.parquet: missing; run `adagrpo tokenize --run .*` first"):
        hash_of(run, run.path("tokenize", "codes.parquet"))
    with pytest.raises(UserError, match=r"log\.csv: no such file; check the recipe and --data"):
        hash_of(run, run.data / "log.csv")


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "file", tmp_path)


@pytest.mark.parametrize(
    "content", ["[", "a: 1", f"config: {{}}\ndata: {{}}\nsha256: {hash_json({'config': {}, 'data': {}})}", ""]
)
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    claim(tmp_path, "run")
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.yaml: damaged"):
        Run.open(tmp_path)


def test_overrides_of_an_opened_run_are_kept_when_the_work_is_done(run: Run) -> None:
    keep_settings(run, {"log.csv": "0" * 64})
    before = run.path("run.yaml").read_bytes()
    keep_settings(Run.open(run.directory))
    opened = Run.open(run.directory, ["seed=7"])
    assert opened.config.seed == 7 and opened.described == run.config
    assert run.path("run.yaml").read_bytes() == before
    keep_settings(opened)
    content = yaml.safe_load(run.path("run.yaml").read_text(encoding="utf-8"))
    assert content["config"]["seed"] == 7 and content["data"] == {"log.csv": "0" * 64}
    assert content["arms"] == run.config.settings_of_arms()
    assert content["config_hash"] == config_hash(Run.open(run.directory).config) != config_hash(run.config)


def test_a_description_that_was_changed_by_hand_is_refused(run: Run) -> None:
    keep_settings(run, {"log.csv": "0" * 64})
    path = run.path("run.yaml")
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("seed: 0", "seed: 1"), encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.yaml: not as it was written; change keys by --set"):
        Run.open(run.directory)
    path.write_text(whole.replace("seed: 0", "seed:   0"), encoding="utf-8")  # the same content
    assert Run.open(run.directory).config == run.config


def test_what_belongs_to_no_stage_is_held_against_the_description(run: Run) -> None:
    keep_settings(run, {})
    path = write_output(run, "metrics.json", "{}\n")
    assert run.checked("metrics.json") == path and run.find("results.jsonl") is None
    record(run, "reward", {"kind": "noise"})
    keep_settings(run, {})
    path.write_text("[]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.json: changed after it was made; run `adagrpo evaluate"):
        run.find("metrics.json")


def test_a_damaged_description_is_replaced_and_what_it_vouched_for_is_not_believed(run: Run) -> None:
    keep_settings(run, {})
    write_output(run, "metrics.json", "{}\n")
    run.path("run.yaml").write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.yaml: damaged; carry out `adagrpo run`"):
        Run.open(run.directory)
    keep_settings(run, {})  # as `adagrpo run` and `adagrpo prepare` do
    assert Run.open(run.directory).config == run.config
    with pytest.raises(UserError, match=r"metrics\.json: changed after it was made; run `adagrpo evaluate"):
        run.find("metrics.json")
    run.path("notes.json").write_text("{}", encoding="utf-8")
    assert run.find("notes.json") is not None  # the user's own


def test_a_row_of_the_events_that_was_changed_is_refused(run: Run) -> None:
    make(run, "x")
    path = run.path("events.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace('"end"', '"and"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"events\.jsonl: line 2 is not as it was written"):
        events_of(run)


def test_a_run_goes_on_from_one_that_it_never_writes_to(run: Run, tmp_path: Path) -> None:
    keep_settings(run, {"log.csv": "0" * 64})
    make(run, "first")
    write_output(run, "metrics.json", "{}\n")
    before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    for opened in (run.directory, out):  # the second time the mark of `out` says where it goes on from
        other = Run.open(opened, ["seed=7"], out=out)
        assert make(other, "unchanged") == "first" and other.path("a", "b") == run.directory.resolve() / "a" / "b"
        assert other.find("metrics.json") is not None
    assert make(other, "second", config=1) == "second" and other.path("a", "b") == out / "a" / "b"
    write_output(other, "metrics.json", "[]\n")
    assert other.checked("metrics.json").read_text(encoding="utf-8") == "[]\n"
    assert [row["event"] for row in events_of(other)] == ["start", "end", "skip", "skip", "start", "end"]
    keep_settings(other)
    assert {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()} == before
    assert Run.open(out).config.seed == 7
    with pytest.raises(UserError, match=r"--out: .*out goes on from .* itself"):
        Run.open(out, out=tmp_path / "third")
    run.directory.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"out: reads what it lacks from .* put it back"):
        Run.open(out)


@pytest.mark.parametrize("name", ["mine.txt", ".hidden", ".a.old/x", "a/b/mine.txt"])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "run"
    (directory / name).parent.mkdir(parents=True)
    (directory / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"run: is not empty and no run of this program .*; --out takes a new folder"):
        open_run(directory, tmp_path)
    assert [path for path in directory.rglob("*") if path.is_file()] == [directory / name]


@pytest.mark.parametrize("place", ["a/b/mine.txt", "a/b/c/mine.txt", ".work/a.b/mine.txt", "a/b/.report.json.12.tmp"])
def test_a_stage_is_not_made_anew_where_something_else_stands(run: Run, place: str) -> None:
    make(run, "first")
    mine = run.path(*place.split("/"))
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{mine.name}: not made by this program; move it away"):
        stage(run, "a/b", also=1, reads=[], build=refuse)
    assert mine.read_text(encoding="utf-8") == "mine"
    assert run.path("a", "b", "report.json").read_text(encoding="utf-8") == "first"
    mine.unlink()
    assert make(run, "second", config=1) == "second"


@pytest.mark.parametrize("name", ["a", "a/b", ".work", ".work/a.b", "events.jsonl", ".lock"])
def test_nothing_is_written_or_removed_through_a_link(run: Run, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "b").mkdir(parents=True)
    for mine in ("report.json", "b/report.json"):
        (elsewhere / mine).write_text("mine", encoding="utf-8")
    keep_settings(run, {})
    link = run.path(*name.split("/"))
    link.unlink(missing_ok=True)
    if link.is_dir():
        link.rmdir()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere / "report.json" if "." in link.name[1:] or name == ".lock" else elsewhere)
    with pytest.raises((UserError, OSError), match=f"{link.name}|cannot be written"):
        stage(run, "a/b", also=0, reads=[], build=writer("x"))
    assert link.is_symlink()
    for mine in ("report.json", "b/report.json"):
        assert (elsewhere / mine).read_text(encoding="utf-8") == "mine"


def test_a_stage_that_writes_a_file_of_no_known_name_is_not_taken_for_one(run: Run) -> None:
    def build(work: Path) -> None:
        (work / "unheard-of.bin").write_text("x", encoding="utf-8")

    with pytest.raises(UserError, match=r"unheard-of\.bin: not made by this program"):
        stage(run, "a", also=0, reads=[], build=build)


def test_half_a_line_of_a_crash_is_cut_from_the_events(run: Run) -> None:
    make(run, "x")
    with run.path("events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": "20')
    make(run, "x")
    assert [event for _, event in events(run)] == ["start", "end", "skip"]
    run.path("events.jsonl").write_text('{"ti', encoding="utf-8")
    make(run, "x")
    assert [event for _, event in events(run)] == ["skip"]


def test_locks_nest_and_are_given_back(run: Run) -> None:
    with locked(run), locked(run):
        make(run, "x")
        with pytest.raises(UserError, match=f"process {os.getpid()} is at work here"):
            make(open_run(run.directory, run.data), "x")
    make(open_run(run.directory, run.data), "x")
    with pytest.raises(ZeroDivisionError), locked(run):
        raise ZeroDivisionError
    make(open_run(run.directory, run.data), "x")


def test_another_process_is_refused_and_a_dead_one_is_not(run: Run) -> None:
    run.directory.mkdir()
    claim(run.directory, "run")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write('4711\\n'); f.flush()"
    script = f"{hold}; print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(run.path(".lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="process 4711 is at work here"):
            make(run, "x")
        assert not run.path("events.jsonl").exists() and not run.path("a").exists()
        holder.kill()
    assert run.path(".lock").read_text(encoding="utf-8") == "4711\n"
    make(run, "x")
    assert run.path(".lock").read_text(encoding="utf-8") == f"{os.getpid()}\n{TOKEN}\n"


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Processes of their own, which import nothing, and what the last one wrote to stderr."""
    folder = tmp_path_factory.mktemp("processes")
    with server(folder) as result:
        yield result, folder / "said.txt"


@pytest.mark.slow
def test_a_killed_process_is_continued_to_the_same_bytes(
    finished: Path,
    data: Path,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
    world: Any,
    processes: tuple[Server, Path],
) -> None:
    """A real process, stopped in the middle of sft or soon after, refused a second one beside it, then killed."""
    directory = tmp_path / "run"
    arguments = ["run", str(data / "recipe.yaml"), "--data", str(data), "--out", str(directory), "--quiet"]
    pid = processes[0].start(arguments)
    try:
        deadline = time.monotonic() + 120
        while not (list(directory.glob(".work/sft/checkpoints/0*")) or (directory / "sft").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(pid, signal.SIGSTOP)
        run = world.run(directory, data)
        with pytest.raises(UserError, match=f"process {pid} is at work here"):
            run.complete()
    finally:
        os.kill(pid, signal.SIGKILL)
        assert processes[0].wait()[0] == -signal.SIGKILL
    world.run(directory, data).complete()
    assert contents(directory) == contents(finished)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_fit_that_is_told_to_end_saves_its_step_and_is_continued_to_the_same_bytes(
    finished: Path,
    data: Path,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
    world: Any,
    number: signal.Signals,
    status: int,
    processes: tuple[Server, Path],
) -> None:
    directory = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load((data / "recipe.yaml").read_text(encoding="utf-8"))
    content["sft"]["checkpoint_seconds"] = 3600  # nothing is saved but for the signal
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["run", str(recipe), "--data", str(data), "--out", str(directory), "--quiet"]
    pid = processes[0].start(command)
    steps = directory / ".work" / "sft" / "steps.jsonl"
    deadline = time.monotonic() + 120
    while not (steps.is_file() and steps.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(pid, number)
    assert processes[0].wait()[0] == status
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert processes[1].read_text(encoding="utf-8") == f"adagrpo: {word}; the same command continues\n"
    (saved,) = directory.glob(".work/sft/checkpoints/0*")
    assert int(saved.name) == len(steps.read_text(encoding="utf-8").splitlines())
    world.run(directory, data).complete()
    assert contents(directory) == contents(finished)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["adagrpo.cli", "adagrpo.pipeline", "torch"])
def test_an_interruption_while_modules_are_imported_is_one_line(module: str) -> None:
    program = "import sys; sys.argv = ['adagrpo', 'doctor'];"
    program += "import signal, adagrpo.__main__ as m; sys.meta_path.insert(0, type('F', (), {'find_spec': "
    program += f"staticmethod(lambda name, *_: signal.raise_signal(signal.SIGINT) if name == '{module}' else None)}}));"
    output = subprocess.run([sys.executable, "-c", program + "m.main()"], capture_output=True, text=True, check=False)
    assert (output.returncode, output.stderr) == (130, "adagrpo: interrupted; the same command continues\n")


class Notes(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_an_old_run_opens_without_the_keys_of_gates_that_are_gone(copied: Path) -> None:
    content, console = read_description(copied), Notes()
    gone = {"earlier": {"least": 0.3}, "later": {}}
    content["config"]["objective"] |= gone
    content["config"]["train"]["arms"][1] |= {"name": "other", "options": {"earlier": {"least": 0.2}, "negatives": 3}}
    write_description(copied, content)
    run = Run.open(copied, console=console)
    assert run.config.train.arms[1].resolved_objective(run.config.objective).negatives == 3
    names = "objective.earlier, objective.later"
    assert console.told == [f"note: {copied}/run.yaml: {names}: not registered here and not in use, so not read"]
    keep_settings(run)  # as the end of a command does
    Run.open(copied, console=console)
    assert len(console.told) == 1
    content["config"]["train"]["arms"][1] |= {"gate": "earlier"}  # the gate in use
    write_description(copied, content)
    with pytest.raises(UserError, match=r"run.yaml: train.arms.1.gate: Input should be 'adagrpo', 'all', "):
        Run.open(copied)
