"""Where a corpus lies: the few verbs that its writers and readers need, so that another kind of storage is one more
class here.

Invariant: a name holds all of a file or nothing. Bytes are written under a temporary name, flushed to the disk, and
published by rename (or, where an existing file must win, by `link`).
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STAGING = "_staging"


@dataclass(frozen=True)
class LocalStore:
    """A corpus in a folder of this machine; names are relative to it, with `/` between their parts."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name

    def size(self, name: str) -> int | None:
        """The file's size in bytes; None where there is no such file."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted; none where there is no such folder."""
        try:
            return sorted(f"{folder}/{entry.name}" for entry in os.scandir(self.path(folder)) if entry.is_file())
        except FileNotFoundError:
            return []

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in a folder, sorted; none where there is no such folder."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path(folder)) if entry.is_dir())
        except FileNotFoundError:
            return []

    def entries(self) -> list[str]:
        """The names of whatever is directly at the root; none where there is no such folder."""
        return sorted(entry.name for entry in self.root.iterdir()) if self.root.exists() else []

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A path for a file that is to be published; whatever is left there at the end is removed."""
        folder = self.path(STAGING) / "temporary"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def publish(self, temporary: Path, name: str) -> None:
        """Give a finished temporary file its name; a file of that name is replaced."""
        sync(temporary)
        final = self.path(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(final)
        sync(final.parent)

    def replace(self, name: str, data: bytes) -> None:
        """Write a whole file; readers see the old one or the new one."""
        with self.temporary() as temporary:
            temporary.write_bytes(data)
            self.publish(temporary, name)

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless there is one of that name, and say whether it was: `link` lets one writer win."""
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

    def clear_staging(self) -> None:
        """Remove what only an unfinished ingest needs."""
        shutil.rmtree(self.path(STAGING), ignore_errors=True)


def open_store(location: str | Path) -> LocalStore:
    """The storage at a location.

    Raises:
        ValueError: the location is a URL.
    """
    if "://" in str(location):
        raise ValueError(f"{location} is a URL, and corpora lie in local folders so far; give a folder")
    return LocalStore(Path(location).absolute())  # it travels to processes that run elsewhere


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
