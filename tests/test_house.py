"""House rules that no tool holds: who may speak to Ray and to the environment, and promises that are made in prose."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from sightline.cli import VERBS, app, corpus, lens
from sightline.cli.submit import check
from tests.conftest import CHECKOUT

ROOMS = ("models", "pipelines", "serve", "infra")
SPEAKS_RAY = ("job.py", "app.py", "submit.py", "session.py")
ENVIRONMENT = ("environ", "environb", "getenv")
VERB_NAMES = [
    *(verb.__name__ for verb in VERBS),
    *(f"corpus {name}" for name in corpus.VERBS),
    *(f"lens {name}" for name in lens.VERBS),
]


def modules() -> list[Path]:
    """Every module of ours by its own path (not through the links), relative to the checkout."""
    found = [path for room in ROOMS for path in (CHECKOUT / room).rglob("*.py")]
    front = [path for path in (CHECKOUT / "sightline").rglob("*.py") if path.resolve() == path]
    return sorted(path.relative_to(CHECKOUT) for path in {*found, *front})


def tree(module: Path) -> ast.Module:
    return ast.parse((CHECKOUT / module).read_text())


def test_the_scan_sees_the_rooms_and_the_front_door() -> None:
    assert {"models", "pipelines", "serve", "infra", "sightline"} == {module.parts[0] for module in modules()}
    assert len(modules()) == len({(CHECKOUT / module).resolve() for module in modules()})


# ---- layout ----


def test_the_front_door_holds_relative_links_to_the_rooms() -> None:
    links = {path.name: str(path.readlink()) for path in (CHECKOUT / "sightline").iterdir() if path.is_symlink()}
    assert links == {room: f"../{room}" for room in ROOMS}


@pytest.mark.parametrize("module", modules(), ids=str)
def test_a_module_states_its_idea_and_stays_readable(module: Path) -> None:
    text = (CHECKOUT / module).read_text()
    assert len(text.splitlines()) <= 400
    assert not text or ast.get_docstring(tree(module)), "a module starts with the idea and its invariant"


# ---- Ray ----


def imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("module", [module for module in modules() if module.name not in SPEAKS_RAY], ids=str)
def test_ray_is_imported_only_where_the_file_is_named_for_it(module: Path) -> None:
    assert [name for name in imported(tree(module)) if name.partition(".")[0] == "ray"] == []


# ---- the environment ----


def environment_reads(module: ast.Module) -> list[int]:
    """The lines that read an environment variable; setting one (Ray is configured so) is no reading."""
    writes: set[ast.AST] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            writes.add(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute) and called.attr in ("setdefault", "update"):
                writes.add(called.value)
    lines = []
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and node not in writes:
            lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            lines += [node.lineno for name in node.names if name.name in ENVIRONMENT]
        elif isinstance(node, ast.keyword) and node.arg == "envvar":
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", [module for module in modules() if module.name != "settings.py"], ids=str)
def test_only_the_settings_read_environment_variables(module: Path) -> None:
    assert environment_reads(tree(module)) == []


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ("os.environ['A'] = 'b'", False),
        ("os.environ.setdefault('A', 'b')", False),
        ("x = os.environ.setdefault('A', 'b')", True),
        ("os.environ['A']", True),
        ("os.environ.get('A')", True),
        ("os.getenv('A')", True),
        ("run(env={**os.environ})", True),
        ("from os import environ", True),
        ("typer.Option(envvar='A')", True),
    ],
)
def test_the_scan_tells_reading_from_writing(code: str, reads: bool) -> None:
    assert bool(environment_reads(ast.parse(code))) is reads


# ---- the command line ----


def help_of(verb: str) -> str:
    result = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.output


def parses(line: str) -> None:
    """The command line takes `sightline VERB ...`; what is submitted is looked into as well. Nothing is run."""
    program, verb, *words = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    while verb in ("corpus", "lens"):
        assert isinstance(group, typer.core.TyperGroup)
        group, (verb, *words) = group.commands[verb], words
    assert program == "sightline" and isinstance(group, typer.core.TyperGroup)
    assert verb in group.commands, f"no verb {verb!r}: {', '.join(group.commands)}"
    group.commands[verb].make_context(verb, list(words))
    if verb == "submit" and "--" in words:
        check(words[words.index("--") + 1 :])


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_every_verb_has_a_help_with_an_example_that_it_takes_and_speaks_json(verb: str) -> None:
    text = help_of(verb)
    assert "Example" in text and "--json" in text
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(f"sightline {verb}")]
    assert examples, "an example is a line of its own that begins with the command"
    for example in examples:
        parses(example)


def commands(document: str) -> list[str]:
    """The `sightline` and `make` lines of a document's code blocks, continued lines joined, prompts dropped."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith(("sightline ", "make "))]


def test_every_command_in_the_readme_exists() -> None:
    found = commands((CHECKOUT / "README.md").read_text())
    targets = re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert found
    for line in found:
        if line.startswith("make "):
            assert shlex.split(line, comments=True)[1] in targets
        else:
            parses(line)


# ---- packages ----


def constraints() -> dict[str, str]:
    """name → version; every line is one exact pin."""
    lines = [line.partition("#")[0].strip() for line in (CHECKOUT / "constraints.txt").read_text().splitlines()]
    pins = {}
    for line in filter(None, lines):
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+]+)(\s*;.*)?", line)
        assert match, f"no exact pin: {line!r}"
        pins[canonicalize_name(match[1])] = match[2]
    return pins


def named_in_pyproject() -> list[Requirement]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    # An extra may name other extras of this package; those are listed themselves.
    return [requirement for text in texts if (requirement := Requirement(text)).name != project["name"]]


def test_every_dependency_has_an_exact_pin_that_pyproject_allows() -> None:
    pins = constraints()
    for requirement in named_in_pyproject():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is in pyproject.toml and not in constraints.txt"
        assert requirement.specifier.contains(pins[name], prereleases=True)


def test_what_the_dependencies_need_in_turn_is_pinned_too() -> None:
    pins, waiting, seen = constraints(), named_in_pyproject(), set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in pins, f"{key[0]} is needed and not in constraints.txt"
        needed = [Requirement(text) for text in metadata.requires(key[0]) or []]
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        waiting += [one for one in needed if not one.marker or any(map(one.marker.evaluate, environments))]
