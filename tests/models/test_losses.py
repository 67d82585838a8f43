"""The losses over a global batch equal the plain formula on one process, in value, direction and scale of every gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sightline.models import losses
from sightline.models.losses import Share, info_nce, sigmoid_loss, word_loss
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


def plain_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, same_as: Tensor | None) -> Tensor:
    """Pair by pair: −log σ of the logit where image and text belong together, of its negative where not."""
    total = torch.zeros(())
    for i in range(len(image)):
        for j in range(len(text)):
            if i == j or same_as is None or same_as[i] != same_as[j]:
                logit = scale * image[i] @ text[j] + bias
                total = total - F.logsigmoid(logit if i == j else -logit)
    return total / len(image)


def plain_word_loss(image: Tensor, words: Tensor, present: Tensor, scale: Tensor) -> Tensor:
    rows = []
    for i in range(len(image)):
        logits = torch.stack([scale * image[i] @ word for word in words])
        own = [j for j in range(len(words)) if present[i, j]]
        if own:
            rows.append(torch.stack([torch.logsumexp(logits, 0) - logits[j] for j in own]).mean())
    return torch.stack(rows).mean()


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


@pytest.mark.parametrize("equal_captions", [False, True])
def test_alone_they_are_the_plain_formulas(equal_captions: bool) -> None:
    image, text, _, same_as, _ = inputs()
    leaves = [image.requires_grad_(), text.requires_grad_(), torch.tensor(7.0, requires_grad=True)]
    bias = torch.tensor(-3.0, requires_grad=True)
    ids = same_as if equal_captions else None
    pairs = [
        (info_nce(*leaves, Share.of(B), ids), plain_info_nce(*leaves, ids), leaves),
        (sigmoid_loss(*leaves, bias, Share.of(B), ids), plain_sigmoid(*leaves, bias, ids), [*leaves, bias]),
    ]
    for ours, plain, of in pairs:
        assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
        for got, want in zip(gradients(ours, *of), gradients(plain, *of), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("same", [False, True])
def test_blocks_change_nothing(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 rows in blocks of 128, 128 and 44 against torch's own cross-entropy and log-sigmoid over the whole matrix."""
    monkeypatch.setattr(losses, "BLOCK_LOGITS", 1)
    random = torch.Generator().manual_seed(3)
    leaves = [F.normalize(torch.randn(300, 16, generator=random), dim=-1).requires_grad_() for _ in range(2)]
    scale, bias = torch.tensor([20.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    ids = torch.randint(0, 200, (300,), generator=random) if same else torch.arange(300)
    out = (ids[:, None] == ids[None, :]) & ~torch.eye(300, dtype=torch.bool)
    assert out.any() == same and len(list(Share.of(300).blocks())) == 3
    logits = scale * leaves[0] @ leaves[1].T
    target = torch.arange(300)
    masked = logits.masked_fill(out, -torch.inf)
    naive_nce = (F.cross_entropy(masked, target) + F.cross_entropy(masked.T, target)) / 2
    sign = 2 * torch.eye(300) - 1
    naive_sigmoid = -(F.logsigmoid(sign * (logits + bias)).masked_fill(out, 0.0)).sum() / 300
    given = ids if same else None
    pairs = [
        (info_nce(*leaves, scale, Share.of(300), given), naive_nce, [*leaves, scale]),
        (sigmoid_loss(*leaves, scale, bias, Share.of(300), given), naive_sigmoid, [*leaves, scale, bias]),
    ]
    for ours, naive, of in pairs:
        torch.testing.assert_close(ours, naive, rtol=1e-6, atol=0)
        for got, want in zip(gradients(3 * ours, *of), gradients(3 * naive, *of), strict=True):
            assert (got - want).norm() < 1e-5 * want.norm()


def ranks_part() -> list[Tensor]:
    """This rank's sum of all losses and its gradients, as FSDP would average them."""
    image, text, words, same_as, present = inputs()
    share = Share.of(B, dist.group.WORLD)
    own = share.own
    leaves = [image[own].requires_grad_(), text[own].requires_grad_(), words.requires_grad_()]
    scale, bias = torch.tensor(7.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    loss = info_nce(leaves[0], leaves[1], scale, share, same_as[own])
    loss = loss + word_loss(leaves[0], leaves[2], present[own], scale, share)
    loss = loss + 0.1 * sigmoid_loss(leaves[0], leaves[1], scale, bias, share, same_as[own])
    return [loss.detach(), *gradients(loss, *leaves, scale, bias)]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_mean_over_ranks_is_the_loss_of_one_process(world: int, tmp_path: Path) -> None:
    """Three ranks hold 2, 3 and 3 of the 8 rows."""
    image, text, words, same_as, present = inputs()
    leaves = [
        image.requires_grad_(),
        text.requires_grad_(),
        words.requires_grad_(),
        torch.tensor(7.0, requires_grad=True),
        torch.tensor(-3.0, requires_grad=True),
    ]
    plain = plain_info_nce(leaves[0], leaves[1], leaves[3], same_as) + plain_word_loss(leaves[0], leaves[2], present, leaves[3])
    plain = plain + 0.1 * plain_sigmoid(leaves[0], leaves[1], leaves[3], leaves[4], same_as)
    want = [plain.detach(), *gradients(plain, *leaves)]
    parts = on_ranks(world, tmp_path, ranks_part)
    assert float(sum(part[0] for part in parts)) / world == pytest.approx(float(want[0]), rel=1e-6)
    # Rows belong to one rank each; FSDP divides by the world size. The scale and the words are averaged over ranks.
    for i in (1, 2):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]) / world, want[i], rtol=1e-5, atol=1e-7)
    for i in (3, 4, 5):
        torch.testing.assert_close(sum(part[i] for part in parts) / world, want[i], rtol=1e-5, atol=1e-7)
