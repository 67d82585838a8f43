"""What a job ships: the whole package, the same bytes from the same sources, and nothing of the folder around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sightline.infra import package as packages
from sightline.infra.package import package
from tests.conftest import CHECKOUT

ROOMS = ("models", "pipelines", "serve", "infra")
SKIPPED = shutil.ignore_patterns("__pycache__")


def sources() -> set[str]:
    """Every file of the package in the checkout, by its path in the package."""
    front = [path for path in (CHECKOUT / "sightline").rglob("*") if not path.is_symlink()]
    rooms = [path for room in ROOMS for path in (CHECKOUT / room).rglob("*")]
    real = [path for path in [*front, *rooms] if path.is_file() and "__pycache__" not in path.parts]
    return {
        (Path("sightline") / path.relative_to(CHECKOUT)).as_posix().replace("sightline/sightline", "sightline") for path in real
    }


def checkout(destination: Path) -> Path:
    """A copy of the checkout, links and all; returns its package."""
    for name in ("sightline", *ROOMS):
        shutil.copytree(CHECKOUT / name, destination / name, symlinks=True, ignore=SKIPPED)
    shutil.copy(CHECKOUT / "pyproject.toml", destination)
    return destination / "sightline"


def installed(destination: Path) -> Path:
    """The package as a wheel leaves it, without links."""
    return shutil.copytree(CHECKOUT / "sightline", destination / "sightline", ignore=SKIPPED)


def test_the_wheel_holds_every_file_of_the_rooms_as_a_real_file(tmp_path: Path) -> None:
    shipped = package(tmp_path / "a", checkout(tmp_path / "b"))
    with zipfile.ZipFile(tmp_path / "a" / "wheel" / shipped.name) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert not [path for path in shipped.folder.rglob("*") if path.is_symlink()]


def test_the_same_sources_give_the_same_digest_whatever_their_times_and_modes(tmp_path: Path) -> None:
    first, second = checkout(tmp_path / "1"), checkout(tmp_path / "2")
    for path in (tmp_path / "2").rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert package(tmp_path / "a", first).sha256 == package(tmp_path / "b", second).sha256


def test_another_source_gives_another_digest(tmp_path: Path) -> None:
    home = checkout(tmp_path / "checkout")
    before = package(tmp_path / "a", home).sha256
    (tmp_path / "checkout" / "models" / "losses.py").open("a").write("# changed\n")
    assert package(tmp_path / "b", home).sha256 != before


def test_a_build_leaves_nothing_in_the_checkout(tmp_path: Path) -> None:
    home = checkout(tmp_path / "checkout")
    before = sorted(tmp_path.rglob("*"))
    package(tmp_path / "scratch", home)
    assert sorted(path for path in tmp_path.rglob("*") if "scratch" not in path.parts) == before


def test_the_shipped_package_runs_from_where_it_was_unpacked(tmp_path: Path) -> None:
    shipped = package(tmp_path, checkout(tmp_path / "checkout"))
    where = [sys.executable, "-P", "-c", "import sightline.models.losses as m; print(m.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(shipped.folder.parent)}
    printed = subprocess.run(where, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(printed.strip()) == shipped.folder / "models" / "losses.py"


def test_an_installed_package_is_shipped_as_it_is_and_named_by_its_content(tmp_path: Path) -> None:
    home = installed(tmp_path / "site-packages")
    shipped = package(tmp_path / "scratch", home)
    assert shipped.folder == home
    (home / "__pycache__").mkdir()
    (home / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert package(tmp_path / "scratch", home).sha256 == shipped.sha256
    (home / "settings.py").write_text("changed = True\n")
    assert package(tmp_path / "scratch", home).sha256 != shipped.sha256


def test_a_package_that_the_job_server_would_refuse_is_refused_here(tmp_path: Path) -> None:
    home = installed(tmp_path)
    with (home / "models" / "weights.bin").open("wb") as file:
        file.truncate(packages.UPLOAD_LIMIT_BYTES)
    with pytest.raises(ValueError, match=r"Ray's job server takes 100: move models/weights\.bin \(100 MiB\)"):
        package(tmp_path / "scratch", home)


def test_sources_that_do_not_build_are_one_sentence(tmp_path: Path) -> None:
    home = checkout(tmp_path / "checkout")
    (tmp_path / "checkout" / "pyproject.toml").write_text("[project\n")
    with pytest.raises(ValueError, match=r"the wheel could not be built .*"):
        package(tmp_path / "scratch", home)
