"""Scorers: what computes one number for each row of a shard. They pickle as their names, and load what they need where they run.

Invariant: a score depends on its row (and, in the last bits, on the batch: a model sees rows in batches that begin with each
shard), so never on who computes it, or with how many others.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import isinf
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import torch

from sightline.models.clip import Clip
from sightline.models.codec import MAX_PIXELS, decode_rgb
from sightline.models.load import load_model
from sightline.pipelines.corpus.columns import Rule
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Row

BATCH = 64
Score = Callable[[Corpus, range], pa.Array]


class Scorer(Protocol):
    """What a score is, and how to compute it."""

    @property
    def rule(self) -> Rule:
        """What decides the values."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose versions are worth keeping."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU where there is one."""
        ...

    def load(self, device: str) -> Score:
        """A function from a corpus and some of its rows to their values."""
        ...


@dataclass(frozen=True)
class PerceptualHash:
    """pHash (DCT of the grey image at 32 x 32, its 8 x 8 lowest frequencies against their median) as a uint64."""

    libraries = ("imagehash", "scipy", "pillow")
    on_gpu = False

    @property
    def rule(self) -> Rule:
        return Rule("phash", {"imagehash": version("imagehash"), "bits": 64}, pa.uint64())

    def load(self, device: str) -> Score:
        return lambda corpus, rows: pa.array([phash(corpus.image(row), corpus.max_pixels) for row in rows], pa.uint64())


def phash(image: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> int:
    """The 64 bits of an encoded image's perceptual hash.

    Raises:
        ModuleNotFoundError: imagehash is not installed.
    """
    try:
        import imagehash
    except ModuleNotFoundError:
        raise ModuleNotFoundError('perceptual hashes need imagehash: pip install "sightline[curate]"') from None
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(decode_rgb(image, max_pixels=max_pixels))).hash
    return int.from_bytes(np.packbits(bits.reshape(-1)).tobytes(), "big")


@dataclass(frozen=True)
class ClipScore:
    """Cosine of an image and its captions (Hessel et al. 2021, without their factor and floor); null without captions.

    Attributes:
        model: any name that `load_model` takes; every machine must see it.
        revision: of the weights, as `clip_score` found it.
        captions: the best one's cosine, or the mean of all.
    """

    model: str
    revision: str
    captions: Literal["best", "mean"] = "best"
    libraries = ("torch", "open_clip_torch")
    on_gpu = True

    @property
    def rule(self) -> Rule:
        return Rule("clip_score", {"revision": self.revision, "captions": self.captions}, pa.float32())

    def load(self, device: str) -> Score:
        model = load_model(self.model, device)
        if model.revision != self.revision:
            raise ValueError(
                f"{self.model} is another model here: {model.revision[:12]}, not {self.revision[:12]}; give all machines one"
            )
        return lambda corpus, rows: pa.array(clip_scores(model, corpus, rows, self.captions), pa.float32())


def clip_score(model: str, captions: Literal["best", "mean"] = "best") -> ClipScore:
    """The scorer of a model, which is loaded once to see which weights the name stands for.

    Raises:
        ValueError: there is no such model.
    """
    return ClipScore(_everywhere(model), load_model(model).revision, captions)


def clip_scores(model: Clip, corpus: Corpus, rows: range, captions: str) -> list[float | None]:
    found: list[float | None] = []
    for batch in batches(rows):
        image_BD = model.embed_images(pixels_of(model, corpus, batch))
        texts = [corpus.captions(row) for row in batch]
        flat = [text for of_row in texts for text in of_row]
        text_ND = torch.cat([model.embed_texts(flat[i : i + BATCH]) for i in range(0, len(flat), BATCH)]) if flat else None
        end = 0
        for embedding_D, of_row in zip(image_BD, texts, strict=True):
            start, end = end, end + len(of_row)
            if text_ND is None or not of_row:
                found.append(None)
                continue
            cosines = text_ND[start:end] @ embedding_D
            found.append(float(cosines.max() if captions == "best" else cosines.mean()))
    return found


@dataclass(frozen=True)
class Nearest:
    """The cosine of an image and the most similar image of other corpora: near copies of evaluation images stand close to 1.

    Attributes:
        against: locations and roots of the other corpora.
    """

    model: str
    revision: str
    against: tuple[tuple[str, str], ...]
    libraries = ("torch", "open_clip_torch")
    on_gpu = True

    @property
    def rule(self) -> Rule:
        return Rule("nearest", {"revision": self.revision, "against": sorted(root for _, root in self.against)}, pa.float32())

    def load(self, device: str) -> Score:
        model = load_model(self.model, device)
        others = [Corpus.open(location, root) for location, root in self.against]
        other_MD = torch.cat([embedding for other in others for embedding in image_embeddings(model, other, range(other.rows))])

        def score(corpus: Corpus, rows: range) -> pa.Array:
            parts = [(image_BD @ other_MD.T).amax(1) for image_BD in image_embeddings(model, corpus, rows)]
            return pa.array([value for part in parts for value in part.tolist()], pa.float32())

        return score


def nearest(model: str, against: Sequence[str]) -> Nearest:
    """The scorer of similarity to the images of other corpora.

    Raises:
        ValueError, FileNotFoundError: there is no such model or corpus, or a corpus has no rows.
    """
    others = [Corpus.open(location) for location in against]
    if empty := [other.location for other in others if not other.rows]:
        raise ValueError(f"{empty[0]} has no rows to compare with; leave it out")
    return Nearest(_everywhere(model), load_model(model).revision, tuple((other.location, other.root) for other in others))


def image_embeddings(model: Clip, corpus: Corpus, rows: range) -> Iterator[torch.Tensor]:
    for batch in batches(rows):
        yield model.embed_images(pixels_of(model, corpus, batch))


def pixels_of(model: Clip, corpus: Corpus, rows: range) -> torch.Tensor:
    """The rows' images as the model takes them; as large as the corpus's own ingest let them be."""
    images = (decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels) for row in rows)
    return torch.stack([model.preprocess.pixels(image) for image in images])


@dataclass(frozen=True)
class OwnScore:
    """A user's function from rows to as many numbers; None where a row has none.

    Attributes:
        name: `module:function`; every machine must be able to import it.
        source_sha256: of its module, so that an edited function is another rule.
    """

    name: str
    source_sha256: str
    libraries = ()
    on_gpu = False

    @property
    def rule(self) -> Rule:
        return Rule("callable", {"function": self.name, "source_sha256": self.source_sha256}, pa.float32())

    def load(self, device: str) -> Score:
        function = _imported(self.name)

        def score(corpus: Corpus, rows: range) -> pa.Array:
            found: list[float | None] = []
            for batch in batches(rows):
                values = list(function([corpus.row(row) for row in batch]))
                if len(values) != len(batch):
                    raise ValueError(f"{self.name} gave {len(values)} values for {len(batch)} rows; let it give one a row")
                found += [None if value is None else float(value) for value in values]
            if any(value is not None and isinf(value) for value in found):
                raise ValueError(f"{self.name} gave an infinite value; let it give finite numbers, or None where there is none")
            return pa.array(found, pa.float32(), from_pandas=True)  # NaN is null too

        return score


def own_score(name: str) -> OwnScore:
    """The scorer of a function `module:function`.

    Raises:
        ValueError: there is no such function.
    """
    function = _imported(name)
    return OwnScore(name, hashlib.sha256(inspect.getsource(inspect.getmodule(function) or function).encode()).hexdigest())


def _everywhere(model: str) -> str:
    """A folder's name for processes with another working directory; any other name as it is."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def _imported(name: str) -> Callable[[Sequence[Row]], Sequence[float | None]]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute) if module and attribute else None
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"there is no function {name!r} ({error}); give module:function, importable from here") from None
    if not inspect.isfunction(function):
        raise ValueError(f"{name!r} is no function; give module:function")
    return function


def batches(rows: range) -> Iterator[range]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
