from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from upath import UPath

from sightline.pipelines.corpus.reader import Corpus
from tests.corpora import digits_source, ingest_alone
from tests.models.conftest import artifact as artifact


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of 380 scenes of coloured digits."""
    folder = tmp_path_factory.mktemp("digits")
    return Corpus.open(ingest_alone(digits_source(folder / "source"), folder / "corpus"))


@pytest.fixture(params=["disk", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder on each kind of file system."""
    if request.param == "disk":
        return tmp_path
    base = f"memory://{uuid4().hex}" if request.param == "memory" else request.getfixturevalue("s3")()
    return UPath(base) / "some folder" / "source"
