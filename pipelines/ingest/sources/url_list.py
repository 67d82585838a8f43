"""Lists of URLs: CSV, JSON lines or Parquet with a column `url`, `image_url` or `URL`, and one of captions (`captions`,
`caption`, `text` or `TEXT`): one table, a brace range of them (`part-{000..127}.parquet`), or a folder's tables.

An item's key is its column `key` or `id`, or else the URL itself. Rows of one key are one item, with their captions in
order. Every other column goes into `extra`. A row whose URL cannot be fetched becomes an error row; nothing is fetched
here: an item's `image` is its URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from braceexpand import braceexpand

from sightline.fetch.result import RefusedError
from sightline.fetch.urls import parse
from sightline.pipelines.ingest.sources import tables
from sightline.pipelines.ingest.sources.captions_table import listed, text
from sightline.pipelines.ingest.sources.extras import joined
from sightline.pipelines.ingest.sources.item import Item, Verdict, wrong
from sightline.pipelines.ingest.sources.place import Place, entries, is_file

URLS, TEXTS, KEYS = ("url", "image_url", "URL"), ("captions", "caption", "text", "TEXT"), ("key", "id")
IMAGES = ("image", "images", "img", "jpg", "png", "webp")  # who has the images has a list of URLs for the record only


@dataclass(frozen=True)
class Line:
    """A row of a list, checked."""

    key: str
    url: str
    captions: tuple[str, ...]
    extra: dict[str, Any]
    verdict: Verdict | None


@dataclass(frozen=True)
class UrlList:
    """The tables of a list of URLs."""

    lists: tuple[Place, ...]
    kind: ClassVar[str] = "url_list"
    layout: ClassVar[str] = (
        "a list of URLs (.csv, .jsonl or .parquet with a column `url`, `image_url` or `URL`, and one of "
        "`captions`, `caption`, `text` or `TEXT`)"
    )

    @classmethod
    def found(cls, path: Place) -> bool:
        """Every table has a column of URLs, and none has images."""
        columns = [tables.columns(table) for table in tables_at(path) if is_file(table)]
        return bool(columns) and all(first(URLS, names) and not first(IMAGES, names) for names in columns)

    @classmethod
    def open(cls, path: Place) -> UrlList:
        found = tables_at(path)
        if not found:
            raise ValueError(f"{path} has no table: expected {cls.layout}")
        for table in found:
            if not is_file(table):
                raise FileNotFoundError(f"there is no {table}; name the tables that exist")
            names = tables.columns(table)
            if not first(URLS, names) or not first(TEXTS, names):
                raise ValueError(f"{table.name} has the columns {', '.join(names) or 'none'}; expected {cls.layout}")
        return cls(tuple(found))

    def config(self) -> dict[str, Any]:
        return {}

    def classes(self) -> list[tuple[int, str]]:
        return []

    def items(self) -> Iterator[Item]:
        groups: dict[str, list[Line]] = {}
        for table in self.lists:
            names = tables.columns(table)
            chosen = [first(known, names) for known in (URLS, TEXTS, KEYS)]
            for place, row in tables.rows(table):
                line = parse_row(row, place, *chosen)
                group = groups.setdefault(line.key, [])
                if group and group[0].url != line.url:
                    raise ValueError(f"{place}: the key {line.key!r} has another URL before; give each URL its own key")
                group.append(line)
        for key, lines in groups.items():
            yield Item(
                key=key,
                image=lines[0].url,
                captions=tuple(caption for line in lines for caption in line.captions),
                extra=joined([line.extra for line in lines], repr(key)),
                verdict=lines[0].verdict,
            )

    def read(self, reference: str) -> bytes:
        raise OSError(f"{reference} is a URL, which is downloaded and not read")


def is_range(path: Place) -> bool:
    """Whether a location is a brace range of tables, and not a table that is called so."""
    return "{" in path.name and tables.is_table(path.name) and not is_file(path)


def tables_at(path: Place) -> list[Place]:
    """The tables that a place names; those of a brace range need not exist.

    Raises:
        ValueError: the braces do not match.
    """
    if is_range(path):
        try:
            return [path.parent / name for name in braceexpand(path.name, escape=False)]
        except ValueError:
            raise ValueError(f"{path} has a brace without its pair; write a range like part-{{000..012}}.parquet") from None
    if is_file(path):
        return [path] if tables.is_table(path.name) else []
    return [path / entry.name for entry in entries(path) if entry.nbytes is not None and tables.is_table(entry.name)]


def first(known: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in known if name in names), None)


def parse_row(row: dict[str, Any], place: str, url_column: str | None, text_column: str | None, key_column: str | None) -> Line:
    """Check a row; a URL that is none becomes a verdict.

    Raises:
        ValueError: a caption or a key is no text, or the key is empty.
    """
    used = (url_column, text_column, key_column)
    url, verdict = checked(row.get(url_column or ""))
    if key_column is None:
        key = url or place
    else:
        value = row.get(key_column)
        key = str(value) if isinstance(value, int) else text(value, key_column, place)
        if not key:
            raise ValueError(f"{place} has no key; give the column `{key_column}` a value, or take the column away")
    captions = tuple(text(value, text_column or "", place) for value in listed(row.get(text_column or "")))
    return Line(key, url, captions, {name: value for name, value in row.items() if name not in used}, verdict)


def checked(url: Any) -> tuple[str, Verdict | None]:
    """A cell's URL (empty where it holds no text), and what is wrong with it."""
    if url is None or url == "":
        return "", wrong("bad_url", "the row names no URL")
    if not isinstance(url, str):
        return "", wrong("bad_url", f"{ascii(url)[:200]} is no URL")
    try:
        url.encode()
        parse(url)
    except UnicodeEncodeError:
        return "", wrong("bad_url", f"{ascii(url)[:200]} is no valid Unicode")
    except RefusedError as refused:
        return url, wrong(refused.code, str(refused))
    return url, None
