"""What a job ships: this very package as a built wheel, named by the sha256 of its bytes.

Invariant: the same sources give the same wheel, so two jobs with one digest ran the same code. From a checkout the
wheel is built in a copy of the sources (setuptools leaves `build/` behind, and would pack a module that was deleted
since); where Sightline was installed from a wheel, the installed files are what is shipped.

Ray gets the unpacked wheel, never the wheel itself: a wheel among its `py_modules` is uploaded under its file name (new
code of the same version would not be sent), and installed with all its dependencies (gigabytes of torch, once a node).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

# The dashboard answers a larger body with a bare 413 (its DASHBOARD_CLIENT_MAX_SIZE), whatever Ray's client announces.
UPLOAD_LIMIT_BYTES = 100 * 2**20
# Runs setuptools' build hook (PEP 517) with one time for all files; zip knows none before 1980, which is this.
BUILD_HOOK = """
import os, sys, setuptools.build_meta
os.environ["SOURCE_DATE_EPOCH"] = "315532800"
setuptools.build_meta.build_wheel(sys.argv[1])
"""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "sightline")
NO_SOURCES = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@dataclass(frozen=True)
class Package:
    """A folder to ship.

    Attributes:
        folder: the package itself; its parent is what goes on the path.
        name: the wheel's file name, or the installed distribution's.
        sha256: of the wheel's bytes, or of the installed files' paths and bytes.
    """

    folder: Path
    name: str
    sha256: str


def package(scratch: Path, home: Path | None = None) -> Package:
    """The running package, ready to ship; what has to be built is built below `scratch`.

    Args:
        scratch: an empty folder that outlives the upload.
        home: the package's folder; None: where this module lies.

    Raises:
        ValueError: the package is larger than Ray's dashboard takes, or setuptools cannot build it.
    """
    home = home or Path(__file__).parent.parent  # not resolved: through the link sightline/infra it is sightline/
    built = from_checkout(home.parent, scratch) if is_checkout(home) else as_installed(home)
    check_size(built.folder)
    return built


def is_checkout(home: Path) -> bool:
    """Whether the package's rooms are links into a source tree, as git has them."""
    return (home / "models").is_symlink() and (home.parent / "pyproject.toml").is_file()


def from_checkout(root: Path, scratch: Path) -> Package:
    """Build the wheel of a checkout and unpack it."""
    sources, wheels, unpacked = scratch / "sources", scratch / "wheel", scratch / "unpacked"
    copy_sources(root, sources)
    wheel = build_wheel(sources, wheels)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Package(unpacked / "sightline", wheel.name, digest)


def copy_sources(root: Path, destination: Path) -> None:
    """What a build reads, with the links followed and with modes that do not depend on the umask of whoever cloned."""
    destination.mkdir(parents=True)
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, destination / name, ignore=NO_SOURCES)
        elif source.exists():
            shutil.copy(source, destination / name)
    for path in destination.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def build_wheel(sources: Path, destination: Path) -> Path:
    """Build with what is installed: neither pip nor a network is needed. A process, as the hook wants a cwd of its own."""
    destination.mkdir(parents=True)
    hook = [sys.executable, "-c", BUILD_HOOK, str(destination)]
    done = subprocess.run(hook, cwd=sources, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the wheel could not be built (`pip install 'setuptools>=77'` if it is missing): {last}")
    [wheel] = destination.glob("*.whl")
    return wheel


def as_installed(home: Path) -> Package:
    """The installed files, named by the digest of their sorted paths and bytes."""
    digest = hashlib.sha256()
    for path in sorted(files(home)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(home.parent).as_posix()}\n".encode())
    return Package(home, f"{home.name} as installed", digest.hexdigest())


def files(folder: Path) -> list[Path]:
    """What is sent of a folder: everything but compiled modules."""
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def check_size(folder: Path) -> None:
    """Refuse here what the dashboard would refuse after the upload (before compression, so on the safe side)."""
    sizes = {path: path.stat().st_size for path in files(folder)}
    if sum(sizes.values()) > UPLOAD_LIMIT_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"the package has {sum(sizes.values()) >> 20} MiB and Ray's job server takes {UPLOAD_LIMIT_BYTES >> 20}: "
            f"move {largest.relative_to(folder)} ({sizes[largest] >> 20} MiB) out of it"
        )
