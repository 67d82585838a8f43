"""The image: what can be known of a Dockerfile without a Docker engine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import sightline
from tests.conftest import CHECKOUT
from tests.infra.test_manifests import pinned

FOLDER = CHECKOUT / "infra" / "docker"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined and comments dropped."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def test_the_comment_builds_the_image_that_the_manifests_name() -> None:
    assert f"-t sightline:{sightline.__version__}-ray{pinned('ray')} ." in (FOLDER / "Dockerfile").read_text()


def test_the_base_is_a_python_that_the_package_takes() -> None:
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["requires-python"]
    [base] = of("FROM")
    assert base == f"python:{wanted.removeprefix('>=')}-slim"


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [source for arguments in of("COPY") for source in arguments.split()[:-1]]
    assert sources
    for source in sources:
        assert (CHECKOUT / source).exists()
        assert f"!{source}" in allowed


def test_the_links_of_the_package_are_copied_with_what_they_point_to() -> None:
    sources = {source for arguments in of("COPY") for source in arguments.split()[:-1]}
    links = [path for path in (CHECKOUT / "sightline").iterdir() if path.is_symlink()]
    assert {path.readlink().name for path in links} <= sources


def test_every_installation_is_held_by_the_constraints() -> None:
    installations = [step for arguments in of("RUN") for step in arguments.split("&&") if "pip install" in step]
    assert installations
    assert all("--constraint constraints.txt" in step for step in installations)


def test_the_list_of_dependencies_is_what_pyproject_names() -> None:
    [run] = [arguments for arguments in of("RUN") if "requirements.txt" in arguments]
    command = run.split("&&")[0].split(">")[0].replace("python ", f"{sys.executable} ", 1)
    printed = subprocess.run(command, shell=True, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert printed.splitlines() == wanted


def test_bash_and_wget_are_there_and_the_user_is_not_root() -> None:
    [packages] = [arguments for arguments in of("RUN") if "apt-get" in arguments]
    assert {"bash", "wget"} <= set(packages.split())
    assert of("USER")[-1] == "1000"
    assert not of("ENTRYPOINT"), "KubeRay sets each node's command; an entrypoint would swallow it"
