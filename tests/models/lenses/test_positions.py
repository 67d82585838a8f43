"""Position embeddings against their formulas, what the papers say of them, and the same tower at another image size."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from PIL import Image
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from sightline.models.lenses.attention import attentions
from sightline.models.lenses.positions import (
    at_size,
    by_offset,
    cosine,
    interpolate,
    positions,
    relative_biases,
    rotary,
    similarity,
    sin_cos,
)
from sightline.models.lenses.subject import Subject, load_subject
from tests.models.conftest import CONV, random_towers
from tests.models.lenses.towers import CLIP, images, tower

pytestmark = pytest.mark.usefixtures("one_thread")


def spread(offset_hw: Tensor, grid: tuple[int, int]) -> Tensor:
    """What is known by offset, for every pair of places [P, P]."""
    places = [divmod(place, grid[1]) for place in range(grid[0] * grid[1])]
    rows = [[offset_hw[b - y + grid[0] - 1, a - x + grid[1] - 1] for b, a in places] for y, x in places]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize(
    ("kind", "prefix", "grid"),
    [
        ("ViT", 1, (4, 4)),
        ("ViT, norms and registers", 3, (4, 4)),
        ("ViT, attention pool", 0, (4, 4)),
        ("ViT of torchvision", 1, (4, 4)),
        ("CLIP", 1, (4, 4)),
        ("ResNet of CLIP", 1, (2, 2)),
    ],
)
def test_learned_embeddings_are_found_without_their_prefix(kind: str, prefix: int, grid: tuple[int, int]) -> None:
    net = tower(kind)
    (found,) = positions(net)
    table = next(
        value for name, value in net.state_dict().items() if name.endswith(("pos_embed", "pos_embedding", "positional_embedding"))
    )
    assert (found.kind, found.grid, len(found.prefix_XD)) == ("learned", grid, prefix)
    assert torch.equal(torch.cat([found.prefix_XD, found.vector_PD]), table.flatten(0, -2))


def test_similarity_is_the_cosine() -> None:
    """Entry by entry; tolerance 1e-6."""
    found, vectors = similarity(tower("ViT")), positions(tower("ViT"))[0].vector_PD
    want = torch.tensor([[float(a @ b / (a @ a).sqrt() / (b @ b).sqrt()) for b in vectors] for a in vectors])
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)


def test_offsets_are_from_the_first_place_to_the_second() -> None:
    grid, matrix = (2, 3), torch.rand(5, 6, 6)
    found = by_offset(matrix, grid)
    for down in range(-1, 2):
        for across in range(-2, 3):
            pairs = [(i, j) for i in range(6) for j in range(6) if (j // 3 - i // 3, j % 3 - i % 3) == (down, across)]
            want = torch.stack([matrix[:, i, j] for i, j in pairs]).mean(0)
            torch.testing.assert_close(found[:, down + 1, across + 2], want)


@pytest.mark.parametrize("grid", [(1, 40), (5, 7)])
def test_sines_and_cosines_know_only_offsets(grid: tuple[int, int]) -> None:
    """Vaswani et al. 2017, section 3.5: an offset is a linear map, a rotation, so the cosine is of it alone; tolerance 1e-5."""
    found = sin_cos(grid, 64)
    matrix = cosine(found.vector_PD)
    torch.testing.assert_close(matrix, spread(by_offset(matrix, grid), grid), rtol=0, atol=1e-5)
    learned = cosine(torch.randn(grid[0] * grid[1], 64))
    assert not torch.allclose(learned, spread(by_offset(learned, grid), grid), atol=0.05)


def test_sines_and_cosines_of_one_row_are_the_papers() -> None:
    """Vaswani et al. 2017, section 3.5: sin(pos / 10000^(2i/D)) and its cosine, whose order does not matter; tolerance 1e-5."""
    found = sin_cos((1, 50), 8).vector_PD
    for place in range(50):
        angles = [place / 10000 ** (2 * i / 8) for i in range(4)]
        np.testing.assert_allclose(found[place], [*np.sin(angles), *np.cos(angles)], atol=1e-5)


def test_a_towers_sines_and_cosines_are_told_from_learned_ones() -> None:
    """open_clip's are those of MoCo v3, as ours are, in another order of channels; tolerance 1e-5."""
    net = VisionTransformer(**CLIP, pos_embed_type="sin_cos_2d")
    assert positions(net)[0].kind == "sin-cos"
    torch.testing.assert_close(similarity(net), cosine(sin_cos((4, 4), 16).vector_PD), rtol=0, atol=1e-5)


def test_text_has_one_row_of_positions() -> None:
    (found,) = positions(TextTransformer(context_length=12, vocab_size=20, width=16, heads=2, layers=1))
    assert (found.kind, found.grid, len(found.prefix_XD)) == ("learned", (1, 12), 0)


@pytest.mark.parametrize("kind", ["EVA", "EVA, rotary only", "EVA, mixed"])
def test_rotary_similarity_is_what_rotation_leaves_of_equal_vectors(kind: str) -> None:
    """Su et al. 2021, eq. 16, by timm's own rotation of a vector that is as long in every pair of channels; tolerance 1e-5."""
    net = tower(kind)
    found = positions(net)[-1]
    assert found.kind == "rotary" and len(positions(net)) == (2 if kind == "EVA" else 1)
    embedding = net.rope.get_embed(shape=[4, 4])
    half = getattr(net.blocks[0].attn, "rotate_half", False)
    angle = torch.rand(embedding.shape[-1] // 4) * 6.28
    pairs = torch.stack([angle.cos(), angle.sin()], -1 if not half else 0).flatten()
    turned = apply_rot_embed_cat(pairs.expand(*embedding.shape[:-1], -1), embedding, half=half).detach()
    want = (turned @ turned.transpose(-1, -2) / (pairs @ pairs)).flatten(0, -3).mean(0) if turned.ndim > 2 else cosine(turned)
    torch.testing.assert_close(cosine(found.vector_PD), want, rtol=0, atol=1e-5)


def test_rotary_similarity_knows_only_offsets_and_falls_with_distance() -> None:
    """Su et al. 2021, eq. 16 (tolerance 1e-5) and section 3.4.3, "long-term decay": less by each doubling of the distance."""
    matrix = cosine(positions(tower("EVA"))[-1].vector_PD)
    torch.testing.assert_close(matrix, spread(by_offset(matrix, (4, 4)), (4, 4)), rtol=0, atol=1e-5)
    long = timm.layers.RotaryEmbeddingCat(128, in_pixels=False, feat_shape=[1, 256])
    along = by_offset(cosine(rotary(long.get_embed())), (1, 256))[0, 256:]
    blocks = [float(along[2**k - 1 : 2 ** (k + 1) - 1].mean()) for k in range(7)]
    assert blocks == sorted(blocks, reverse=True) and blocks[0] - blocks[-1] > 0.2


@pytest.mark.parametrize("kind", ["Swin", "Swin V2", "Swin of torchvision", "BEiT"])
def test_relative_biases_are_those_of_each_pair(kind: str) -> None:
    """The bias that is added to the logit of each pair of places, as the module's own index has it; tolerance 1e-5."""
    net = tower(kind)
    found = relative_biases(net)
    assert len(found) == (2 if kind == "BEiT" else 4)
    for name, bias_Hhw in found.items():
        module = net.get_submodule(name)
        pairs = bias_of_pairs(module)
        size = tuple(module.window_size)
        assert bias_Hhw.shape == (2, 2 * size[0] - 1, 2 * size[1] - 1) and bias_Hhw.std() > 0
        for head in range(2):
            torch.testing.assert_close(spread(bias_Hhw[head], size), pairs[head], rtol=0, atol=1e-5)


def bias_of_pairs(module: Any) -> Tensor:
    """[H, M, M], without a class token."""
    area = module.window_size[0] * module.window_size[1]
    if hasattr(module, "cpb_mlp"):
        table = 16 * torch.sigmoid(module.cpb_mlp(module.relative_coords_table).flatten(0, -2))
    else:
        table = module.relative_position_bias_table
    index = module.relative_position_index
    index = index[1:, 1:] if index.ndim == 2 and len(index) > area else index.view(area, area)
    return table[index].permute(2, 0, 1).detach()


@pytest.mark.parametrize("kind", ["Swin", "BEiT"])
def test_a_tower_of_relative_biases_alone_has_no_similarity(kind: str) -> None:
    with pytest.raises(ValueError, match=r"has no position embeddings; relative_biases gives those that it has$"):
        similarity(tower(kind))


def conv_tower() -> Any:
    return random_towers(CONV).visual


def test_a_convolutional_tower_has_no_positions() -> None:
    with pytest.raises(ValueError, match=r"^the tower ConvTower has no position embeddings$"):
        similarity(conv_tower())


# -- the ViT paper's claims, on DeiT-Tiny


@pytest.fixture(scope="module")
def deit(shared_data: Path) -> Subject:
    return load_subject("timm/deit_tiny_patch16_224", str(shared_data / "weights" / "deit_tiny_patch16_224.safetensors"))


def nearest(matrix_PP: Tensor) -> float:
    """The part of the places whose most similar other place is beside them, at most one row and one column away."""
    place = torch.arange(196)
    best = matrix_PP.clone().fill_diagonal_(-2).argmax(-1)
    beside = ((best // 14 - place // 14).abs() <= 1) & ((best % 14 - place % 14).abs() <= 1)
    return float(beside.float().mean())


def lines(matrix_PP: Tensor, steps: int) -> tuple[float, float]:
    """Mean similarity at about that distance: in the same row or column, and elsewhere."""
    row, column = torch.arange(196) // 14, torch.arange(196) % 14
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    at_distance = (torch.hypot(down.float(), across.float()) - steps).abs() < 0.5
    in_line = (down == 0) | (across == 0)
    return float(matrix_PP[at_distance & in_line].mean()), float(matrix_PP[at_distance & ~in_line].mean())


def test_closer_patches_have_more_similar_embeddings(deit: Subject) -> None:
    """Dosovitskiy et al. 2021, section 4.5: for 99 % of places the most similar one is beside them; in random weights for 20 %."""
    assert nearest(similarity(deit.tower)) >= 0.99
    assert nearest(similarity(load_subject("timm/deit_tiny_patch16_224", seed=0).tower)) < 0.2


def test_patches_of_a_row_or_a_column_have_similar_embeddings(deit: Subject) -> None:
    """The same, "row-column structure": five and six steps away it is 0.1 more along a line than elsewhere; at random 0.02."""
    random = load_subject("timm/deit_tiny_patch16_224", seed=0)
    for steps in (5, 6):
        along, elsewhere = lines(similarity(deit.tower), steps)
        assert along > elsewhere + 0.1
        along, elsewhere = lines(similarity(random.tower), steps)
        assert abs(along - elsewhere) < 0.02


# -- another resolution


def test_interpolation_to_the_same_grid_changes_nothing_and_keeps_what_is_even() -> None:
    vectors = torch.randn(20, 8)
    assert torch.equal(interpolate(vectors, (4, 5), (4, 5)), vectors)
    torch.testing.assert_close(interpolate(torch.ones(20, 8), (4, 5), (7, 6)), torch.ones(42, 8), rtol=0, atol=1e-5)


def test_interpolation_keeps_rows_apart_from_columns() -> None:
    """An embedding of the row alone stays one: tolerance 1e-5."""
    vectors = torch.randn(4, 8).repeat_interleave(5, 0)
    found = interpolate(vectors, (4, 5), (8, 10)).view(8, 10, 8)
    torch.testing.assert_close(found, found[:, :1].expand(-1, 10, -1), rtol=0, atol=1e-5)


RESIZED = ["ViT", "ViT, norms and registers", "EVA", "EVA, mixed", "BEiT", "Swin", "Swin V2", "ViT of torchvision", "CLIP", "CoCa"]


@pytest.mark.parametrize("kind", RESIZED)
def test_a_tower_at_its_own_size_is_itself(kind: str) -> None:
    net, image = tower(kind), images(kind)
    with torch.inference_mode():
        torch.testing.assert_close(at_size(net, 32)(image), net(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", RESIZED)
def test_a_tower_at_another_size_takes_images_of_it(kind: str) -> None:
    net = tower(kind)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    resized, image = at_size(net, 64), torch.randn(1, 3, 64, 64)
    first = attentions(resized, image)[0]
    assert first.grid == ((16, 16) if "Swin" in kind else (8, 8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "the tower itself has changed"


@pytest.mark.parametrize("kind", ["ViT", "ViT of torchvision", "CLIP"])
def test_learned_embeddings_at_another_size_are_interpolated(kind: str) -> None:
    (before,), (after,) = positions(tower(kind)), positions(at_size(tower(kind), 48))
    assert after.grid == (6, 6) and torch.equal(after.prefix_XD, before.prefix_XD)
    torch.testing.assert_close(after.vector_PD, interpolate(before.vector_PD, (4, 4), (6, 6)), rtol=0, atol=1e-6)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^an image of 6×6 pixels is smaller than the patch of 8×8"):
        at_size(tower("CLIP"), 6)
    with pytest.raises(ValueError, match=r"^the image tower ModifiedResNet is bound to the image size that it was built for"):
        at_size(tower("ResNet of CLIP"), 128)
    with pytest.raises(ValueError, match=r"^the image tower MlpMixer is bound"):
        at_size(timm.create_model("gmixer_12_224"), 256)


def test_a_tower_without_positions_is_copied() -> None:
    visual, image = conv_tower().trunk, torch.randn(1, 3, 40, 40)
    copy = at_size(visual, 40)
    assert copy is not visual and torch.equal(copy(image), visual(image))


def test_interpolated_positions_keep_what_a_model_has_learned(deit: Subject, shared_data: Path) -> None:
    """Dosovitskiy et al. 2021, section 3.2: positions are interpolated "according to their location in the original image".

    DeiT-Tiny at 128 pixels knows 17 of 20 photos among ten classes; with the same embeddings in another order five fewer.
    """
    with (shared_data / "imagenette" / "classes.csv").open() as table:
        index = {row["folder"]: int(row["imagenet_index"]) for row in csv.DictReader(table)}
    files = sorted((shared_data / "imagenette" / "val").glob("*/*.jpg"))[::20]
    preprocess, net = replace(deit.preprocess, size=128), at_size(deit.tower, 128)
    image_BCHW = preprocess.normalise(torch.stack([preprocess.pixels(np.array(Image.open(file).convert("RGB"))) for file in files]))

    def known() -> int:
        with torch.inference_mode():
            label_B = net(image_BCHW)[:, list(index.values())].argmax(-1)
        return sum(list(index)[label] == file.parent.name for label, file in zip(label_B.tolist(), files, strict=True))

    interpolated = known()
    with torch.no_grad():
        net.pos_embed[:, 1:] = net.pos_embed[:, 1 + torch.randperm(64, generator=torch.Generator().manual_seed(0))]  # type: ignore[index, operator]
    assert interpolated >= 17 and known() <= interpolated - 5
