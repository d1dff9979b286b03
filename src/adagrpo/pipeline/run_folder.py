"""Verified reads of a run's files, by manifest or, for files of no stage, run.yaml.

Files missing from a continued run are read from its source run.
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
    """Folders of a run, its source run and its data."""

    directory: Path
    source: Path | None  # run to read missing files from
    data: Path

    @property
    def roots(self) -> list[Path]:
        """Folders to read from: the source run's, if any, then the run's own."""
        return [root for root in (self.source, self.directory) if root is not None]

    def root_of(self, path: Path) -> Path | None:
        """Return the one of `roots` that contains a path, or None."""
        return next((root for root in reversed(self.roots) if path.is_relative_to(root)), None)

    def finished(self, *patterns: str) -> list[str]:
        """Return finished stages that match patterns such as `train/*`."""
        paths = (
            (root, path) for root in self.roots for pattern in patterns for path in root.glob(f"{pattern}/{MANIFEST}")
        )
        return sorted({path.parent.relative_to(root).as_posix() for root, path in paths})

    def path(self, *parts: str) -> Path:
        """Return a path in the run, or in its source if only there."""
        own = self.directory.joinpath(*parts)
        if self.source is not None and not os.path.lexists(own) and self.source.joinpath(*parts).exists():
            return self.source.joinpath(*parts)
        return own

    def weights_of(self, arm: str, checkpoint: str = "best") -> Path:
        """Return the folder of the weights of an arm or `sft`."""
        return self.path(*(("sft",) if arm == "sft" else ("train", arm)), checkpoint)

    def folder(self, stage: str) -> Path:
        """Return a finished stage's folder, possibly with only a nested stage, such as `ranker/report`."""
        return self.path(*stage.split("/"), MANIFEST).parent

    def checked(self, *parts: str) -> Path:
        """Return the path of a file; raise `UserError` if it is missing or was changed."""
        path = self.path(*parts)
        self.hash_input(path)
        return path

    def content(self, *parts: str) -> dict[str, Any]:
        """Return the object of a `checked` JSON file."""
        return read_json(self.checked(*parts))

    def find(self, *parts: str) -> Path | None:
        """Return `checked`; None if missing."""
        path = self.path(*parts)
        if path.name == DESCRIPTION and path.is_file():
            read_description(path.parent)
        return self.checked(*parts) if path.is_file() else None

    def find_content(self, *parts: str) -> dict[str, Any] | None:
        """Return `content`; None if missing."""
        path = self.find(*parts)
        return None if path is None else read_json(path)

    def checked_stage(self, name: str, *, but: Collection[str] = ()) -> Path:
        """Return a finished stage's folder after verifying its files, except `but`."""
        folder = self.folder(name)
        content = manifest(folder)
        if content is None:
            raise UserError(f"{folder}: missing; run {self.remake_command(folder)} first")
        for file in content["files"].keys() - set(but):
            verify_file(folder, file, content)
        return folder

    @abstractmethod
    def remake_command(self, place: Path | str) -> str:
        """Return the command line that makes a stage, or the stage of a file."""

    def trained(self) -> list[str]:
        """Return the names of trained arms."""
        return [name.removeprefix("train/") for name in self.finished("train/*")]

    def hash_inputs(self, paths: Sequence[Path]) -> dict[str, str]:
        """Return the sha256 of files by label."""
        return {label: self.hash_input(path) for label, path in self.labels(paths).items()}

    def labels(self, paths: Sequence[Path]) -> dict[str, Path]:
        """Return files by label; repeated labels get a number."""
        labelled: dict[str, Path] = {}
        for path in dict.fromkeys(paths):
            label, count = self.label(path), 1
            while label in labelled:
                count += 1
                label = f"{self.label(path)} ({count})"
            labelled[label] = path
        return labelled

    def hash_input(self, path: Path) -> str:
        """Return the sha256 of an input file.

        Raises:
            UserError: the file is missing, or belongs to a run and was changed.
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
        """Refuse a finished stage that lacks a file: its command would not rebuild it."""
        for root in reversed(self.roots):
            for inner in file.parents[:-1]:
                content, name = manifest(root / inner), file.relative_to(inner).as_posix()
                if content is not None and name in content["files"]:
                    verify_file(root / inner, name, content)

    def label(self, path: Path) -> str:
        """Return an input's name, independent of the location of run and data."""
        for root in (self.directory, self.source, self.data, self.data.resolve()):  # run.yaml has the last one
            if root is not None and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name
