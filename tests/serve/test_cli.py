"""`sightline serve` as a person runs it: refusals in one line. (What it does when all is well is in tests/faults.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import InlineCommandLine


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], "there is no model '/nowhere'; give an artifact folder"),
        (["{model}", "--replicas", "many"], "write 2, or 1:4"),
        (["{model}", "--replicas", "3:2"], "write 2, or 1:4"),
    ],
)
def test_the_command_refuses_in_one_line(
    cli_inline: InlineCommandLine, model_folder: Path, arguments: list[str], says: str
) -> None:
    done = cli_inline("serve", *(argument.format(model=model_folder) for argument in arguments))
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("starting")]
    assert says in line


def test_a_rollout_goes_one_way(cli_inline: InlineCommandLine) -> None:
    done = cli_inline("rollout", "some-model", "--back")
    assert done.exit_code == 2 and "a model or --back, not both" in done.stderr
