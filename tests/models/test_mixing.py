"""RandAugment and mixtures are functions of their generator alone; operations are torchvision's, labels have the pixels' shares."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from sightline.models.augment import Augment, augment, draw_mix, mixed
from sightline.models.preprocess import Preprocess
from sightline.models.rand_augment import FILL, OPERATIONS, rand_augment

STRONG = Augment(crop_area=(0.3, 1.0), flip=0.5, rand_augment=(2, 9.0), mixup=0.8, cutmix=1.0)


def image(seed: int = 0, size: int = 40) -> Tensor:
    return torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_the_generator_decides_and_nothing_else_does() -> None:
    pixels = image().permute(1, 2, 0).numpy()
    before = torch.get_rng_state()
    outputs = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # what others draw meanwhile
        np.random.rand(seed)
        outputs.append(augment(pixels, "", STRONG, Preprocess(size=32), np.random.default_rng(seed))[0])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    torch.set_rng_state(before)
    rand_augment(image(), 20, 9.0, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("strength", [-0.9, -0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("ours", "theirs", "magnitude"),
    [
        ("shear_x", "ShearX", lambda s: 0.3 * s),
        ("shear_y", "ShearY", lambda s: 0.3 * s),
        ("translate_x", "TranslateX", lambda s: 150 / 331 * 40 * s),
        ("translate_y", "TranslateY", lambda s: 150 / 331 * 40 * s),
        ("rotate", "Rotate", lambda s: 30 * s),
        ("brightness", "Brightness", lambda s: 0.9 * s),
        ("colour", "Color", lambda s: 0.9 * s),
        ("contrast", "Contrast", lambda s: 0.9 * s),
        ("sharpness", "Sharpness", lambda s: 0.9 * s),
        ("posterize", "Posterize", lambda s: 8 - round(4 * abs(s))),
        ("solarize", "Solarize", lambda s: 255 * (1 - abs(s))),
        ("autocontrast", "AutoContrast", lambda s: 0.0),
        ("equalize", "Equalize", lambda s: 0.0),
        ("identity", "Identity", lambda s: 0.0),
    ],
)
def test_each_operation_is_torchvisions(ours: str, theirs: str, magnitude: object, strength: float) -> None:
    assert callable(magnitude)
    found = OPERATIONS[ours](image(), strength)
    if theirs.startswith("Translate"):
        magnitude_of = round(magnitude(strength))  # theirs cuts off, ours rounds
    else:
        magnitude_of = magnitude(strength)
    want = _apply_op(image(), theirs, magnitude_of, InterpolationMode.BILINEAR, FILL)
    assert found.dtype == torch.uint8 and int((found.int() - want.int()).abs().max()) <= 1  # torchvision's two versions round so


def test_operations_are_drawn_evenly() -> None:
    assert len(OPERATIONS) == 14
    random = np.random.default_rng(0)
    drawn = Counter(int(random.integers(14)) for _ in range(14_000))
    assert max(drawn.values()) < 1.15 * min(drawn.values())


@pytest.mark.parametrize("options", [Augment(mixup=0.8), Augment(cutmix=1.0)])
def test_a_mixture_keeps_the_share_that_its_label_keeps(options: Augment) -> None:
    white, black = torch.full((3, 32, 32), 255, dtype=torch.uint8), torch.zeros(3, 32, 32, dtype=torch.uint8)
    kept = []
    for seed in range(300):
        mix = draw_mix(options, 10, 32, np.random.default_rng(seed))
        assert mix is not None and 0 <= mix.partner < 10 and 0 <= mix.kept <= 1
        assert (mix.box is None) == (options.cutmix == 0)
        out = mixed(white, black, mix)
        assert out.dtype == torch.uint8 and float(out.double().mean()) / 255 == pytest.approx(mix.kept, abs=0.5 / 255 + 1e-9)
        kept.append(mix.kept)
    # Half of it stays on average; a box is cut off at the border, so that a little more stays.
    assert 0.45 < float(np.mean(kept)) < 0.7


def test_nothing_is_mixed_unless_asked_for_and_both_kinds_take_turns() -> None:
    assert draw_mix(Augment(), 10, 32, np.random.default_rng(0)) is None
    kinds = Counter(
        mix.box is None for seed in range(200) if (mix := draw_mix(STRONG, 10, 32, np.random.default_rng(seed))) is not None
    )
    assert sum(kinds.values()) == 200 and min(kinds.values()) > 70
