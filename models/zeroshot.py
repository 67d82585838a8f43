"""Labels become prompts, prompts become a classifier, images become probabilities (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

# The class name of whatever is no object; it is never a label to ask for.
BACKGROUND = "background"
# Names of what an annotator left out, and the number in a mask: no truth here.
UNLABELLED = ("unlabelled", "unlabeled", "void", "ignore")
IGNORE = 255
PLAIN_TEMPLATES: tuple[str, ...] = ("{}",)
PHOTO_TEMPLATES: tuple[str, ...] = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")


def fill(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts, label by label: [L · number of templates].

    Raises:
        ValueError: no labels, an empty label, no templates, or a template without `{}`.
    """
    if not labels:
        raise ValueError("the label list is empty; give at least one label")
    if any(not label.strip() for label in labels):
        raise ValueError("a label is empty; every label needs at least one character")
    if not templates or any("{}" not in template for template in templates):
        raise ValueError("a prompt template needs {} where the label goes, as in 'a photo of a {}'")
    return [template.replace("{}", label) for label in labels for template in templates]
