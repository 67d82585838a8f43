"""The losses over a global batch equal the plain formula on one process, in value, direction and scale of every gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sightline.models.losses import info_nce, word_loss
from tests.processes import on_ranks

B, D, G = 8, 5, 3


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    image = torch.nn.functional.normalize(torch.randn(B, D, generator=random), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(B, D, generator=random), dim=-1)
    words = torch.nn.functional.normalize(torch.randn(G, D, generator=random), dim=-1)
    same_as = torch.tensor([0, 1, 2, 0, 3, 1, 4, 5])
    present = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]]).bool()
    return image, text, words, same_as, present


def plain_info_nce(image: Tensor, text: Tensor, scale: Tensor, same_as: Tensor | None) -> Tensor:
    """Row by row, in loops: −log of the pair's share among all pairs that count."""
    total = torch.zeros(())
    for i in range(len(image)):
        for anchor, others in ((image[i], text), (text[i], image)):
            terms = [
                torch.exp(scale * anchor @ others[j])
                for j in range(len(others))
                if j == i or same_as is None or same_as[i] != same_as[j]
            ]
            total = total - torch.log(torch.exp(scale * anchor @ others[i]) / torch.stack(terms).sum())
    return total / (2 * len(image))


def plain_word_loss(image: Tensor, words: Tensor, present: Tensor, scale: Tensor) -> Tensor:
    rows = []
    for i in range(len(image)):
        logits = torch.stack([scale * image[i] @ word for word in words])
        own = [j for j in range(len(words)) if present[i, j]]
        if own:
            rows.append(torch.stack([torch.logsumexp(logits, 0) - logits[j] for j in own]).mean())
    return torch.stack(rows).mean()


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("equal_captions", [False, True])
def test_info_nce_alone_is_the_plain_formula(equal_captions: bool) -> None:
    image, text, _, same_as, _ = inputs()
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor(7.0, requires_grad=True)]
    ids = same_as if equal_captions else None
    ours, plain = info_nce(*leaves, same_as_b=ids), plain_info_nce(*leaves, ids)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for got, want in zip(gradients(ours, *leaves), gradients(plain, *leaves), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def ranks_part() -> list[Tensor]:
    """This rank's loss of both kinds and its gradients, as FSDP would average them."""
    image, text, words, same_as, present = inputs()
    rank, world = dist.get_rank(), dist.get_world_size()
    own = slice(rank * B // world, (rank + 1) * B // world)
    leaves = [image[own].requires_grad_(), text[own].requires_grad_(), words.requires_grad_()]
    scale = torch.tensor(7.0, requires_grad=True)
    loss = info_nce(leaves[0], leaves[1], scale, dist.group.WORLD, same_as[own])
    loss = loss + word_loss(leaves[0], leaves[2], present[own], scale, dist.group.WORLD)
    return [loss.detach(), *gradients(loss, *leaves, scale)]


@pytest.mark.parametrize("world", [2, 4])
def test_mean_over_ranks_is_the_loss_of_one_process(world: int, tmp_path: Path) -> None:
    image, text, words, same_as, present = inputs()
    leaves = [
        image.requires_grad_(),
        text.requires_grad_(),
        words.requires_grad_(),
        torch.tensor(7.0, requires_grad=True),
    ]
    plain = plain_info_nce(leaves[0], leaves[1], leaves[3], same_as) + plain_word_loss(leaves[0], leaves[2], present, leaves[3])
    want = [plain.detach(), *gradients(plain, *leaves)]
    parts = on_ranks(world, tmp_path, ranks_part)
    assert float(sum(part[0] for part in parts)) / world == pytest.approx(float(want[0]), rel=1e-6)
    # Rows belong to one rank each; FSDP divides by the world size. The scale and the words are averaged over ranks.
    for i in (1, 2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]) / world, want[i], rtol=1e-5, atol=1e-7)
    for i in (3, 4):
        torch.testing.assert_close(sum(part[i] for part in parts) / world, want[i], rtol=1e-5, atol=1e-7)
