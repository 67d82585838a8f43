"""Non-local blocks are their formula over pairs of positions, and one formula with non-local means and with self-attention."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.models.lenses.nlmeans import nl_means
from sightline.models.nonlocal_block import NAME, Affinity, NonLocalBlock, insert

pytestmark = pytest.mark.usefixtures("one_thread")

AFFINITIES = get_args(Affinity)
SHAPES = {1: (2, 4, 9), 2: (2, 4, 4, 5), 3: (2, 4, 3, 4, 5)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(block: Any, seed: int = 0) -> Any:
    """With random weights in place of zeros, and a batch norm that has seen something."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in block.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 * torch.rand(tensor.shape, generator=generator) + 0.1)
    return block.eval()


def operator(f_NM: Tensor, g_MK: Tensor, count: float | None = None) -> Tensor:
    """1/C Σ_j f_ij g_j in loops; C is the sum of f, or the count that is given."""
    rows = []
    for f_M in f_NM:
        total = torch.zeros_like(g_MK[0])
        for f, g_K in zip(f_M, g_MK, strict=True):
            total = total + f * g_K
        rows.append(total / (f_M.sum() if count is None else count))
    return torch.stack(rows)


def pairs(f: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([torch.stack([f(a, b) for b in second]) for a in first])


def plain(block: Any, x: Tensor) -> Tensor:
    """The paper's equations (1) to (6) for one example at a time, pair by pair."""
    positions = x.flatten(2).transpose(1, 2)

    def embed(layer: Any, x_NC: Tensor) -> Tensor:
        return x_NC if isinstance(layer, nn.Identity) else x_NC @ layer.weight.flatten(1).T + layer.bias

    def seen(some_NK: Tensor) -> Tensor:
        return block.pool(some_NK.T.unflatten(1, x.shape[2:])).flatten(1).T

    out = []
    for x_NC in positions:
        theta, phi, g = embed(block.theta, x_NC), seen(embed(block.phi, x_NC)), seen(embed(block.g, x_NC))
        f: Callable[[Tensor, Tensor], Tensor] = {
            "gaussian": lambda a, b: torch.exp(a @ b),
            "embedded_gaussian": lambda a, b: torch.exp(a @ b),
            "dot_product": lambda a, b: a @ b,
            "concatenation": lambda a, b: torch.relu(block.likeness.weight[0] @ torch.cat([a, b])),
        }[block.affinity]
        y_NK = operator(pairs(f, theta, phi), g, None if "gaussian" in block.affinity else len(g))
        out.append(embed(block.out, y_NK))
    z_BCN = torch.stack(out).transpose(1, 2)
    if not isinstance(block.norm, nn.Identity):
        mean, var = (block.norm.get_buffer(name)[:, None] for name in ("running_mean", "running_var"))
        z_BCN = (z_BCN - mean) / torch.sqrt(var + block.norm.eps) * block.norm.weight[:, None] + block.norm.bias[:, None]
    return x + z_BCN.unflatten(2, x.shape[2:])


@pytest.mark.parametrize("subsample", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affinity", AFFINITIES)
def test_a_block_is_the_formula_over_pairs_of_positions(affinity: Affinity, dims: int, subsample: int) -> None:
    block = awake(NonLocalBlock(4, dims, affinity, subsample=subsample, norm=dims != 1))
    x = random(*SHAPES[dims][:2], *(side - 1 for side in SHAPES[dims][2:]))
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain(block, x), rtol=1e-5, atol=1e-5)


def test_pooling_takes_cells_in_space_and_none_in_time() -> None:
    blocks: list[Any] = [NonLocalBlock(4, dims, subsample=2) for dims in (1, 2, 3)]
    sizes = [tuple(block.pool(torch.zeros(SHAPES[block.dims])).shape[2:]) for block in blocks]
    assert sizes == [(5,), (2, 3), (3, 2, 3)]
    assert awake(NonLocalBlock(4, subsample=8))(random(1, 4, 3, 3)).shape == (1, 4, 3, 3)


def test_the_bottleneck_is_half_or_what_is_asked_for() -> None:
    blocks: list[Any] = [NonLocalBlock(6), NonLocalBlock(6, bottleneck=2), NonLocalBlock(1)]
    assert [tuple(block.theta.weight.shape[:2]) for block in blocks] == [(3, 6), (2, 6), (1, 1)]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("affinity", AFFINITIES)
def test_a_new_block_changes_nothing_and_can_learn(affinity: Affinity, norm: bool) -> None:
    block, x = NonLocalBlock(8, affinity=affinity, norm=norm), random(2, 8, 5, 5)
    for training in (False, True):
        assert torch.equal(block.train(training)(x), x)
    block(x).square().sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in block.parameters())


@pytest.mark.parametrize(("affinity", "dims"), [(affinity, dims) for affinity in AFFINITIES for dims in (1, 2, 3)])
def test_positions_have_no_order(affinity: Affinity, dims: int) -> None:
    block, x = awake(NonLocalBlock(4, dims, affinity)), random(*SHAPES[dims])
    torch.testing.assert_close(block(x.flip(-1)), block(x).flip(-1))


# -- one formula: non-local means, non-local block, self-attention


def patches(padded_1CHW: Tensor, side: int) -> Tensor:
    """[N, C · side²]"""
    return F.unfold(padded_1CHW, side)[0].T


def test_non_local_means_is_the_operator_and_is_attention() -> None:
    """−|a − b|² = 2 a·b − |b|² − |a|², and softmax over b does not see |a|²: patches are queries and keys, with a bias."""
    h, side, distance = 0.4, 3, 2
    image = random(1, 2, 5, 6).double()
    around = F.pad(image, (distance,) * 4, mode="reflect")
    query_NK = patches(F.pad(image, (1,) * 4, mode="reflect"), side)
    key_MK = patches(F.pad(image, (distance + 1,) * 4, mode="reflect"), side)
    pixel_MC = around[0].flatten(1).T
    places_N, places_M = (
        torch.cartesian_prod(*(torch.arange(length) for length in size)) for size in ((5, 6), tuple(around.shape[-2:]))
    )
    near_NM = ((places_M[None] - distance - places_N[:, None]).abs() <= distance).all(-1)

    want = nl_means(image, h=h, patch=side, distance=distance)[0].flatten(1).T
    f_NM = pairs(lambda a, b: torch.exp(-((a - b) ** 2).mean() / h**2), query_NK, key_MK) * near_NM
    torch.testing.assert_close(operator(f_NM, pixel_MC), want)

    scale = 1 / (query_NK.shape[1] * h**2)
    bias_NM = (-scale * (key_MK**2).sum(1)).expand_as(near_NM).masked_fill(~near_NM, -math.inf)
    attended = F.scaled_dot_product_attention(query_NK[None], key_MK[None], pixel_MC[None], bias_NM[None], scale=2 * scale)[0]
    torch.testing.assert_close(attended, want)


def with_maps(block: NonLocalBlock, biases: dict[str, Tensor] | None = None, **weights: Tensor) -> NonLocalBlock:
    """The block with those weights [out, in] for its maps, and those biases or none."""
    for name, weight in weights.items():
        layer: Any = block.get_submodule(name)
        layer.weight.data = weight[..., None, None].clone()
        layer.bias.data = biases[name].clone() if biases else torch.zeros(len(weight))
    return block


def test_a_gaussian_block_is_non_local_means_over_the_whole_image() -> None:
    """Of pixels of unit length −|a − b|² = 2 a·b − 2, so θ(x) = 2x / (C h²) and φ(x) = g(x) = W x = x make exp(−d/h²)."""
    channels, h = 3, 0.5
    x = F.normalize(random(1, channels, 4, 5), dim=1)
    eye = torch.eye(channels)
    block = NonLocalBlock(channels, bottleneck=channels, norm=False)
    with_maps(block, theta=2 / (channels * h**2) * eye, phi=eye, g=eye, out=eye)
    pixel_NC = x[0].flatten(1).T
    f_NM = pairs(lambda a, b: torch.exp(-((a - b) ** 2).mean() / h**2), pixel_NC, pixel_NC)
    want = operator(f_NM, pixel_NC)
    torch.testing.assert_close((block(x) - x)[0].flatten(1).T, want)
    scaled = with_maps(NonLocalBlock(channels, affinity="gaussian", bottleneck=channels, norm=False), g=eye, out=eye)
    unit = math.sqrt(2 / channels) / h  # or the plain Gaussian, of pixels of that length
    torch.testing.assert_close((scaled(unit * x) - unit * x)[0].flatten(1).T, unit * want)


def test_an_embedded_gaussian_block_is_self_attention_with_a_residual() -> None:
    channels = 6
    attention = nn.MultiheadAttention(channels, 1, bias=True, batch_first=True).eval()
    nn.init.normal_(attention.in_proj_bias)
    weights, biases = attention.in_proj_weight.data.chunk(3), attention.in_proj_bias.data.chunk(3)
    scale = 1 / math.sqrt(channels)  # attention's own, which the paper leaves to θ
    block = with_maps(
        NonLocalBlock(channels, bottleneck=channels, norm=False),
        {"theta": scale * biases[0], "phi": biases[1], "g": biases[2], "out": attention.out_proj.bias.data},
        theta=scale * weights[0],
        phi=weights[1],
        g=weights[2],
        out=attention.out_proj.weight.data,
    )
    x = random(2, channels, 3, 4)
    tokens_BNC = x.flatten(2).transpose(1, 2)
    with torch.no_grad():
        attended_BNC, _ = attention(tokens_BNC, tokens_BNC, tokens_BNC)
        torch.testing.assert_close(block(x).flatten(2).transpose(1, 2), tokens_BNC + attended_BNC)


# -- into networks


def network(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **options).eval()


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize(("name", "where"), [("resnet18", "stage3:2"), ("convnext_atto", "stage2:1, stage3:5")])
def test_an_inserted_block_changes_no_bit_of_what_a_network_says(name: str, where: str, affinity: Affinity) -> None:
    model, image = network(name), random(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)
        assert torch.equal(insert(model, where, affinity=affinity, subsample=2)(image), before)
        for module in model.modules():
            if isinstance(module, NonLocalBlock):
                awake(module)
        assert not torch.equal(model(image), before)


def places(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NonLocalBlock)]


@pytest.mark.parametrize(
    ("where", "behind"),
    [("stage3:1", [4]), ("stage3:2", [1, 4]), ("stage3:3", [0, 2, 4]), ("stage3:6", [0, 1, 2, 3, 4, 5])],
)
def test_blocks_are_spread_evenly_and_lie_before_the_last_residual_block(where: str, behind: list[int]) -> None:
    model = insert(network("convnext_atto"), where)
    assert places(model) == [f"stages.2.blocks.{place}.{NAME}" for place in behind]


@pytest.mark.parametrize(("name", "block"), [("regnety_002", "s4.b6"), ("efficientnet_b0", "blocks.4.1")])
def test_other_families_have_stages_too(name: str, block: str) -> None:
    model, image = network(name), random(1, 3, 32, 32)
    with torch.no_grad():
        before = model(image)
        assert torch.equal(insert(model, "stage4:1")(image), before)
    assert places(model) == [f"{block}.{NAME}"]


def test_weights_of_the_network_alone_still_load_and_copies_are_whole() -> None:
    alone, model = network("resnet18"), insert(network("resnet18"), "stage3:1")
    missing, unexpected = model.load_state_dict(alone.state_dict(), strict=False)
    assert not unexpected and all(NAME in name for name in missing)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for module in copied.modules():
            if isinstance(module, NonLocalBlock):
                awake(module)
        image = random(1, 3, 64, 64)
        assert torch.equal(model(image), alone(image)) and not torch.equal(copied(image), alone(image))


def test_a_block_is_of_the_kind_of_its_neighbours() -> None:
    model = insert(network("resnet18").double(), "stage1:1")
    block = model.get_submodule(places(model)[0])
    assert not block.training and {weight.dtype for weight in block.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("layer3", "stageNUMBER:BLOCKS; this network takes stage1:1 to stage1:2"),
        ("stage3:0", "stageNUMBER:BLOCKS"),
        ("stage5:1", "not in this network, which takes stage1:1 to stage1:2"),
        ("stage3:3", "not in this network"),
        ("stage2:1,stage2:2", "non-local blocks already"),
        ("stage2:1,stage9:1", "not in this network"),
    ],
)
def test_what_does_not_read_or_fit_is_refused_and_nothing_is_inserted(where: str, says: str) -> None:
    model = network("resnet18")
    with pytest.raises(ValueError, match=says):
        insert(model, where)
    assert not places(model)
    insert(model, "stage2:1")
    with pytest.raises(ValueError, match="non-local blocks already"):
        insert(model, "stage2:2")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "vgg11"])
def test_networks_without_stages_of_residual_blocks_are_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match="resnet50, convnext_tiny or regnety_032"):
        insert(model, "stage3:1")


def test_numbers_that_do_not_fit_are_refused() -> None:
    for options, says in [
        ({"affinity": "cosine"}, "one of gaussian, embedded_gaussian, dot_product, concatenation"),
        ({"dims": 4}, "not one of 1 "),
        ({"subsample": 0}, "at least 1"),
        ({"bottleneck": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=says):
            NonLocalBlock(4, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"takes \[B, 4\] and 2 dimensions more, not \[1, 4, 9\]"):
        NonLocalBlock(4)(random(1, 4, 9))
    with pytest.raises(ValueError, match=r"takes \[B, 4\]"):
        NonLocalBlock(4)(random(1, 8, 3, 3))
