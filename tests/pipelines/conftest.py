from __future__ import annotations

import pytest

from sightline.pipelines.corpus.reader import Corpus
from tests.corpora import digits_source, ingest_alone
from tests.models.conftest import artifact as artifact


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of 380 scenes of coloured digits."""
    folder = tmp_path_factory.mktemp("digits")
    return Corpus.open(ingest_alone(digits_source(folder / "source"), folder / "corpus"))
