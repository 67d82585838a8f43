"""Where a source lies: a folder or file of this machine, or a URL of any fsspec file system.

A local place is a plain `pathlib.Path`, and costs what that costs. An object store answers slowly but lists well, so there
everything is known from a few listings (names with sizes), never from a call per file. References are relative to a root.
A missing file says something about that file as long as its root is there; a disk that was unmounted is a `ConnectionError`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EIO, ENODEV, ENOENT, ENOTCONN, ENXIO, ESTALE
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import IO, Any, Generic, TypeAlias, TypeVar

from upath import UPath

from sightline.pipelines.corpus.object_store import needs_package

Place: TypeAlias = Path | UPath
Held_ = TypeVar("Held_")
LOCAL = ("file", "local", "")
AWAY = frozenset({ENODEV, ENOTCONN, ENXIO, ESTALE})  # of a disk or a mount that has gone, not of one file on it


@dataclass(frozen=True)
class Entry:
    """What lies directly in a folder; `nbytes` is None for a folder, and for what is no regular file."""

    name: str
    is_folder: bool
    nbytes: int | None


def open_place(location: str | Place) -> Place:
    """A place by path or URL; nothing is looked up yet.

    Raises:
        ValueError: no file system is known for the URL.
        ModuleNotFoundError: the package for it is not installed.
    """
    if not isinstance(location, UPath) and "://" not in str(location):
        return Path(location).expanduser().absolute()  # it travels to processes that run elsewhere
    try:
        place = UPath(location)
        if place.protocol in LOCAL:
            return Path(place.path).absolute()
        with reachable(place):
            place.fs.invalidate_cache()  # what was listed for an ingest before may have changed
    except ValueError:
        schemes = "file://, s3://, gs://, hf://, https:// or memory://"
        raise ValueError(f"{location}: no file system is known for that kind of URL; give a path, {schemes}") from None
    return place


@contextmanager
def reachable(place: Place) -> Iterator[None]:
    """What a file system raises while it is asked about a place, as one sentence of one of the usual kinds."""
    if isinstance(place, Path):
        yield
        return
    try:
        yield
    except ImportError as error:
        raise needs_package(str(place), error) from None
    except FileNotFoundError:
        raise FileNotFoundError(ENOENT, "there is no such file or folder", str(place)) from None
    except PermissionError as error:
        remedy = "check the credentials (for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        raise PermissionError(f"no permission to read {place} ({one_line(error)}); {remedy}") from None
    except (ValueError, AssertionError, MemoryError):
        raise
    except Exception as error:  # each file system raises its own libraries' errors: botocore, aiohttp, huggingface_hub ...
        remedy = "check the address, the network and the credentials"
        raise ConnectionError(f"cannot read {place} ({type(error).__name__}: {one_line(error)}); {remedy}") from None


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    """Read below a root, and hear it when that has gone, as `check_mounted` tells."""
    try:
        yield
    except OSError as error:
        check_mounted(root, error)
        raise


def check_mounted(root: Path, error: OSError) -> None:
    """Tell a file that is missing from a folder that has gone: what is left of a mount is an empty folder, or none, or errors.

    Raises:
        ConnectionError: the root has gone.
    """
    absent = isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == EIO
    if error.errno in AWAY or (absent and is_empty(root)):
        why = f"{root} has gone since it was listed: it is empty, missing or unmounted; bring it back"
        raise ConnectionError(why) from None


def is_empty(folder: Path) -> bool:
    """Whether nothing lies in a folder, or there is none."""
    try:
        return next(os.scandir(folder), None) is None
    except OSError:
        return True


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def exists(place: Place) -> bool:
    return is_file(place) or is_folder(place)


def is_file(place: Place) -> bool:
    return place.is_file() if isinstance(place, Path) else kind_of(place) == "file"


def is_folder(place: Place) -> bool:
    return place.is_dir() if isinstance(place, Path) else kind_of(place) == "directory"


def is_far(source: object) -> bool:
    """Whether a source, which keeps its place as `root`, lies where every file takes its time."""
    return isinstance(getattr(source, "root", None), UPath)


def kind_of(place: UPath) -> str | None:
    try:
        with reachable(place):
            return str(place.fs.info(place.path)["type"])
    except FileNotFoundError:
        return None


def entries(folder: Place) -> list[Entry]:
    """What lies directly in a folder, by name; nothing where there is no folder."""
    if isinstance(folder, Path):
        if not folder.is_dir():
            return []
        return sorted((local_entry(entry) for entry in os.scandir(folder)), key=lambda entry: entry.name)
    try:
        with reachable(folder):
            infos = folder.fs.ls(folder.path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    base = folder.path.rstrip("/")
    found = [entry_of(info) for info in infos if str(info["name"]).rstrip("/") != base]
    return sorted(found, key=lambda entry: entry.name)


def local_entry(entry: os.DirEntry[str]) -> Entry:
    return Entry(entry.name, entry.is_dir(), None if entry.is_dir() else file_size(Path(entry.path)))


def entry_of(info: dict[str, Any]) -> Entry:
    is_folder = info["type"] == "directory"
    return Entry(str(info["name"]).rstrip("/").rpartition("/")[2], is_folder, None if is_folder else info.get("size"))


def walk(folder: Place) -> Iterator[tuple[str, int | None]]:
    """Every file below a folder, sorted: its name relative to the folder, and its size in bytes (None: no regular file)."""
    if isinstance(folder, Path):
        for path in walk_local(folder):
            yield path.relative_to(folder).as_posix(), file_size(path)
        return
    with reachable(folder):
        found = folder.fs.find(folder.path, detail=True)
    base = folder.path.rstrip("/") + "/"
    for name, info in sorted(found.items()):
        relative = str(name).removeprefix(base)
        if info["type"] == "file" and not relative.endswith("/") and relative != name:  # `x/` only marks a folder
            yield relative, info.get("size")


def walk_local(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted; links to folders are followed, but never into a circle."""
    above = {folder.resolve()}
    for parent, names, files in os.walk(folder, followlinks=True):
        links = [name for name in names if (Path(parent) / name).is_symlink()]
        for name in links:
            target = (Path(parent) / name).resolve()
            if target in above or any(target in seen.parents for seen in above):
                names.remove(name)
            above.add(target)
        names.sort()
        yield from (Path(parent) / name for name in sorted(files))


def file_size(path: Place) -> int | None:
    """The size of a regular file in bytes; None for what is missing, a folder, a pipe or a device."""
    try:
        if not isinstance(path, Path):
            with reachable(path):
                info = path.fs.info(path.path)
            # A web server need not say how long a file is.
            return int(info.get("size") or 0) if info["type"] == "file" else None
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):  # ValueError: a null byte in the name
        if isinstance(path, Path):
            return None
        raise
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def sizes(root: Place) -> Callable[[str], int | None]:
    """Gives the sizes of files below a root by relative name, as `file_size` does: locally one look per file, elsewhere one
    listing for all of them, and a look at those that it has without a size.
    """
    if isinstance(root, Path):
        return lambda name: file_size(root / name)
    listed = dict(walk(root))
    return lambda name: file_size(at(root, name)) if name in listed and listed[name] is None else listed.get(name)


def at(root: Place, name: str) -> Place:
    """A place below a root; a name is taken as it is, also with `?`, `#` or spaces."""
    return root / name


def read_bytes(root: Place, name: str) -> bytes:
    """A whole file below a root.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(root, Path):
        try:
            with FileIO(f"{root}/{name}") as file:  # for each image: a Path, its join and a buffer cost as much as the reading
                return file.readall()
        except OSError as error:
            check_mounted(root, error)
            raise
    with reachable(at(root, name)):
        return bytes(root.fs.cat_file(f"{root.path.rstrip('/')}/{name}"))


def read_range(root: Place, name: str, start: int, nbytes: int) -> bytes:
    """Some bytes of a file below a root, and no others.

    Raises:
        OSError: they cannot be read, or the file ends before.
    """
    if isinstance(root, Path):
        with mounted(root), (root / name).open("rb") as file:
            file.seek(start)
            data = file.read(nbytes)
    else:
        with reachable(at(root, name)):
            data = bytes(root.fs.cat_file(f"{root.path.rstrip('/')}/{name}", start=start, end=start + nbytes)) if nbytes else b""
    if len(data) != nbytes:
        raise OSError(f"{name} ends before byte {start + nbytes}: it was changed since it was listed")
    return data


def open_file(root: Place, name: str) -> IO[bytes]:
    """A file below a root, open for reading at any position."""
    if isinstance(root, Path):
        with mounted(root):
            return (root / name).open("rb")
    with reachable(at(root, name)):
        file: IO[bytes] = root.fs.open(f"{root.path.rstrip('/')}/{name}", "rb")
        return file


def read_text(place: Place) -> str:
    """A whole file as UTF-8, without a byte order mark.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return read_bytes(place.parent, place.name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place.name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


class Held(Generic[Held_]):
    """The one thing that was last opened, kept until another is asked for: neighbours in a plan share a container."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._name: object = None
        self._value: Held_ | None = None

    def get(self, name: object, load: Callable[[], Held_]) -> Held_:
        with self._lock:
            if self._value is None or self._name != name:
                self._value = None  # two at a time would be twice the memory
                self._value, self._name = load(), name
            return self._value
