"""What a user downloaded: files, folders and archives, looked at as the files that a set is made from.

A wanted file is known by the end of its path, such as `ml-1m/ratings.dat`. It is looked for among the files that were
given, below folders, and in zip and tar archives, which are read and never unpacked onto the disk. What comes out of
an archive is bounded as everywhere, see `adagrpo.readers.formats`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from adagrpo.errors import UserError
from adagrpo.readers.formats import MAX_EXPANSION, expansion_limit, read_blocks

__all__ = ["Download", "Downloads"]

BLOCK = 2**22  # bytes of text at a time
LARGEST_FILE = 2**29  # bytes of one that is read whole
MOST_ENTRIES = 200_000  # of a folder or an archive
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
HEAD = 512  # bytes that tell what a file is
BROKEN = (
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    tarfile.TarError,
    RuntimeError,
)  # the last: encrypted


@dataclass(frozen=True)
class Download:
    """One of the official files of a set.

    Attributes:
        name: as its publisher calls it.
        address: where it is published.
        size: in words; None where no size is known from a second place.
        md5: of the file, where its publisher or two independent places state it.
    """

    name: str
    address: str
    size: str | None = None
    md5: str | None = None


class _Place(NamedTuple):
    """A file, or a member of an archive."""

    path: Path
    member: str | None = None
    alone: bool = False  # given as a file, not found in a folder or an archive


class Downloads:
    """The files that were given for a set."""

    def __init__(
        self, paths: Sequence[Path], wanted: Sequence[Download], tell: Callable[[str], None] = lambda text: None
    ) -> None:
        """Look at what was given.

        Args:
            paths: files, folders, archives.
            wanted: what the set's publisher offers, for messages.
            tell: is told of each file when reading it begins.

        Raises:
            UserError: nothing was given, a path does not exist, or a file is a web page or a broken archive.
        """
        self.wanted, self.tell = list(wanted), tell
        self.places: list[tuple[PurePosixPath, _Place]] = []
        self.files: list[Path] = []  # that were used, in the order of use
        self.given = [Path(path) for path in paths]
        if not self.given:
            raise UserError(f"--from: names no file; {self.expected()}")
        for path in self.given:
            if path.is_dir():
                self._look_below(path)
            elif path.is_file():
                self._look_into(path)
            else:
                raise UserError(f"{path}: no such file (--from); {self.expected()}")

    def expected(self) -> str:
        """What to download, for messages."""
        return "expected " + " and ".join(f"{one.name} from {one.address}" for one in self.wanted)

    def content(self, name: str) -> bytes:
        """A wanted file, whole.

        Args:
            name: the end of its path, `/`-separated.

        Raises:
            UserError: it is not there, cannot be unpacked, or is too large.
        """
        place = self._find(name)
        with self._explained(place.path):
            if place.member is None:
                return self._bounded(place.path, place.path.open("rb"))
            if place.path.suffix == ".zip":
                with zipfile.ZipFile(place.path) as archive, archive.open(place.member) as file:
                    return self._bounded(place.path, file)
            with self._tar(place.path) as tar:
                entry = next(one for one in tar if one.name == place.member)
                extracted = tar.extractfile(entry)
                assert extracted is not None  # only files are places
                return self._bounded(place.path, extracted)

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a wanted text file that was given as such, perhaps compressed by gzip, one by one.

        Raises:
            UserError: it is not there, cannot be unpacked, or too much comes out.
        """
        place = self._find(name, name.removesuffix(".gz"))
        if place.member is not None:
            raise UserError(f"{place.path}: unpack {place.member} and give that file; {self.expected()}")
        with self._explained(place.path):
            for block, _ in read_blocks(place.path, BLOCK):
                yield from block.splitlines()

    def published_md5(self) -> list[str]:
        """What is wrong with the files whose md5 is published, one line each."""
        problems = []
        for path in self.files:
            for one in self.wanted:
                if one.md5 is not None and path.name == one.name:
                    with path.open("rb") as file:
                        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                    if found != one.md5:
                        problems.append(f"{path.name} has md5 {found}, published is {one.md5} ({one.address})")
        return problems

    def _find(self, *names: str) -> _Place:
        """Where a file is, by any of its names; of several places the one with the shortest path."""
        for name in names:
            parts = PurePosixPath(name).parts
            found = [(path, place) for path, place in self.places if path.parts[-len(parts) :] == parts]
            # a file that was named by itself may lie in a folder of any name
            found = found or [(path, place) for path, place in self.places if place.alone and path.name == parts[-1]]
            if found:
                place = min(found, key=lambda entry: (len(entry[0].parts), str(entry[0])))[1]
                if place.path not in self.files:
                    self.files.append(place.path)
                self.tell(f"reading {place.member or place.path.name}")
                return place
        given = ", ".join(map(str, self.given[:5]))
        raise UserError(f"{names[0]}: not in what was given ({given}); {self.expected()}")

    def _look_below(self, folder: Path) -> None:
        count = 0
        for here, inner, files in os.walk(folder):
            inner.sort()
            count += len(files)
            if count > MOST_ENTRIES:
                raise UserError(f"{folder}: holds more than {MOST_ENTRIES:,} files; give the files themselves (--from)")
            for name in sorted(files):
                path = Path(here) / name
                if not path.is_file() or path.is_symlink():
                    continue
                if name in {one.name for one in self.wanted}:
                    self._look_into(path)
                else:
                    self.places.append((PurePosixPath(path.absolute().as_posix()), _Place(path)))

    def _look_into(self, path: Path) -> None:
        """A file as it is, and what is in it if it is an archive."""
        with path.open("rb") as file:
            head = file.read(HEAD).lstrip()
        if not head:
            raise UserError(f"{path}: is empty, a failed download; {self.expected()}")
        if head[:1] == b"<":
            raise UserError(f"{path}: is a web page, a failed download; {self.expected()}")
        self.places.append((PurePosixPath(path.absolute().as_posix()), _Place(path, alone=path in self.given)))
        if not path.name.endswith(ARCHIVES):
            return
        with self._explained(path):
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            else:
                names = self._members(path)
        if len(names) > MOST_ENTRIES:
            raise UserError(f"{path}: holds more than {MOST_ENTRIES:,} files; {self.expected()}")
        self.places += [(PurePosixPath(name), _Place(path, name)) for name in names]

    def _members(self, path: Path) -> list[str]:
        """The files in a tar archive, all of which is unpacked to find them."""
        names: list[str] = []
        with self._tar(path) as archive:
            for entry in archive:
                if entry.isreg():
                    names.append(entry.name)
                if len(names) > MOST_ENTRIES:
                    break
        return names

    @contextmanager
    def _tar(self, path: Path) -> Iterator[tarfile.TarFile]:
        """An archive that is read once through, since a compressed one has no way back, and no further than may be."""
        limit = expansion_limit(path, MAX_EXPANSION)
        error = UserError(f"{path}: unpacks to more than {MAX_EXPANSION} times its size; {self.expected()}")
        with (
            path.open("rb") if path.suffix == ".tar" else gzip.GzipFile(path) as file,
            tarfile.open(fileobj=_Limited(file, limit, error), mode="r|", bufsize=BLOCK) as archive,
        ):
            yield archive

    def _bounded(self, path: Path, file: IO[bytes]) -> bytes:
        """A file whole, unless more would come out than may."""
        limit = int(min(LARGEST_FILE, expansion_limit(path, MAX_EXPANSION)))
        with file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UserError(
                f"{path}: holds a file of more than {limit // 2**20} MB, which none of this set is; {self.expected()}"
            )
        return content

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        """Have what a broken file raises say which file, and where a whole one is."""
        try:
            yield
        except BROKEN as error:
            megabytes = path.stat().st_size / 1e6
            raise UserError(
                f"{path}: cannot be unpacked ({megabytes:.1f} MB), a truncated download or another file;"
                f" {self.expected()}"
            ) from error


class _Limited(io.RawIOBase):
    """What comes out of a file, until it is too much."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limit: float, error: UserError) -> None:
        self.file, self.left, self.error = file, limit, error

    def read(self, size: int = -1) -> bytes:
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise self.error
        return block
