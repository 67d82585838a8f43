"""What `describe` counts is what a loop over the rows counts, and its page holds nothing from outside."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.pipelines.corpus.columns import Rule, write_column
from sightline.pipelines.corpus.describe import QUANTILES, as_json, describe, histogram
from sightline.pipelines.corpus.page import html_page
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Rejected, Row, make_row
from tests.pipelines.test_corpus import example, rejection, write_corpus
from tests.pipelines.test_corpus_forget import write

EVIL = '</title><script>alert("1")</script><img src="http://example.org/x.png">'


def picture(number: int, caption: str = "a picture") -> Row:
    out = io.BytesIO()
    Image.new("RGB", (20 + number, 30), (number, 90, 120)).save(out, "PNG")
    key = f"{number} {EVIL}"
    return make_row(key=key, image=out.getvalue(), format="png", width=20 + number, height=30, captions=(caption,), labels=(0,))


@pytest.fixture(params=["folder", "memory"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Corpus]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    url = f"memory://describe-{uuid4().hex}/corpus"
    outcomes: list[Row | Rejected] = [example(i) for i in range(90)]
    outcomes += [replace(example(8), key="twin"), rejection(500), rejection(501, "filter", "small")]
    location = tmp_path / "corpus" if request.param == "folder" else url
    write(location, outcomes)
    yield Corpus.open(location)
    if request.param == "memory":
        fsspec.filesystem("memory").rm(url, recursive=True)


@pytest.mark.parametrize("split", [None, "train"])
def test_counts_are_those_of_a_loop(corpus: Corpus, split: str | None) -> None:
    rows = [corpus.row(i) for i in range(len(corpus))]
    rows = [row for row in rows if split is None or json.loads(row.extra).get("split") == split]
    found = describe(corpus, split)
    assert (found.rows, found.bytes) == (len(rows), sum(len(row.image) for row in rows))
    assert (found.seen, found.kept, found.filtered, found.errors, found.forgotten) == (93, 91, 1, 1, 0)
    assert found.codes == {"decode/truncated": 1, "filter/small": 1}
    assert found.formats == {"jpeg": len(rows)}
    assert found.classes == {str(label): count for label, count in Counter(one for row in rows for one in row.labels).items()}
    assert found.labelled == sum(bool(row.labels) for row in rows)
    assert found.captioned == sum(bool(row.captions) for row in rows)
    assert found.masks == sum(row.mask is not None for row in rows)
    assert found.equal_pairs == len(rows) - len({row.uid for row in rows})
    assert found.equal_images == len(rows) - len({row.sha256 for row in rows})
    by_name = {(one.name, one.unit): one for one in found.histograms}
    lengths = sorted(len(text) for row in rows for text in row.captions)
    one = by_name["caption length", "chars"]
    assert sum(one.counts) == len(lengths)
    assert (one.quantiles[0], one.quantiles[-1]) == (lengths[0], lengths[-1])
    assert one.mean == pytest.approx(sum(lengths) / len(lengths))
    widths = Counter(row.width for row in rows)
    assert by_name["width", "px"].counts == tuple(widths[width] for width in range(1, 6))
    assert json.loads(json.dumps(as_json(found)))["rows"] == len(rows)


def test_a_filter_tells_its_cost(corpus: Corpus) -> None:
    write_column(corpus, "big", Rule("filter", {"min": 1}, pa.bool_()), pa.array([i > 2 for i in range(corpus.rows)]))
    write_column(corpus, "clip", Rule("clip", {}, pa.float32()), pa.array([0.5] * corpus.rows, pa.float32()))
    found = describe(corpus)
    assert [(one.name, one.rows, one.current) for one in found.filters] == [("big", 91, True)]
    assert [(one.name, one.kind, one.type, one.rows) for one in found.columns] == [
        ("big", "filter", "bool", 91),
        ("clip", "clip", "float", 91),
    ]


@pytest.mark.parametrize("split", [None, "train"])
def test_filters_together_cost_what_a_loop_counts(corpus: Corpus, split: str | None) -> None:
    rules = {"big": lambda i: i > 20, "even": lambda i: i % 2 == 0}
    for name, rule in rules.items():
        write_column(corpus, name, Rule("filter", {"is": name}, pa.bool_()), pa.array([rule(i) for i in range(corpus.rows)]))
    for order in (("big", "even"), ("even", "big")):
        left, expected = corpus.select(split).tolist(), []
        for name in order:
            alone = sum(not rules[name](i) for i in corpus.select(split).tolist())
            after = sum(not rules[name](i) for i in left)
            left = [i for i in left if rules[name](i)]
            expected.append((name, alone, after, len(left)))
        found = describe(corpus, split, order)
        assert [(one.name, one.alone, one.after, one.left) for one in found.view] == expected
        assert [one["after"] for one in as_json(found)["view"]] == [after for _, _, after, _ in expected]
    page = html_page(corpus, found)
    assert f"even (alone {expected[0][1]:,})" in page and "filter, bool {&quot;is&quot;:&quot;big&quot;}" in page


def test_an_unknown_split_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="no split 'test'"):
        describe(corpus, "test")


def test_a_corpus_without_rows_has_a_description_and_a_page(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [rejection(1)])
    found = describe(corpus)
    assert (found.rows, found.histograms, found.errors) == (0, (), 1)
    assert "decode/truncated" in html_page(corpus, found)


@settings(deadline=None, derandomize=True)
@given(
    st.one_of(
        st.lists(st.integers(0, 10**6), min_size=1, max_size=200),
        st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=200),
    )
)
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    found = histogram("x", "y", pa.array(values, pa.float64()))
    assert found is not None
    assert sum(found.counts) == len(values)
    assert len(found.edges) == len(found.counts) + 1 <= 32
    assert list(found.edges) == sorted(found.edges)
    bounds = [*found.edges[:-1], np.inf]  # the last bin holds whatever lies beyond
    plain = [sum(low <= value < high for value in values) for low, high in pairwise(bounds)]
    assert list(found.counts) == plain
    assert len(found.quantiles) == len(QUANTILES)


class Links(HTMLParser):
    """Every attribute that could load something, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "onerror")]


def test_the_page_holds_nothing_from_outside_and_escapes_what_strangers_wrote(tmp_path: Path) -> None:
    rows = [picture(i, EVIL) for i in range(30)]
    corpus = write_corpus(tmp_path / EVIL.replace("/", "_"), rows, classes=[(0, EVIL)])
    page = html_page(corpus, describe(corpus))
    links = Links()
    links.feed(page)
    assert len(links.found) == 24
    assert all(link.startswith("data:image/jpeg;base64,") for link in links.found)
    assert not {"script", "link", "iframe", "object", "a"} & links.tags
    assert "url(" not in page and "@import" not in page
    assert page == html_page(corpus, describe(corpus))
    assert re.findall('alt="([^"]*)"', page) != re.findall('alt="([^"]*)"', html_page(corpus, describe(corpus), seed=1))


def test_an_image_that_cannot_be_decoded_leaves_a_gap(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [picture(0), example(1)])
    page = html_page(corpus, describe(corpus))
    assert page.count('src="data:image/jpeg') == 1
    assert page.count('src="data:,"') == 1
