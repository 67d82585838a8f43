"""Attention against its definition written out token by token, against each library's own weights, and the ViT paper's figure 7."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from sightline.models.classifier import Classifier
from sightline.models.lenses.attention import attentions, entropy, mean_distance, pick
from sightline.models.lenses.subject import Subject, load_subject
from sightline.recipes import find_recipe
from tests.models.conftest import CONV, random_towers
from tests.models.lenses.towers import KINDS, images, tower

pytestmark = pytest.mark.usefixtures("one_thread")


def given_to(net: nn.Module, name: str, image_BCHW: Tensor) -> list[Any]:
    """What a module is given in a pass."""
    seen: list[Any] = []
    with net.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.extend(args)), torch.inference_mode():
        net(image_BCHW)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_towers_output_is_its_own(kind: str) -> None:
    """Tolerance 1e-5 of the largest output. The same holds module by module: `attentions` asserts it."""
    net, image, seen = tower(kind), images(kind), []

    def score(output: Any) -> Tensor:
        seen.append(output[0] if isinstance(output, tuple) else output)
        return seen[0].sum()

    attentions(net, image, score)
    with torch.inference_mode():
        own = net(image)
    own = own[0] if isinstance(own, tuple) else own
    assert float((seen[0].detach() - own).abs().max()) <= 1e-5 * max(1.0, float(own.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_distributions_over_the_images_tokens(kind: str) -> None:
    net, image = tower(kind), images(kind)
    layers = attentions(net, image)
    assert [(one.prefix, *one.grid) for one in layers] == list(KINDS[kind].tokens)
    for one in layers:
        weights, places = one.weights_BHNN, one.prefix + one.grid[0] * one.grid[1]
        assert weights.shape[-1] == places and (one.pools or weights.shape[-2] == places) and len(weights) == len(image)
        torch.testing.assert_close(one.local_BWHQK.sum(-1), torch.ones(one.local_BWHQK.shape[:-1]), rtol=0, atol=1e-5)
        if "padded" not in kind:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=0, atol=1e-5)
        assert weights.std(-1).mean() > 1e-3, "even weights would prove nothing"


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "reg_tokens": 2}])
def test_attention_of_a_vit_is_its_formula(options: dict[str, Any]) -> None:
    """softmax(q kᵀ / √K), head by head and token by token (Vaswani et al. 2017, eq. 1); tolerance 1e-6."""
    net, image = tower("ViT, norms and registers" if options else "ViT"), images("ViT", 1)
    module, (x_BNW,) = net.blocks[1].attn, given_to(net, "blocks.1.attn", image)
    with torch.inference_mode():
        qkv = module.qkv(x_BNW)[0]
        for head in range(2):
            query, key = (
                module_norm(qkv[:, part * 16 + head * 8 :][:, :8])
                for part, module_norm in enumerate((module.q_norm, module.k_norm))
            )
            want = [torch.softmax(torch.stack([q @ k / 8**0.5 for k in key]), 0) for q in query]
            torch.testing.assert_close(attentions(net, image)[1].weights_BHNN[0, head], torch.stack(want), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "name"), [("CLIP", "transformer.resblocks.1.attn"), ("CoCa", "attn_pool.attn"), ("ViT of torchvision", "")]
)
def test_attention_of_torchs_module_is_what_torch_says(kind: str, name: str) -> None:
    """`nn.MultiheadAttention` tells its weights if asked; tolerance 1e-6."""
    net, image = tower(kind, sharp=3.0), images(kind)
    name = name or "encoder.layers.encoder_layer_1.self_attention"
    inputs = given_to(net, name, image)
    with torch.inference_mode():
        _, want = net.get_submodule(name)(*inputs, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(pick(attentions(net, image), name).weights_BHNN, want, rtol=0, atol=1e-6)


def test_an_attention_pool_of_a_map_is_what_torch_says() -> None:
    """CLIP's `AttentionPool2d`: the first row, of the mean token; tolerance 1e-6."""
    net, image = tower("ResNet of CLIP"), images("ResNet of CLIP")
    pool, (map_BChw,) = net.attnpool, given_to(net, "attnpool", image)
    with torch.inference_mode():
        tokens = map_BChw.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
        query = pool.q_proj(tokens[:, :1]).unflatten(2, (2, -1)).transpose(1, 2)
        key = pool.k_proj(tokens).unflatten(2, (2, -1)).transpose(1, 2)
        want = (query @ key.transpose(2, 3) / key.shape[-1] ** 0.5).softmax(-1)
    (layer,) = attentions(net, image)
    assert layer.pools
    torch.testing.assert_close(layer.weights_BHNN, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [0, 1])
def test_attention_of_swin_is_its_definition_on_the_image(block: int) -> None:
    """Liu et al. 2021, eq. 4 and figure 4, written out pair by pair on the image; tolerance 1e-5.

    A place attends to those of its window, which is shifted but does not go around the border, with a bias of the offset.
    """
    net, image = tower("Swin"), images("Swin", 1)
    name, window, side = f"layers.0.blocks.{block}", 4, 8
    module, (x_BhwC,) = net.get_submodule(name).attn, given_to(net, name, image)
    shift = 2 * block
    with torch.inference_mode():
        qkv = module.qkv(net.get_submodule(name).norm1(x_BhwC))[0].flatten(0, 1).unflatten(1, (3, 2, 4))
        want = torch.zeros(2, side**2, side**2)
        for head in range(2):
            for i in range(side**2):
                (y, x), among, logits = divmod(i, side), [], []
                for j in range(side**2):
                    b, a = divmod(j, side)
                    same = (y - shift) // window == (b - shift) // window and (x - shift) // window == (a - shift) // window
                    if same:
                        among.append(j)
                        bias = module.relative_position_bias_table[
                            (y - b + window - 1) * (2 * window - 1) + x - a + window - 1, head
                        ]
                        logits.append(qkv[i, 0, head] @ qkv[j, 1, head] / 2 + bias)
                want[head, i, among] = torch.softmax(torch.stack(logits), 0)
    layer = attentions(net, image)[block]
    assert layer.window is not None and layer.window.shift == (shift, shift)
    torch.testing.assert_close(layer.weights_BHNN[0], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["Swin", "Swin of torchvision", "Swin of torchvision, padded", "Swin V2"])
def test_no_place_attends_beyond_its_window(kind: str) -> None:
    """What the cyclic shift brings together is masked (Liu et al. 2021, section 3.2); tolerance 1e-6 of a weight.

    timm's Swin with padding is not here: it pads after it shifts, and its mask lets places at opposite borders through.
    """
    for layer in attentions(tower(kind), images(kind)):
        assert layer.window is not None
        place = torch.arange(layer.grid[0] * layer.grid[1])
        row, column = place // layer.grid[1], place % layer.grid[1]
        far = ((row[:, None] - row).abs() >= layer.window.size[0]) | ((column[:, None] - column).abs() >= layer.window.size[1])
        assert float((layer.weights_BHNN * far).max()) < 1e-6


@pytest.mark.parametrize("kind", ["Swin", "Swin, padded", "Swin of torchvision", "Swin of torchvision, padded", "Swin V2"])
@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_weights_on_the_image_give_what_windows_give(kind: str, block: int) -> None:
    """Σⱼ wᵢⱼ vⱼ over all places of the image, without any window, is what the block computes in windows; tolerance 1e-5.

    What the row lacks to 1 is on padding, whose value is the bias.
    """
    net, image = tower(kind), images(kind, 1)
    layer = attentions(net, image)[block]
    name = layer.name.rpartition(".")[0]
    holder: Any = net.get_submodule(name)
    module: Any = holder.attn
    (x_BhwC,) = given_to(net, name, image)
    with torch.inference_mode():
        x_BhwC = x_BhwC if kind == "Swin V2" else holder.norm1(x_BhwC)
        own = getattr(holder, "_attn", module)(x_BhwC)[0].flatten(0, 1)
        bias_C = module.v_bias if module.qkv.bias is None else module.qkv.bias.chunk(3)[2]
        value_HNK = (x_BhwC[0].flatten(0, 1) @ module.qkv.weight.chunk(3)[2].T + bias_C).unflatten(1, (2, -1)).transpose(0, 1)
        weights_HNN = layer.weights_BHNN[0]
        mixed_HNK = weights_HNN @ value_HNK + (1 - weights_HNN.sum(-1, keepdim=True)) * bias_C.view(2, 1, -1)
        found = module.proj(mixed_HNK.transpose(0, 1).flatten(1))
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)


def plain_distance(weights_NN: Tensor, prefix: int, grid: tuple[int, int], stride: tuple[float, float]) -> float:
    places, total = grid[0] * grid[1], 0.0
    for i in range(places):
        share = moved = 0.0
        for j in range(places):
            (y, x), (b, a) = divmod(i, grid[1]), divmod(j, grid[1])
            weight = float(weights_NN[prefix + i, prefix + j])
            share += weight
            moved += weight * math.hypot((y - b) * stride[0], (x - a) * stride[1])
        total += moved / share
    return total / places


@pytest.mark.parametrize(
    ("kind", "index", "stride"), [("ViT, norms and registers", 1, 8), ("Swin", 1, 4), ("Swin", 3, 8), ("Swin, padded", 1, 4)]
)
def test_mean_distance_is_its_definition(kind: str, index: int, stride: float) -> None:
    """Dosovitskiy et al. 2021, appendix D.7, in loops; relative tolerance 1e-5."""
    layer = attentions(tower(kind), images(kind))[index]
    want = [
        np.mean([plain_distance(one[head], layer.prefix, layer.grid, (stride, stride)) for one in layer.weights_BHNN])
        for head in range(2)
    ]
    torch.testing.assert_close(mean_distance(layer), torch.tensor(want, dtype=torch.float32), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["ViT", "Swin", "CoCa"])
def test_entropy_is_its_definition(kind: str) -> None:
    """−Σ w log w in loops; relative tolerance 1e-5."""
    layer = attentions(tower(kind), images(kind))[-1]
    for head, found in enumerate(entropy(layer)):
        rows = [row for image in layer.weights_BHNN for row in image[head]]
        want = np.mean([sum(-float(w) * math.log(w) for w in row if w > 0) for row in rows])
        assert float(found) == pytest.approx(want, rel=1e-5)


def test_even_attention_has_the_entropy_of_a_choice_among_all() -> None:
    layer = attentions(tower("ViT", sharp=0.0), images("ViT"))[0]
    torch.testing.assert_close(entropy(layer), torch.full((2,), math.log(17)), rtol=1e-6, atol=0)


def test_an_attention_that_cannot_be_recomputed_is_an_error() -> None:
    net = tower("ViT")
    net.blocks[0].attn.proj_drop.train()
    net.blocks[0].attn.proj_drop.p = 0.5
    with pytest.raises(AssertionError, match="Attention recomputed in plain steps is off by"):
        attentions(net, images("ViT"))


def test_nothing_stays_behind_in_the_tower() -> None:
    net, image = tower("Swin"), images("Swin")
    attentions(net, image, lambda output: output.sum())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_has_no_known_attention_is_refused() -> None:
    conv: Any = random_towers(CONV).visual
    with pytest.raises(ValueError, match=r"^the image tower ConvTower has no attention; this lens is for ViT, DeiT"):
        attentions(conv, torch.randn(1, 3, 32, 32))
    maxvit = timm.create_model("maxvit_rmlp_pico_rw_256")
    with pytest.raises(ValueError, match=r"^the image tower MaxxVit has attention of another kind, \w+ \(stages"):
        attentions(maxvit, torch.randn(1, 3, 256, 256))


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [
        ("ViT", 6, "an image of 6×6 pixels is smaller than the patch of 8×8"),
        ("ViT, dynamic size", 6, "an image of 6×6 pixels is smaller than the patch of 8×8"),
        ("CLIP", 40, "the tower takes images of 32×32 pixels, not 40×40; positions.at_size gives it at others"),
        ("Swin", 64, "the tower takes images of 32×32 pixels, not 64×64"),
        ("ViT of torchvision", 64, "the tower takes images of 32×32 pixels, not 64×64"),
        ("ResNet of CLIP", 32, "the tower takes images of 64×64 pixels, not 32×32"),
    ],
)
def test_an_image_of_a_wrong_size_is_refused(kind: str, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        attentions(tower(kind), torch.randn(1, 3, size, size))


def test_layers_go_by_name_and_by_number() -> None:
    layers = attentions(tower("ViT"), images("ViT"))
    assert pick(layers, "blocks.1.attn") is layers[1] is pick(layers, "-1") is pick(layers, "1")
    with pytest.raises(ValueError, match=r"^there is no attention layer 'blocks.7'; choose blocks.0.attn, blocks.1.attn$"):
        pick(layers, "blocks.7")
    with pytest.raises(ValueError, match=r"^attn_pool pools: what it pools into has no place"):
        mean_distance(attentions(tower("ViT, attention pool"), images("ViT"))[-1])


def test_attention_that_does_not_run_is_an_error() -> None:
    """torch's own encoder layer has a fused path of its own, which runs none of its modules."""
    net = tower("CLIP")
    net.transformer.resblocks[1] = Fused(net.transformer.resblocks[1])
    with pytest.raises(ValueError, match=r"^transformer.resblocks.1.block.attn did not run"):
        attentions(net, images("CLIP"))


class Fused(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        return x


# -- the ViT paper's claims, on DeiT-Tiny


@pytest.fixture(scope="module")
def deit(shared_data: Path) -> Subject:
    return load_subject("timm/deit_tiny_patch16_224", str(shared_data / "weights" / "deit_tiny_patch16_224.safetensors"))


@pytest.fixture(scope="module")
def photos(shared_data: Path, deit: Subject) -> Tensor:
    files = sorted((shared_data / "imagenette" / "val").glob("*/*.jpg"))[::50]
    pixels = [deit.preprocess.pixels(np.array(Image.open(file).convert("RGB"))) for file in files]
    return deit.preprocess.normalise(torch.stack(pixels))


@pytest.fixture(scope="module")
def distance(deit: Subject, photos: Tensor) -> Tensor:
    return distances(deit, photos)


def distances(subject: Subject, photos: Tensor) -> Tensor:
    """Pixels, by layer and head."""
    return torch.stack([mean_distance(layer) for layer in attentions(subject.tower, photos)])


def test_attention_distance_grows_with_depth(distance: Tensor) -> None:
    """Dosovitskiy et al. 2021, section 4.5 and figure 7 (right): "the attention distance increases with network depth".

    Of the mean over heads: rank correlation with depth above 0.8, and the last quarter reaches 1.5 times as far as the first.
    """
    mean_L = distance.mean(1)
    rank = mean_L.argsort().argsort().float()
    assert float(torch.corrcoef(torch.stack([rank, torch.arange(12.0)]))[0, 1]) > 0.8
    assert mean_L[-3:].mean() > 1.5 * mean_L[:3].mean()


def test_the_lowest_layers_have_both_local_and_global_heads(distance: Tensor) -> None:
    """The same figure: "some heads attend to most of the image already in the lowest layers", others do not; deep ones all do.

    Within the first quarter the furthest head reaches three times as far as the nearest; in the last, no head less than 0.85 of the
    distance of even attention, nor do two differ by a fifth.
    """
    even = plain_distance(torch.ones(196, 196), 0, (14, 14), (16, 16))
    low, deep = distance[:3], distance[-3:]
    assert low.max() > 3 * low.min() and low.max() > 0.6 * even
    assert deep.min() > 0.85 * even and deep.max() < 1.2 * deep.min()


def test_without_training_every_head_is_even(photos: Tensor) -> None:
    """So the two claims above are of the weights: random ones differ from even attention by less than a hundredth at any depth."""
    found = distances(load_subject("timm/deit_tiny_patch16_224", seed=0), photos[:2])
    even = plain_distance(torch.ones(196, 196), 0, (14, 14), (16, 16))
    assert float((found / even - 1).abs().max()) < 0.01


def test_entropy_of_deit_lies_between_one_token_and_all(deit: Subject, photos: Tensor) -> None:
    found = torch.stack([entropy(layer) for layer in attentions(deit.tower, photos[:2])])
    assert 0 < found.min() < 2.0 and 4.0 < found.max() < math.log(197)


@pytest.mark.parametrize("recipe", ["inductive_vit", "inductive_hybrid", "inductive_cct"])
def test_places_are_as_far_apart_as_the_image_has_room(recipe: str) -> None:
    """Also where tokens are cut from a network's map: patches of 2 × 2 there are 8 pixels apart."""
    trunk = Classifier(find_recipe(recipe).model.vision, size=64, classes=2, hidden=0).visual.trunk.eval()
    for layer in attentions(trunk, torch.randn(1, 3, 64, 64), lambda output: output.amax(1)):
        assert layer.grid == (8, 8) and layer.stride_px == (8, 8)
