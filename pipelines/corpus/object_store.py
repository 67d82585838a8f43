"""A corpus in an object store, through fsspec: S3, Google Cloud Storage, Hugging Face, memory.

Files are made locally and put whole; a conditional put lets one of several writers win. Shards are read through a
cache of this machine, which names a file by its sha256 and takes in only what has it: corpora cannot give each other
false bytes. Listings are never cached, because other machines write too.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec

from sightline.pipelines.corpus.shards import file_sha256
from sightline.pipelines.corpus.store import within

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# With these S3 refuses one object alone: a policy on its key, an archive, a read beyond its end. (403 and 400 without a word, the
# answers to HEAD, may be about the credentials.)
ONE_OBJECT = frozenset({"AccessDenied", "InvalidObjectState", "InvalidRange", "NoSuchKey", "NoSuchVersion", "404", "416"})


@dataclass(frozen=True)
class ObjectStore:
    """A corpus below a URL. It pickles as the URL; credentials come from each process's usual places."""

    url: str

    @classmethod
    def at(cls, url: str) -> ObjectStore:
        """The store at a URL whose file system is known and installed.

        Raises:
            ValueError: no file system is known for the URL.
            ModuleNotFoundError: the package for it is not installed.
        """
        protocol = url.partition("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            raise needs_package(url, error) from None
        except ValueError:
            raise ValueError(f"{url}: no file system is known for {protocol}://; give a path, s3://, gs:// or hf://") from None
        return cls(url.rstrip("/"))

    @property
    def location(self) -> str:
        return self.url

    @cached_property
    def _fs(self) -> Any:
        return fsspec.url_to_fs(self.url, use_listings_cache=False)[0]

    @cached_property
    def _base(self) -> str:
        return str(fsspec.url_to_fs(self.url)[1]).rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def _key(self, name: str) -> str:
        return f"{self._base}/{within(name)}"

    def size(self, name: str) -> int | None:
        with self._plainly():
            try:
                return int(self._fs.info(self._key(name))["size"])
            except FileNotFoundError:
                return None

    def modified(self, name: str) -> float | None:
        with self._plainly():
            try:
                return float(self._fs.modified(self._key(name)).timestamp())
            except FileNotFoundError:
                return None

    def take(self, other: ObjectStore, name: str) -> bool:
        """Copy a file of another store, without its bytes passing through here; False where the two do not share a service."""
        if self.url.partition("://")[0] != other.url.partition("://")[0]:
            return False
        with self._plainly():
            self._fs.cp_file(other._key(name), self._key(name))
        return True

    def missing(self, files: Iterable[tuple[str, int]]) -> str | None:
        wanted: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for name, size in files:
            wanted[name.rpartition("/")[0]].append((name, size))
        for folder, group in wanted.items():  # one listing of a folder instead of a call for each of its files
            sizes = {f"{folder}/{base_name(entry)}": entry["size"] for entry in self._list(folder)}
            for name, size in group:
                if sizes.get(name) != size:
                    return name
        return None

    def read(self, name: str) -> bytes:
        with self._plainly():
            return bytes(self._fs.cat_file(self._key(name)))

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        if not names:
            return []
        keys = [self._key(name) for name in names]
        with self._plainly():
            found = self._fs.cat(keys) if len(keys) > 1 else {keys[0]: self._fs.cat_file(keys[0])}
        by_key = {key.lstrip("/"): data for key, data in found.items()}  # some file systems give keys back with a slash
        return [bytes(by_key[key.lstrip("/")]) for key in keys]

    def open(self, name: str) -> IO[bytes]:
        with self._plainly():
            file: IO[bytes] = self._fs.open(self._key(name), "rb")
            return file

    def local(self, name: str, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} is no sha256 of {self.url}/{name}; the corpus is damaged or hostile")
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.url}/{name} is missing")
        path = cache_folder() / sha256
        if not path.exists() or path.stat().st_size != size:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
            try:
                with self._plainly():
                    self._fs.get_file(self._key(name), str(part))
                if file_sha256(part) != sha256:
                    raise OSError(
                        f"{self.url}/{name} has other bytes than were committed; see `sightline corpus verify {self.url}`"
                    )
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        return path

    def names(self, folder: str) -> list[str]:
        return sorted(f"{folder}/{base_name(entry)}" for entry in self._list(folder) if entry["type"] == "file")

    def folders(self, folder: str) -> list[str]:
        return sorted(base_name(entry) for entry in self._list(folder) if entry["type"] == "directory")

    def entries(self) -> list[str]:
        return sorted(base_name(entry) for entry in self._list(""))

    def _list(self, folder: str) -> list[dict[str, Any]]:
        key = self._key(folder).rstrip("/")
        with self._plainly():
            try:
                entries: list[dict[str, Any]] = self._fs.ls(key, detail=True)
            except FileNotFoundError:
                return []
        return [entry for entry in entries if entry["name"].strip("/") != key.strip("/")]  # an empty marker of the folder

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
            yield Path(folder) / "file"

    def publish(self, temporary: Path, name: str) -> None:
        with self._plainly():
            self._fs.put_file(str(temporary), self._key(name))
        size = self.size(name)
        if size != temporary.stat().st_size:
            raise OSError(f"{self.url}/{name} has {size} bytes after {temporary.stat().st_size} were put; try again")

    def replace(self, name: str, data: bytes) -> None:
        with self._plainly():
            self._fs.pipe_file(self._key(name), data)

    def mark(self, name: str) -> None:
        self.replace(name, b"")

    def create(self, name: str, data: bytes) -> bool:
        with self._plainly():
            try:
                self._fs.pipe_file(self._key(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError:  # some services answer a failed condition without saying that it was the condition
                if self.size(name) is None:
                    raise
                return False
        return True

    def remove(self, name: str) -> None:
        with self._plainly():
            try:
                self._fs.rm_file(self._key(name))
            except FileNotFoundError:
                return

    def remove_folder(self, folder: str) -> None:
        with self._plainly():
            try:
                self._fs.rm(self._key(folder), recursive=True)
            except FileNotFoundError:
                return

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What cloud libraries raise in their own types, as the OSError that it is, with the remedy."""
        try:
            yield
        except PermissionError as error:
            raise PermissionError(
                f"no permission for {self.url} ({error}); check the credentials and the bucket's policy"
            ) from None
        except FileNotFoundError:
            raise
        except OSError as error:
            if (code := shut(error)) is None:
                raise
            raise ConnectionError(f"{self.url} cannot be used ({code}: {error}); check the credentials and the network") from None
        except Exception as error:  # broad: botocore, aiohttp and google-auth have no common base
            name = type(error).__name__
            if "Credential" in name:
                raise PermissionError(f"{self.url} needs credentials ({error}); set AWS_ACCESS_KEY_ID and friends") from None
            if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "httpx"):
                raise ConnectionError(f"{self.url} cannot be reached: {name}: {error}") from None
            raise


def shut(error: BaseException | None) -> str | None:
    """The code with which a service refuses everything (`ExpiredToken`, `NoSuchBucket`), if one is behind an error.

    None for what concerns one object alone, and for errors that no S3 client had a part in. Whoever raised a clearer error in the
    place of the client's hides that from tracebacks (`from None`), and Python still keeps it as the context.
    """
    while error is not None:
        if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore"):
            code = str(getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__)
            return None if code in ONE_OBJECT else code
        error = error.__cause__ or error.__context__
    return None


def cache_folder() -> Path:
    """Where this machine keeps shards of object stores."""
    return Path.home() / ".cache" / "sightline" / "corpora"


def needs_package(url: str, error: ImportError) -> ModuleNotFoundError:
    """What to raise where the file system of a URL is known and not installed."""
    extra = EXTRAS.get(url.partition("://")[0])
    remedy = f'pip install "sightline[{extra}]"' if extra else str(error)
    return ModuleNotFoundError(f"{url} needs a package that is not installed: {remedy}")


def base_name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]
