from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from adagrpo.errors import UserError
from examples.datasets import Download, Downloads

WANTED = [Download("x.txt.gz", "https://example.org/x.txt.gz", md5="0" * 32)]


def given(*paths: Path) -> Downloads:
    return Downloads(list(paths), WANTED)


def test_lines_of_a_compressed_file_and_of_a_plain_one_under_its_name(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.txt.gz", "wb") as file:
        file.write(b"a\nb")
    assert list(given(tmp_path / "x.txt.gz").lines("x.txt.gz")) == [b"a", b"b"]
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "x.txt").write_bytes(b"c\n")
    assert list(given(tmp_path / "y").lines("x.txt.gz")) == [b"c"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n <!DOCTYPE html><title>404</title>", "is a web page, a failed download"),
        (b"", "is empty, a failed download"),
        (b'{"asin": 1}\n', "cannot be unpacked"),
        (
            gzip.compress(os.urandom(9000))[:5000],
            r"cannot be unpacked \(0.0 MB\), a truncated download or another file",
        ),
    ],
    ids=["page", "empty", "plain", "cut"],
)
def test_a_broken_download_says_what_was_expected_and_where(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x.txt.gz: {expected}.*expected x.txt.gz from https://example.org/x.txt.gz"):
        list(given(path).lines("x.txt.gz"))


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_broken_archive_says_so(name: str, tmp_path: Path, standins: Any) -> None:
    whole = tmp_path / f"whole.{name}"
    if name == "x.zip":
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr("a", os.urandom(5000))
    else:
        standins.tar_gz(whole, {"a": os.urandom(4000).hex()})
    (tmp_path / name).write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(UserError, match=rf"{name}: cannot be unpacked .* expected x.txt.gz"):
        given(tmp_path / name)


def test_a_damaged_member_of_a_zip_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/a.txt", "0123456789" * 20)
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # a byte of the data, whose checksum then differs
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x.zip: cannot be unpacked"):
        given(path).content("a.txt")


def test_little_that_unpacks_to_much_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    zeros = bytes(2**20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.txt", "w") as file:
        for _ in range(40):
            file.write(zeros)
    with pytest.raises(UserError, match=r"x.zip: holds a file of more than 32 MB"):
        given(tmp_path / "x.zip").content("a.txt")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("a.txt")
        entry.size = 40 * 2**20
        with (tmp_path / "zeros").open("wb") as out:
            out.truncate(entry.size)
        with (tmp_path / "zeros").open("rb") as content:
            tar.addfile(entry, content)
    with pytest.raises(UserError, match=r"x.tar.gz: unpacks to more than 100 times its size"):
        given(tmp_path / "x.tar.gz")
    with gzip.open(tmp_path / "x.txt.gz", "wb") as bomb:
        bomb.write((b"0" * 99 + b"\n") * 400_000)
    with pytest.raises(UserError, match=r"x.txt.gz: unpacks to more than 100 times its size"):
        list(given(tmp_path / "x.txt.gz").lines("x.txt.gz"))


def test_a_header_of_a_tar_archive_cannot_fill_the_memory(tmp_path: Path) -> None:
    """A pax header of 60 MB, which tarfile reads whole, in a file of 60 kB."""
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        header = tarfile.TarInfo("h")
        header.type, header.size = tarfile.XHDTYPE, 60 * 2**20
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(header.size + 1024))
    with pytest.raises(UserError, match=r"x.tar.gz: unpacks to more than 100 times its size"):
        given(tmp_path / "x.tar.gz")


def test_names_in_an_archive_lead_nowhere_and_links_are_no_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s", encoding="utf-8")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(UserError, match=r"a.txt: not in what was given"):
        given(tmp_path / "x.tar").content("a.txt")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../../a.txt", "inside")
    before = sorted(tmp_path.rglob("*"))
    assert given(tmp_path / "x.zip").content("a.txt") == b"inside"
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").symlink_to(secret)
    with pytest.raises(UserError, match=r"a.txt: not in what was given"):
        given(tmp_path / "folder").content("a.txt")


def test_a_published_md5_is_held_against_the_file_of_that_name(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.txt.gz", "wb") as file:
        file.write(b"a\n")
    downloads = given(tmp_path / "x.txt.gz")
    assert downloads.published_md5() == []  # not used yet
    list(downloads.lines("x.txt.gz"))
    (problem,) = downloads.published_md5()
    assert problem.startswith("x.txt.gz has md5 ") and f"published is {'0' * 32}" in problem
