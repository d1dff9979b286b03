"""The files of a run: where they lie, and how they are read and checked.

A file is read through `RunFolder.checked`, which compares it with its manifest or, for the files that belong to no
stage, with the hash in run.yaml. What a run that goes on from another one lacks is read there.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.pipeline.description import DESCRIPTION, hash_of_output, read_description
from adagrpo.pipeline.json_files import read_json
from adagrpo.storage.artifacts import manifest, verify_file
from adagrpo.storage.hashes import cached_hash
from adagrpo.storage.marks import is_marked
from adagrpo.storage.removal import MANIFEST


class RunFolder(ABC):
    """The folder of a run, that of the run which it goes on from, and that of the data."""

    directory: Path
    source: Path | None  # another run, from which this one reads what it lacks
    data: Path

    @property
    def roots(self) -> list[Path]:
        """The folders that the run is read from: that of its source, if it has one, and its own."""
        return [root for root in (self.source, self.directory) if root is not None]

    def root_of(self, path: Path) -> Path | None:
        """The one of `roots` that a path is in; None for one that is elsewhere."""
        return next((root for root in reversed(self.roots) if path.is_relative_to(root)), None)

    def finished(self, *patterns: str) -> list[str]:
        """The names of finished stages, of patterns such as `train/*`."""
        paths = (
            (root, path) for root in self.roots for pattern in patterns for path in root.glob(f"{pattern}/{MANIFEST}")
        )
        return sorted({path.parent.relative_to(root).as_posix() for root, path in paths})

    def path(self, *parts: str) -> Path:
        """Return the path of something of the run: in its own directory, or where it alone is, in its source."""
        own = self.directory.joinpath(*parts)
        if self.source is not None and not os.path.lexists(own) and self.source.joinpath(*parts).exists():
            return self.source.joinpath(*parts)
        return own

    def weights_of(self, arm: str, checkpoint: str = "best") -> Path:
        """Return the folder of the weights of an arm, or of the starting policy, `sft`."""
        return self.path(*(("sft",) if arm == "sft" else ("train", arm)), checkpoint)

    def folder(self, stage: str) -> Path:
        """Return the folder of a finished stage; it may also hold an inner stage alone, such as `ranker/report`."""
        return self.path(*stage.split("/"), MANIFEST).parent

    def checked(self, *parts: str) -> Path:
        """A file of the run that is as it was written.

        Raises:
            UserError: it is missing or was changed after it was made; it is named.
        """
        path = self.path(*parts)
        self.hash_input(path)
        return path

    def content(self, *parts: str) -> dict[str, Any]:
        """The object that a JSON file of the run holds; see `checked`."""
        return read_json(self.checked(*parts))

    def find(self, *parts: str) -> Path | None:
        """`checked`, or None where there is no such file."""
        path = self.path(*parts)
        if path.name == DESCRIPTION and path.is_file():
            read_description(path.parent)
        return self.checked(*parts) if path.is_file() else None

    def find_content(self, *parts: str) -> dict[str, Any] | None:
        """`content`, or None where there is no such file."""
        path = self.find(*parts)
        return None if path is None else read_json(path)

    def checked_stage(self, name: str, *, but: Collection[str] = ()) -> Path:
        """The folder of a finished stage whose files, but for some, are all as they were written.

        Raises:
            UserError: the stage is missing, or a file of it was changed after it was made; it is named.
        """
        folder = self.folder(name)
        content = manifest(folder)
        if content is None:
            raise UserError(f"{folder}: missing; run {self.remake_command(folder)} first")
        for file in content["files"].keys() - set(but):
            verify_file(folder, file, content)
        return folder

    @abstractmethod
    def remake_command(self, place: Path | str) -> str:
        """The command that makes a stage, or the stage of a file, as a user types it."""

    def trained(self) -> list[str]:
        """The folders of finished arms, by name."""
        return [name.removeprefix("train/") for name in self.finished("train/*")]

    def hash_inputs(self, paths: Sequence[Path]) -> dict[str, str]:
        """The sha256 of each file by its label; a file that has the label of another one gets a number."""
        return {label: self.hash_input(path) for label, path in self.labels(paths).items()}

    def labels(self, paths: Sequence[Path]) -> dict[str, Path]:
        """Files by their labels; one that has the label of another one gets a number."""
        labelled: dict[str, Path] = {}
        for path in dict.fromkeys(paths):
            label, count = self.label(path), 1
            while label in labelled:
                count += 1
                label = f"{self.label(path)} ({count})"
            labelled[label] = path
        return labelled

    def hash_input(self, path: Path) -> str:
        """The sha256 of a file that something reads.

        Raises:
            UserError: no such file, or it is part of a run and was changed after it was made.
        """
        root = self.root_of(path)
        if not path.is_file():
            if root is not None:
                self._refuse_damaged(path.relative_to(root))
                raise UserError(f"{path}: missing; run {self.remake_command(path)} first")
            raise UserError(f"{path}: no such file; check the recipe and --data")
        root = root or next(filter(is_marked, path.parents), None)  # or a file of another run
        if root is None:
            return cached_hash(path)
        if path.parent == root:
            return hash_of_output(root, path.name)
        for folder in takewhile(lambda folder: folder != root, path.parents):
            if (content := manifest(folder)) is not None:
                return verify_file(folder, path.relative_to(folder).as_posix(), content)
        return cached_hash(path)

    def _refuse_damaged(self, file: Path) -> None:
        """Refuse with what to delete where a finished stage lacks a file of its own: its verb would not make it."""
        for root in reversed(self.roots):
            for inner in file.parents[:-1]:
                content, name = manifest(root / inner), file.relative_to(inner).as_posix()
                if content is not None and name in content["files"]:
                    verify_file(root / inner, name, content)

    def label(self, path: Path) -> str:
        """A name for an input that does not depend on where the run or the data lie."""
        for root in (self.directory, self.source, self.data, self.data.resolve()):  # run.yaml has the last one
            if root is not None and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name
