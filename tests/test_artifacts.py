"""Sealed folders: whole, verified, replaced in one rename."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from adagrpo import artifacts
from adagrpo.artifacts import hash_file, hash_json, manifest, publish, seal, verify, write_file
from adagrpo.errors import UserError


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("alpha")
    (folder / "inner" / "b.bin").write_bytes(bytes(range(100)))
    seal(folder, kind="test", fingerprint="f00d")
    return folder


def edit_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | changes))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sealed_folder_lists_sizes_and_hashes(sealed):
    content = manifest(sealed)
    assert content["kind"] == "test" and content["fingerprint"] == "f00d" and content["schema_version"] == 1
    assert content["files"] == {
        "a.txt": {"size": 5, "sha256": hashlib.sha256(b"alpha").hexdigest()},
        "inner/b.bin": {"size": 100, "sha256": hashlib.sha256(bytes(range(100))).hexdigest()},
    }
    assert verify(sealed) == {name: entry["sha256"] for name, entry in content["files"].items()}


@pytest.mark.parametrize("name", ["a.txt", "inner/b.bin"])
def test_a_flipped_byte_is_refused_by_name(sealed, name):
    data = bytearray((sealed / name).read_bytes())
    data[-1] ^= 1
    (sealed / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        verify(sealed)
    assert str(sealed / name) in one_line(error) and "differs" in str(error.value)


def test_a_truncated_file_is_refused_by_name(sealed):
    (sealed / "inner" / "b.bin").write_bytes(bytes(range(99)))
    with pytest.raises(UserError) as error:
        verify(sealed)
    assert str(sealed / "inner" / "b.bin") in one_line(error)


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
    edit_manifest(sealed, schema_version=2)
    with pytest.raises(UserError) as error:
        verify(sealed)
    assert "schema version 2" in one_line(error) and "reads version 1" in str(error.value)


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


@pytest.mark.parametrize("renames_before_the_crash", [0, 1])
def test_a_crash_while_publishing_never_leaves_a_part(sealed, tmp_path, monkeypatch, renames_before_the_crash):
    target = tmp_path / "place"
    publish(sealed, target)
    before = verify(target)
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "c.txt").write_text("new")
    seal(newer, kind="test", fingerprint="2")
    rename, done = Path.rename, []

    def crash(self: Path, to: Path) -> Path:
        if len(done) == renames_before_the_crash:
            raise KeyboardInterrupt
        done.append(to)
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            publish(newer, target)
    if renames_before_the_crash == 0:
        assert verify(target) == before
    else:  # between the two renames there is none, which a reader sees as "not made yet"
        assert manifest(target) is None
    publish(newer, target)
    assert set(verify(target)) == {"c.txt"}


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
