"""Where a corpus lies: the few verbs that its writers and readers need, for a folder here and for an object store.

Invariant: a name holds all of a file or nothing. In a folder, bytes are written under a temporary name, flushed to the
disk, and published by rename (or, where an existing file must win, by `link`). An object store (`object_store.py`) is
given whole local files, because a stream that breaks off there still publishes what it has. Neither a name nor a link in a
folder leads out of the corpus.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

STAGING = "_staging"
TEMPORARY = f"{STAGING}/temporary"


class Store(Protocol):
    """A place for a corpus. Names are relative to it, with `/` between their parts; it travels to other processes."""

    @property
    def location(self) -> str:
        """The place as a person would write it: a path or a URL."""
        ...

    def size(self, name: str) -> int | None:
        """A file's size in bytes; None where there is no such file."""
        ...

    def modified(self, name: str) -> float | None:
        """When a file was written, in seconds since 1970; None where there is no such file."""
        ...

    def missing(self, files: Iterable[tuple[str, int]]) -> str | None:
        """The first of (name, size) that is not there, or has another size; None where all are whole."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Several whole files, in that order."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A file open for reading at any position."""
        ...

    def local(self, name: str, sha256: str) -> Path:
        """A file's bytes as a file of this machine, to be memory-mapped.

        Raises:
            OSError: the file had to be copied here, and its bytes have another sha256 (hex).
        """
        ...

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted; none where there is no such folder."""
        ...

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in a folder, sorted; none where there is no such folder."""
        ...

    def entries(self) -> list[str]:
        """The names of whatever is directly at the root, sorted; none where there is nothing."""
        ...

    def temporary(self) -> AbstractContextManager[Path]:
        """A path for a file that is to be published; whatever is left there at the end is removed."""
        ...

    def publish(self, temporary: Path, name: str) -> None:
        """Give a finished temporary file its name; a file of that name is replaced."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a whole file; readers see the old one or the new one."""
        ...

    def mark(self, name: str) -> None:
        """Make an empty file, which a loss of power may undo."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless there is one of that name, and say whether it was: one of several writers wins."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all in it, if it is there."""
        ...


@dataclass(frozen=True)
class LocalStore:
    """A corpus in a folder of this machine (or of a file system that all machines mount)."""

    root: Path

    @property
    def location(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where a file or a folder of the corpus is, which no link may lead out of: a corpus of strangers could else make us
        publish, or write over, any file of this machine.

        Raises:
            ValueError: the name or a link leads out of the corpus.
        """
        path = self.root / within(name)
        place = str(self.root)
        for part in name.split("/"):
            place = f"{place}/{part}"
            if os.path.islink(place) and not path.resolve().is_relative_to(self.root.resolve()):  # noqa: PTH114 (a Path costs more)
                raise ValueError(
                    f"{place} is a link that leads out of the corpus; put what it leads to in its place (`cp -rL` copies so)"
                )
        return path

    def size(self, name: str) -> int | None:
        try:
            return (self.root / within(name)).stat().st_size  # most often asked for, and tells too little to look at links
        except (FileNotFoundError, NotADirectoryError):
            return None

    def modified(self, name: str) -> float | None:
        try:
            return (self.root / within(name)).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def missing(self, files: Iterable[tuple[str, int]]) -> str | None:
        return next((name for name, size in files if self.size(name) != size), None)

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        return [self.read(name) for name in names]

    def open(self, name: str) -> IO[bytes]:
        return self.path(name).open("rb")

    def local(self, name: str, sha256: str) -> Path:
        return self.path(name)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(f"{folder}/{entry.name}" for entry in os.scandir(self.path(folder)) if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folders(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.path(folder)) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entries(self) -> list[str]:
        return sorted(entry.name for entry in self.root.iterdir()) if self.root.is_dir() else []

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        folder = self.path(TEMPORARY)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def publish(self, temporary: Path, name: str) -> None:
        sync(temporary)
        final = self.path(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(final)
        sync(final.parent)

    def replace(self, name: str, data: bytes) -> None:
        with self.temporary() as temporary:
            temporary.write_bytes(data)
            self.publish(temporary, name)

    def mark(self, name: str) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def create(self, name: str, data: bytes) -> bool:
        final = self.path(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        with self.temporary() as temporary:
            temporary.write_bytes(data)
            sync(temporary)
            try:
                os.link(temporary, final)
            except FileExistsError:
                return False
        sync(final.parent)
        return True

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self.path(folder), ignore_errors=True)


def open_store(location: str | Path) -> Store:
    """The storage at a location: a path, or any URL that fsspec knows (`s3://bucket/corpus`).

    Raises:
        ValueError: no file system is known for the URL.
        ModuleNotFoundError: the package for it is not installed.
    """
    text = str(location).removeprefix("file://")
    if "://" not in text:
        return LocalStore(Path(text).expanduser().absolute())  # it travels to processes that run elsewhere
    from sightline.pipelines.corpus.object_store import ObjectStore

    return ObjectStore.at(text)


def within(name: str) -> str:
    """A name that stays below its store's root: manifests say which files to read, and come from strangers.

    Raises:
        ValueError: it does not.
    """
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} is no name within a corpus; it is damaged or hostile")
    return name


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
