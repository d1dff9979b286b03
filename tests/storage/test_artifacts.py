"""Sealed folders: whole, verified, replaced in one rename."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adagrpo.errors import UserError
from adagrpo.storage import artifacts
from adagrpo.storage.artifacts import manifest, publish, remove_artifact, seal, verify
from adagrpo.storage.hashes import hash_file, hash_json
from adagrpo.storage.marks import claim
from adagrpo.storage.writing import atomic_file, naming, remove, remove_temporary, temporary, unknown_files, write_file


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("alpha")
    (folder / "inner" / "b.bin").write_bytes(bytes(range(100)))
    seal(folder, kind="test", fingerprint="f00d")
    return folder


def edit_manifest(folder: Path, **changes: object) -> None:
    """Change a manifest as somebody would who knows its hash."""
    content = json.loads((folder / "manifest.json").read_text()) | changes
    content["sha256"] = hash_json({name: value for name, value in content.items() if name != "sha256"})
    (folder / "manifest.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def put_inside(target: Path, name: str, kind: str) -> None:
    """An artifact of its own in the folder of another one."""
    folder = target.with_name(name)
    folder.mkdir()
    (folder / "c.txt").write_text(name)
    seal(folder, kind=kind, fingerprint="1")
    folder.rename(target / name)


def newer(folder: Path) -> Path:
    folder.mkdir()
    (folder / "c.txt").write_text("new")
    seal(folder, kind="test", fingerprint="2")
    return folder


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sealed_folder_lists_sizes_and_hashes(sealed):
    content = manifest(sealed)
    assert content["kind"] == "test" and content["fingerprint"] == "f00d" and content["schema_version"] == 2
    assert content["files"] == {
        "a.txt": {"size": 5, "sha256": hashlib.sha256(b"alpha").hexdigest()},
        "inner/b.bin": {"size": 100, "sha256": hashlib.sha256(bytes(range(100))).hexdigest()},
    }
    assert verify(sealed) == {name: entry["sha256"] for name, entry in content["files"].items()}


def test_a_missing_file_is_refused_by_name(sealed):
    (sealed / "a.txt").unlink()
    with pytest.raises(UserError) as error:
        verify(sealed)
    assert f"{sealed / 'a.txt'}: missing" in one_line(error)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "inner/../../outside.txt", "link.txt"])
def test_an_entry_that_leaves_the_folder_is_refused(sealed, name):
    outside = sealed.parent / "outside.txt"
    outside.write_text("alpha")
    (sealed / "link.txt").symlink_to(outside)
    edit_manifest(sealed, files={name: {"size": 5, "sha256": hash_file(outside)}})
    with pytest.raises(UserError) as error:
        verify(sealed)
    assert f"'{name}' leaves the folder" in one_line(error)


def test_another_schema_version_is_refused(sealed):
    for version in (3, 0, "2", None):
        edit_manifest(sealed, schema_version=version)
        with pytest.raises(UserError) as error:
            verify(sealed)
        assert f"{sealed / 'manifest.json'}: schema version {version}, this program reads" in one_line(error)
        assert "versions 1 and 2" in str(error.value)


def test_a_manifest_of_version_1_is_read(sealed):
    content = json.loads((sealed / "manifest.json").read_text())
    old = {name: value for name, value in content.items() if name != "sha256"} | {"schema_version": 1}
    (sealed / "manifest.json").write_text(json.dumps(old, indent=1, sort_keys=True) + "\n")
    assert verify(sealed) == {name: entry["sha256"] for name, entry in content["files"].items()}


@pytest.mark.parametrize("name", ["manifest.json", "a.txt", "inner/b.bin"])
def test_a_flipped_bit_or_a_truncation_anywhere_is_refused_by_name(sealed, name):
    path = sealed / name
    whole = path.read_bytes()
    damaged = [whole[:length] for length in {*range(0, len(whole), 7), len(whole) - 1}]
    for bit in range(0, 8 * len(whole), 19 if len(whole) > 200 else 1):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            verify(sealed)
        assert str(path) in one_line(error)
    path.write_bytes(whole)
    verify(sealed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"x"',
        "{}",
        '{"schema_version": 1}',
        '{"schema_version": 1, "files": []}',
        '{"schema_version": 1, "files": {"a.txt": {"size": 5}}}',
        '{"schema_version": 1, "files": {"a.txt": null}}',
    ],
)
def test_a_damaged_manifest_is_refused_by_name(sealed, text):
    (sealed / "manifest.json").write_text(text)
    for read in (manifest, verify):
        with pytest.raises(UserError) as error:
            read(sealed)
        assert f"{sealed / 'manifest.json'}: damaged" in one_line(error)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path):
    assert manifest(tmp_path) is None
    assert manifest(tmp_path / "absent") is None
    with pytest.raises(UserError, match=r"no manifest\.json"):
        verify(tmp_path)


def test_publish_replaces_what_was_there(sealed, tmp_path):
    target = tmp_path / "deep" / "place"
    publish(sealed, target)
    assert verify(target) and not sealed.exists()
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "c.txt").write_text("new")
    seal(newer, kind="test", fingerprint="2")
    publish(newer, target)
    assert set(verify(target)) == {"c.txt"}
    assert [path.name for path in target.parent.iterdir()] == ["place"]


class Crash(BaseException):
    pass


def crash_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let so many moves of `publish` happen, and crash before the next."""
    rename, exchange, left = Path.rename, artifacts._exchange, [calls]

    def counted(move):
        def wrapper(*paths: Path) -> object:
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            return move(*paths)

        return wrapper

    monkeypatch.setattr(Path, "rename", counted(rename))
    monkeypatch.setattr(artifacts, "_exchange", counted(exchange))
    monkeypatch.setattr(artifacts, "remove", lambda path, known: None)  # nor is anything removed any more


@pytest.mark.parametrize("moves", [0, 1])
def test_a_crash_while_publishing_leaves_the_old_or_the_new(sealed, tmp_path, monkeypatch, moves):
    target = tmp_path / "place"
    publish(sealed, target)
    with monkeypatch.context() as patch:
        crash_after(patch, moves)
        try:
            publish(newer(tmp_path / "newer"), target)
        except Crash:
            assert moves == 0
    assert set(verify(target)) == ({"a.txt", "inner/b.bin"} if moves == 0 else {"c.txt"})


def test_without_an_exchange_the_old_folder_stands_beside_the_new_one_until_it_is_removed(
    sealed, tmp_path, monkeypatch
):
    monkeypatch.setattr(artifacts, "_exchange", lambda one, other: False)
    target = tmp_path / "place"
    publish(sealed, target)
    with monkeypatch.context() as patch:
        crash_after(patch, 2)  # the exchange that cannot be done counts as one
        with pytest.raises(Crash):
            publish(newer(tmp_path / "newer"), target)
    aside = tmp_path / f"newer.{artifacts.TOKEN}.old"
    assert not target.exists() and set(verify(aside)) == {"a.txt", "inner/b.bin"}
    aside.rename(target)
    publish(tmp_path / "newer", target)
    assert set(verify(target)) == {"c.txt"} and [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("name", ["mine.txt", "inner/mine.txt", "deep/.hidden", "inner/link", ".a.txt.old/x"])
def test_a_folder_that_holds_something_else_is_not_replaced(sealed, tmp_path, name):
    target, outside = tmp_path / "place", tmp_path / "outside.txt"
    publish(sealed, target)
    outside.write_text("mine")
    (target / name).parent.mkdir(exist_ok=True)
    if name.endswith("link"):
        (target / name).symlink_to(outside)
    else:
        (target / name).write_text("mine")
    with pytest.raises(UserError) as error:
        publish(newer(tmp_path / "newer"), target)
    assert f"{target / name}: not made by this program; move it away" in one_line(error)
    assert (target / name).read_text() == "mine" and set(verify(target)) == {"a.txt", "inner/b.bin"}


def test_nothing_is_published_over_a_link_or_a_folder_of_somebody_else(sealed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(elsewhere)
    for target in (tmp_path / "link", elsewhere):
        with pytest.raises(UserError, match="not made by this program"):
            publish(sealed, target)
    assert (elsewhere / "mine.txt").read_text() == "mine" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("there", ["sft", "list of recommendations", "run"])
def test_an_artifact_of_another_kind_is_not_replaced(sealed, tmp_path, there):
    target = tmp_path / "place"
    target.mkdir()
    (target / "lists.txt").write_text("mine")
    if there != "sft":
        claim(tmp_path / "marked", there)
        (tmp_path / "marked" / ".adagrpo").rename(target / ".adagrpo")
    if there != "run":
        seal(target, kind=there, fingerprint="1")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(UserError) as error:
        publish(sealed, target)
    assert f"{target}: holds '{there}', not 'test'; take another folder" in one_line(error)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before and verify(sealed)


def test_an_artifact_inside_another_goes_with_it_only_if_that_is_its_place(sealed, tmp_path):
    target = tmp_path / "place"
    publish(sealed, target)
    for name, kind in (("report", "test/report"), ("backup", "report")):
        put_inside(target, name, kind)
        if name == "report":
            publish(newer(tmp_path / "newer"), target)
            assert set(verify(target)) == {"c.txt"} and not (target / "report").exists()
    with pytest.raises(UserError, match=r"backup/c\.txt: not made by this program"):
        publish(newer(tmp_path / "newest"), target)


def test_an_artifact_may_be_in_its_place_before_the_one_around_it(sealed, tmp_path):
    """A report on a ranker of another run stands alone in the folder of rankers; then this run fits one."""
    target = tmp_path / "place"
    for name, kind in (("report", "test/report"), ("other", "elsewhere/other")):
        target.mkdir(exist_ok=True)
        put_inside(target, name, kind)
        if name == "report":
            publish(sealed, target)
            assert manifest(target)["kind"] == "test" and not (target / "report").exists()
            remove_artifact(target)
    with pytest.raises(UserError, match=r"other/c\.txt: not made by this program"):
        publish(newer(tmp_path / "newest"), target)


def test_a_reader_always_finds_a_whole_folder(sealed, tmp_path):
    """While a place is replaced again and again, whoever looks there finds one of the two, whole."""
    target, stop, seen = tmp_path / "place", threading.Event(), set()
    publish(sealed, target)

    def read() -> None:
        while not stop.is_set():
            seen.add(json.loads((target / "manifest.json").read_text())["fingerprint"])

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for turn in range(50):
            folder = tmp_path / f"turn-{turn}"
            folder.mkdir()
            seal(folder, kind="test", fingerprint=str(turn % 2))
            publish(folder, target)
        stop.set()
        reader.result()
    assert seen >= {"0", "1"}


def test_only_temporary_files_of_known_processes_are_removed(tmp_path):
    known, other = "0123456789abcdef", "fedcba9876543210"
    gone = [f".a.json.{known}.tmp", f"b/.c.json.{known}.tmp", f"b/.w.{known}.tmp/.tmpA1b2C3"]
    kept = [f".a.json.{other}.tmp", ".a.json.12.tmp", f"b/a.json.{known}.tmp", f"other/.x.{known}.tmp", "b/.x.old/y"]
    for name in [*gone, *kept]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / f".link.{known}.tmp").symlink_to(tmp_path / "b")
    remove_temporary(tmp_path, [known], lambda folder: folder.name == "other")
    actual = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert actual == set(kept) and (tmp_path / f".link.{known}.tmp").is_symlink()


def test_foreign_files_are_files_of_other_names_and_links(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    outside.mkdir()
    for path in (folder / "a", folder / "inner" / "b", folder / "inner" / ".hidden", outside / "c"):
        path.write_text("x")
    (folder / "linked").symlink_to(outside)
    (folder / "inner" / "a").symlink_to(outside / "c")
    known = {"a", "inner/a", "inner/b"}
    actual = [path.relative_to(folder).as_posix() for path in unknown_files(folder, known.__contains__)]
    assert actual == ["inner/.hidden", "inner/a", "linked"]
    remove(folder, known.__contains__)
    assert {path.name for path in folder.rglob("*")} == {"inner", ".hidden", "a", "linked"}
    assert (outside / "c").read_text() == "x" and unknown_files(tmp_path / "absent", known.__contains__) == []
    assert unknown_files(folder / "linked", known.__contains__) == [folder / "linked"]
    remove(folder / "linked", lambda name: True)
    assert (outside / "c").read_text() == "x"


def test_what_a_library_writes_gets_the_mode_of_other_files_and_leaves_nothing(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "out.bin"
    plain.write_text("x")
    with atomic_file(path) as place:
        place.write_text("new")
        place.chmod(0o600)
        (place.parent / ".tmpA1").write_text("half")
        assert place.parent == temporary(path)
    assert path.read_text() == "new" and path.stat().st_mode == plain.stat().st_mode
    with pytest.raises(OSError, match=r"out\.bin"), atomic_file(path) as place:
        place.write_text("newer")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "new" and {actual.name for actual in tmp_path.iterdir()} == {"plain", "out.bin"}


def test_a_file_is_not_written_through_a_link_or_over_a_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "report.html").symlink_to(tmp_path / "mine.txt")
    (tmp_path / "run.yaml").mkdir()
    for name, what in (("report.html", "link"), ("run.yaml", "folder")):
        with pytest.raises(UserError, match=f"{name}: is a {what}, where a file is to be written"):
            write_file(tmp_path / name, "new")
    assert (tmp_path / "mine.txt").read_text() == "mine" and (tmp_path / "report.html").is_symlink()


def test_an_error_without_a_file_names_the_one_being_written(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*out\.bin'"), naming(tmp_path / "out.bin"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError, match="absent"), naming(tmp_path / "out.bin"):
        (tmp_path / "absent").read_bytes()


def test_an_error_of_the_system_that_a_library_tells_by_its_words_names_the_file(tmp_path):
    message = "parquet: File out of specification: underlying IO error: No space left on device (os error 28)"
    with pytest.raises(OSError, match=r"No space left on device: '.*out\.parquet'"), naming(tmp_path / "out.parquet"):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="else"), naming(tmp_path / "out.parquet"):
        raise RuntimeError("something else")


def test_a_crash_while_sealing_leaves_no_manifest(sealed, monkeypatch):
    (sealed / "manifest.json").unlink()
    monkeypatch.setattr(artifacts, "hash_file", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        seal(sealed, kind="test", fingerprint="")
    assert manifest(sealed) is None


def test_write_file_leaves_the_old_content_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    write_file(path, "old ü")
    assert path.read_text(encoding="utf-8") == "old ü"

    def crash(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, "new")
    assert path.read_text(encoding="utf-8") == "old ü"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    write_file(path, "new")
    assert path.read_text() == "new"


def test_hashes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert hash_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_json({"a": 1, "b": [1.5, None]}) == hash_json({"b": [1.5, None], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": "1"})
    assert hash_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    with pytest.raises(ValueError):
        hash_json(float("nan"))
