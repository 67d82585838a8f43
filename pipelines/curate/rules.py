"""Conditions on one row, from the sidecar alone: size, shape, captions, language, format, split. No image is touched.

A condition on the captions' length holds for a row if it holds for each of its captions, of which training may draw any;
the language is that of all its captions together, since a few words say little. A row without captions fails both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sightline.pipelines.corpus.schema import SPLIT

Mask = NDArray[np.bool_]
Range = tuple[int | None, int | None]


@dataclass(frozen=True)
class RowRules:
    """What a row must be to pass; None (or empty) asks nothing.

    Attributes:
        min_side, max_side: of the shorter and of the longer side, in pixels.
        min_pixels, max_pixels: of width x height.
        max_aspect: of the longer side over the shorter.
        caption_chars, caption_words: (least, most) of each caption; None is open.
        languages: ISO 639-1 codes, one of which the captions are taken for.
        formats, splits: names.
    """

    min_side: int | None = None
    max_side: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_aspect: float | None = None
    caption_chars: Range | None = None
    caption_words: Range | None = None
    languages: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("min_side", "max_side", "min_pixels", "max_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}; give at least 1")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise ValueError(f"max_aspect={self.max_aspect}; it is the longer side over the shorter: give at least 1")
        for low, high in filter(None, (self.caption_chars, self.caption_words)):
            if low is not None and high is not None and low > high:
                raise ValueError(f"no caption has a length of {low}:{high}; give LEAST:MOST")
        for least, most in (("min_side", "max_side"), ("min_pixels", "max_pixels")):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{least}={low} and {most}={high}: no image is so; give a {least} of at most {high}")
        if self.min_side is not None and self.max_pixels is not None and self.min_side**2 > self.max_pixels:
            raise ValueError(f"min_side={self.min_side} is more than max_pixels={self.max_pixels} allow; no image is so")

    @property
    def params(self) -> dict[str, Any]:
        """The conditions that are asked for, as JSON; the version of what tells languages apart is part of the condition."""
        asked = {name: value for name, value in asdict(self).items() if value is not None and value != ()}
        for name in asked.keys() & {"languages", "formats", "splits"}:
            asked[name] = sorted(set(asked[name]))
        return asked | ({"py3langid": version("py3langid")} if self.languages else {})


def check_names(asked: Sequence[str], there: Collection[str], what: str) -> None:
    """Refuse the name of a format or a split that no row has.

    Raises:
        ValueError: with the names that there are.
    """
    if unknown := sorted(set(asked) - set(there)):
        have = f"give some of {', '.join(sorted(there))}" if there else f"no row has a {what}"
        raise ValueError(f"no row of this corpus has the {what} {unknown[0]!r}; {have}")


COLUMNS = ("width", "height", "captions", "format", "extra")


def conditions(rules: RowRules, table: pa.Table) -> dict[str, Mask]:
    """Per condition that is asked for, which rows of the sidecar's table (with `COLUMNS`) hold it."""
    width, height = (table[name].to_numpy().astype(np.int64) for name in ("width", "height"))
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    found: dict[str, Mask] = {}
    if rules.min_side is not None:
        found["min_side"] = shorter >= rules.min_side
    if rules.max_side is not None:
        found["max_side"] = longer <= rules.max_side
    if rules.min_pixels is not None:
        found["min_pixels"] = width * height >= rules.min_pixels
    if rules.max_pixels is not None:
        found["max_pixels"] = width * height <= rules.max_pixels
    if rules.max_aspect is not None:
        found["max_aspect"] = longer <= rules.max_aspect * shorter
    if rules.caption_chars is not None:
        found["caption_chars"] = every_caption(table, within(rules.caption_chars, len))
    if rules.caption_words is not None:
        found["caption_words"] = every_caption(table, within(rules.caption_words, lambda text: len(text.split())))
    if rules.languages:
        found["language"] = in_languages(table, rules.languages)
    if rules.formats:
        found["format"] = np.array([name in rules.formats for name in table["format"].to_pylist()], dtype=np.bool_)
    if rules.splits:
        found["split"] = np.array(
            [json.loads(text).get(SPLIT) in rules.splits for text in table["extra"].to_pylist()], dtype=np.bool_
        )
    return found


def within(bounds: Range, length: Callable[[str], int]) -> Callable[[str], bool]:
    low, high = bounds
    return lambda text: (low is None or length(text) >= low) and (high is None or length(text) <= high)


def every_caption(table: pa.Table, holds: Callable[[str], bool]) -> Mask:
    captions = table["captions"].to_pylist()
    return np.array([bool(texts) and all(map(holds, texts)) for texts in captions], dtype=np.bool_)


def in_languages(table: pa.Table, languages: Sequence[str]) -> Mask:
    classify = language_of()
    captions = table["captions"].to_pylist()
    return np.array([bool(texts) and classify("\n".join(texts)) in languages for texts in captions], dtype=np.bool_)


def language_of() -> Callable[[str], str]:
    """The language of a text, among all that py3langid knows (Lui and Baldwin 2012).

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    identifier = _identifier()
    return lambda text: str(identifier.classify(text)[0])


def check_languages(names: Sequence[str]) -> None:
    """Refuse codes that no text can get.

    Raises:
        ValueError: with the codes that there are.
    """
    known = sorted(str(name) for name in _identifier().labels) if names else []
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"there is no language {unknown[0]!r}; give some of {', '.join(known)}")


def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError:
        raise ModuleNotFoundError('languages need py3langid: pip install "sightline[curate]"') from None
    return LanguageIdentifier.from_model_file(MODEL_FILE)
