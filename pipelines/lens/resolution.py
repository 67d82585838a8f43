"""What interpolating position embeddings does to accuracy: a tower at other resolutions than its own, on a labelled corpus.

A model with a text tower is scored zero-shot. Any other is scored by a linear probe that was fitted to its features at its own
resolution, so that only the features move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.lenses.positions import at_size
from sightline.models.lenses.subject import Subject
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.few_shot import fitted
from sightline.pipelines.lens.figures import panels, save
from sightline.pipelines.lens.images import batches, spread

TRAIN = "train"
Watch = Callable[[str, int, int], None]


def at_sizes(subject: Subject, sizes: Sequence[int]) -> dict[int, Subject]:
    """The same tower for images of other sizes, its positions interpolated.

    Raises:
        ValueError: the tower cannot take such images.
    """
    own = subject.preprocess.size
    return {
        size: subject
        if size == own
        else replace(subject, tower=at_size(subject.tower, size), preprocess=replace(subject.preprocess, size=size))
        for size in sorted({own, *sizes})
    }


def accuracies(
    subject: Subject, corpus: Corpus, split: str, sizes: Sequence[int], images: int, watch: Watch = lambda *_: None
) -> dict[int, float]:
    """Top-1 by resolution, of that many images of a split.

    Raises:
        ValueError: the corpus has no labels, or no such split; the tower cannot take images of a size.
    """
    others = at_sizes(subject, sizes)
    wanted = labels(corpus, spread(corpus, split, images))
    if subject.clip is not None:
        weights_LD = subject.clip.classifier([name for name in corpus.classes if name])
        names = [i for i, name in enumerate(corpus.classes) if name]

        def predicted(features_ND: NDArray[np.float32]) -> NDArray[np.int64]:
            return np.array(names)[(features_ND @ weights_LD.numpy().T).argmax(1)]
    else:
        rows = spread(corpus, TRAIN, 2 * images)
        probe = fitted(features(subject, corpus, TRAIN, 2 * images, watch), labels(corpus, rows))

        def predicted(features_ND: NDArray[np.float32]) -> NDArray[np.int64]:
            found: NDArray[np.int64] = probe.predict(features_ND)
            return found

    return {
        size: float((predicted(features(other, corpus, split, images, watch)) == wanted).mean()) for size, other in others.items()
    }


def labels(corpus: Corpus, rows: Sequence[int]) -> NDArray[np.int64]:
    """The first label of each row.

    Raises:
        ValueError: one has none.
    """
    found = [corpus.row(row).labels for row in rows]
    if not all(found):
        raise ValueError(f"{corpus.location} has images without a label, and accuracy needs one for each; name a labelled corpus")
    return np.array([some[0] for some in found], dtype=np.int64)


@torch.inference_mode()
def features(subject: Subject, corpus: Corpus, split: str, count: int, watch: Watch) -> NDArray[np.float32]:
    """Unit features [N, D] of images spread over a split."""
    found: list[Tensor] = []
    stage = f"{split} at {subject.preprocess.size} px"
    for image_BCHW in batches(corpus, split, count, subject.preprocess):
        found.append(F.normalize(pooled(subject, image_BCHW), dim=-1))
        watch(stage, sum(map(len, found)), count)
    watch(stage, count, count)
    together: NDArray[np.float32] = torch.cat(found).numpy()
    return together


def pooled(subject: Subject, image_BCHW: Tensor) -> Tensor:
    """What the tower says of whole images: an embedding, features before timm's classifier, or its output."""
    tower: Any = subject.tower
    if subject.clip is not None:
        visual = subject.clip.towers.visual
        return visual.head(tower(image_BCHW)) if hasattr(visual, "trunk") else tower(image_BCHW)
    if hasattr(tower, "forward_head"):
        return tower.forward_head(tower.forward_features(image_BCHW), pre_logits=True)
    return tower(image_BCHW)


def draw(name: str, found: dict[int, float], own: int, path: Path) -> Path:
    figure, (axes,) = panels(1, side=4)
    axes.plot(list(found), [100 * value for value in found.values()], "o-")
    axes.axvline(own, linestyle=":", color="#555555")
    axes.set(xlabel="side of the image, pixels (dotted: trained at)", ylabel="top-1, %", title=name)
    return save(figure, path)
