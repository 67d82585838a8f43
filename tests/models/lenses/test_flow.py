"""Rollout and relevance against the papers' recurrences in plain loops, and what relevance is for: finding what matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sightline.models.lenses.attention import LayerAttention, attentions
from sightline.models.lenses.explicit import Explicit
from sightline.models.lenses.flow import attended, relevance, relevance_of, rollout
from sightline.models.lenses.subject import load_subject
from tests.models.lenses.towers import images, tower, unfused

pytestmark = pytest.mark.usefixtures("one_thread")


def product(first: Tensor, second: Tensor) -> Tensor:
    """Of two matrices, entry by entry."""
    return torch.stack(
        [torch.stack([sum(a * b for a, b in zip(row, column, strict=True)) for column in second.T]) for row in first]
    )


def merging(fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """Each place of the coarse grid is its own of the fine one, in equal parts [coarse, fine]."""
    matrix = torch.zeros(coarse[0] * coarse[1], fine[0] * fine[1])
    for y in range(fine[0]):
        for x in range(fine[1]):
            matrix[y // 2 * coarse[1] + x // 2, y * fine[1] + x] = 1
    return matrix / matrix.sum(1, keepdim=True)


def test_rollout_of_a_vit_is_its_recurrence() -> None:
    """Abnar & Zuidema 2020, eq. 1: Ã(lᵢ) = A(lᵢ) Ã(lᵢ₋₁) with A = W/2 + I/2; tolerance 1e-6."""
    layers = attentions(tower("ViT"), images("ViT"))
    found = rollout(layers)
    for image in range(2):
        want = torch.eye(17)
        for layer in layers:
            mean = sum(layer.weights_BHNN[image, head] for head in range(2)) / 2
            want = product(mean / 2 + torch.eye(17) / 2, want)
        torch.testing.assert_close(found[image], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["Swin", "Swin, padded", "Swin of torchvision, padded"])
def test_rollout_of_swin_goes_up_from_the_first_stage(kind: str) -> None:
    """The same recurrence with a merging matrix between the stages; tolerance 1e-6."""
    layers = attentions(tower(kind), images(kind, 1))
    flow, grid = torch.eye(layers[0].grid[0] ** 2), layers[0].grid
    for layer in layers:
        if layer.grid != grid:
            flow, grid = merging(grid, layer.grid) @ flow, layer.grid
        mean = layer.weights_BHNN[0].mean(0)
        flow = (mean / mean.sum(1, keepdim=True) / 2 + torch.eye(len(mean)) / 2) @ flow
    torch.testing.assert_close(rollout(layers)[0], flow, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["ViT, attention pool", "CoCa", "CoCa, parallel"])
def test_a_pool_reads_what_has_rolled_out(kind: str) -> None:
    layers = attentions(tower(kind), images(kind, 1))
    below = rollout([one for one in layers if not one.pools])
    torch.testing.assert_close(rollout(layers), layers[-1].weights_BHNN.mean(1) @ below, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["ViT", "Swin", "Swin, padded", "CoCa", "ResNet of CLIP", "EVA"])
def test_what_rolls_out_is_a_distribution(kind: str) -> None:
    """Rows sum to 1, tolerance 1e-5: nothing is lost by windows, merging and pooling."""
    flow = rollout(attentions(tower(kind), images(kind)))
    torch.testing.assert_close(flow.sum(-1), torch.ones(flow.shape[:-1]), rtol=0, atol=1e-5)


def plain_weights_and_gradients(net: Any, image_BCHW: Tensor, label: int) -> list[tuple[Tensor, Tensor]]:
    """Of timm's own unfused attention, whose weights go through a module of its own; [H, N, N] of one image."""
    unfused(net)
    kept: list[Tensor] = []
    hooks = [block.attn.attn_drop.register_forward_hook(lambda module, args, output: kept.append(output)) for block in net.blocks]
    score = net(image_BCHW)[0, label]
    gradients = torch.autograd.grad(score, kept)
    for hook in hooks:
        hook.remove()
    unfused(net, fused=True)
    return [(weights[0].detach(), gradient[0]) for weights, gradient in zip(kept, gradients, strict=True)]


def test_relevance_of_a_vit_is_its_recurrence() -> None:
    """Chefer et al. 2021, eqs. 5 and 6: Ā = Eₕ((∇A ⊙ A)⁺), R ← R + Ā R from R = I, in loops; relative tolerance 1e-4."""
    net, image = tower("ViT"), images("ViT")
    found = relevance(net, image, lambda output: output[:, 3])
    for one in range(2):
        want = torch.eye(17)
        for weights, gradient in plain_weights_and_gradients(net, image[one : one + 1], 3):
            mean = torch.zeros(17, 17)
            for i in range(17):
                for j in range(17):
                    mean[i, j] = sum(max(float(gradient[head, i, j] * weights[head, i, j]), 0.0) for head in range(2)) / 2
            want = want + product(mean, want)
        torch.testing.assert_close(found[one], want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["CLIP", "CLIP, sequence first", "Swin", "EVA", "ViT of torchvision", "CoCa", "ResNet of CLIP"])
def test_gradients_are_those_of_the_score(kind: str) -> None:
    """Of the last layer, against a central difference in float64: the weights are moved in a random direction; tolerance 1e-4."""
    net, image = tower(kind, sharp=2.0).double(), images(kind, 1).double()
    name = attentions(net, image)[-1].name

    def score(output: Tensor) -> Tensor:
        return (output * torch.linspace(-1, 1, output.shape[-1], dtype=torch.float64)).sum(-1)

    layer = attentions(net, image, score)[-1]
    assert layer.gradient_BWHQK is not None
    direction = torch.randn(layer.local_BWHQK.shape, dtype=torch.float64)
    moved = [score(output_with_moved_weights(net, name, step * direction, image)) for step in (1e-5, -1e-5)]
    want, found = float((moved[0] - moved[1]) / 2e-5), float((layer.gradient_BWHQK * direction).sum())
    assert found == pytest.approx(want, rel=1e-4)


class Moved(Explicit):
    """Attention with something added to its weights."""

    def __init__(self, change_BHQK: Tensor) -> None:
        super().__init__()
        self.change_BHQK = change_BHQK

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **more: Any
    ) -> Tensor:
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + (0.0 if attn_mask is None else attn_mask)).softmax(-1)
        weights[:, :, : self.change_BHQK.shape[2]] += self.change_BHQK  # a pool of a map looks at its first query alone
        return weights @ value


def output_with_moved_weights(net: Any, name: str, change_BWHQK: Tensor, image_BCHW: Tensor) -> Tensor:
    def again(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        with Moved(change_BWHQK.flatten(0, 1)):
            return module.forward(*args, **kwargs)

    unfused(net, fused=True)
    with net.get_submodule(name).register_forward_hook(again, with_kwargs=True), torch.inference_mode():
        return net(image_BCHW)


def test_a_frozen_tower_has_relevance_too() -> None:
    net, image = tower("CLIP"), images("CLIP")
    free = relevance(net, image, lambda output: output.sum(-1))
    torch.testing.assert_close(relevance(net.requires_grad_(False), image, lambda output: output.sum(-1)), free)
    with torch.inference_mode():
        torch.testing.assert_close(relevance(net, image, lambda output: output.sum(-1)), free)


def test_relevance_needs_a_score() -> None:
    with pytest.raises(ValueError, match=r"^relevance needs gradients: give `attentions` a score"):
        relevance_of(attentions(tower("ViT"), images("ViT")))


def test_attention_that_follows_on_nothing_is_refused() -> None:
    (pool,), swin = attentions(tower("ResNet of CLIP"), images("ResNet of CLIP")), attentions(tower("Swin"), images("Swin"))
    with pytest.raises(ValueError, match=r"^attnpool pools with a token of its own, which is not one of layers.1.blocks.1.attn"):
        rollout([*swin, pool])


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("ViT", [0]),
        ("CLIP", [0]),
        ("ViT of torchvision", [0]),
        ("Swin", range(16)),
        ("CoCa", range(3)),
        ("ViT, attention pool", [0]),
    ],
)
def test_the_map_is_of_the_rows_that_the_tower_pools(kind: str, rows: Any) -> None:
    net, image = tower(kind), images(kind)
    layers: list[LayerAttention] = attentions(net, image)
    flow, first = rollout(layers), layers[0]
    want = flow[:, list(rows), first.prefix :].mean(1).reshape(2, *first.grid)
    torch.testing.assert_close(attended(net, layers, flow), want)


def test_hiding_what_is_relevant_costs_more_than_hiding_the_rest(shared_data: Path) -> None:
    """Chefer et al. 2021, section 5 (positive and negative perturbation), on DeiT-Tiny and five photos.

    With the most relevant 40 % of the patches grey the predicted class keeps under half of the probability that it keeps with the
    least relevant ones grey; with the map of another image it does not.
    """
    deit = load_subject("timm/deit_tiny_patch16_224", str(shared_data / "weights" / "deit_tiny_patch16_224.safetensors"))
    files = sorted((shared_data / "imagenette" / "val").glob("*/*.jpg"))[::80]
    photos = deit.preprocess.normalise(
        torch.stack([deit.preprocess.pixels(np.array(Image.open(file).convert("RGB"))) for file in files])
    )
    with torch.no_grad():
        label = deit.tower(photos).argmax(-1)
    layers = attentions(deit.tower, photos, lambda output: output.gather(1, label[:, None]))
    map_Bhw = attended(deit.tower, layers, relevance_of(layers))

    def kept(map_Bhw: Tensor) -> float:
        """The probability of the class with the patches of the largest values grey."""
        rank = map_Bhw.flatten(1).argsort(descending=True).argsort().view_as(map_Bhw)
        shown = (rank >= 0.4 * 196).float().repeat_interleave(16, 1).repeat_interleave(16, 2)
        with torch.inference_mode():
            return float(deit.tower(photos * shown[:, None]).softmax(-1).gather(1, label[:, None]).mean())

    assert kept(map_Bhw) < 0.5 * kept(-map_Bhw)
    assert kept(map_Bhw.roll(1, 0)) > 0.5 * kept(-map_Bhw.roll(1, 0))
