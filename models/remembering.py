"""A model that keeps the label embeddings that were asked for last: serving and scoring ask for the same labels again and again.

Whether a label was remembered changes no answer but for rounding. Legend: L labels, D embedding.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from sightline.models.clip import Clip

# The towers see at most this many inputs at once; it bounds memory, not answers.
CHUNK = 64
# At D = 512 a label takes 2 kB.
REMEMBERED_LABELS = 10_000

T = TypeVar("T")
LabelKey = tuple[tuple[str, ...], str]  # templates, label


@dataclass(frozen=True)
class RememberingClip(Clip):
    """The same model, whose classifier keeps the label embeddings that were asked for last.

    All that asks a model for label embeddings gains from it, the segmentation with its contrast prompts too.
    """

    remembered: OrderedDict[LabelKey, Tensor] = field(default_factory=OrderedDict, repr=False, compare=False)
    counted: Counter[str] = field(default_factory=Counter, repr=False, compare=False)  # hits and misses, in labels

    @classmethod
    def of(cls, model: Clip) -> RememberingClip:
        return cls(**{part.name: getattr(model, part.name) for part in dataclasses.fields(Clip)})

    def classifier(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Zero-shot weights [L, D], as `Clip.classifier`."""
        templates = tuple(templates or self.templates)
        weights = {label: self.remembered[templates, label] for label in labels if (templates, label) in self.remembered}
        missing = [label for label in dict.fromkeys(labels) if label not in weights]
        self.counted["hit"] += len(weights)
        self.counted["miss"] += len(missing)
        # A label makes one prompt per template: chunks hold about CHUNK prompts.
        for some in chunks(missing, max(1, CHUNK // len(templates))):
            weights |= zip(some, super().classifier(some, templates), strict=True)
        for label, weight_D in weights.items():
            self.remembered[templates, label] = weight_D
            self.remembered.move_to_end((templates, label))
        while len(self.remembered) > REMEMBERED_LABELS:
            self.remembered.popitem(last=False)
        return torch.stack([weights[label] for label in labels])


def chunks(items: Sequence[T], size: int | None = None) -> list[Sequence[T]]:
    """The items in parts of that size, by default of CHUNK."""
    size = size or CHUNK
    return [items[i : i + size] for i in range(0, len(items), size)]
