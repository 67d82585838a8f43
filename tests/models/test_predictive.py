"""Models that predict captions: their loss by hand, their gradient at any world size, and no look at the words to come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sightline.models import artifact as artifacts
from sightline.models.artifact import Artifact, load_any, write
from sightline.models.load import load_model
from sightline.models.losses import Share
from sightline.models.objectives import Prediction, Targets
from sightline.models.predictive import Predictor, TrainedPredictor, trimmed
from sightline.models.sharding import blocks, make_mesh, shard
from sightline.models.text import END, START, get_tokenizer
from sightline.models.towers import ModelConfig, build
from tests.models.conftest import CONV, VIT
from tests.processes import on_ranks, whole_gradients

WORDS = {"predicts": "words", "context_length": 12}
CAPTIONS = {"predicts": "captions", "context_length": 12, "width": 16, "heads": 2, "layers": 2}
CASES = {
    "words": replace(CONV, text=WORDS),
    "captions": replace(CONV, text=CAPTIONS),
    "captions of a ViT": replace(VIT, text=CAPTIONS),
    "captions of timm's ViT": replace(CONV, text=CAPTIONS, vision={"timm_model_name": "test_vit", "image_size": 32}),
}
TEXTS = ["a red three", "a blue seven and a green one", "one", "a red three", "two", "red", "a thing", "no green"]


def model_of(config: ModelConfig) -> Predictor:
    torch.manual_seed(0)
    model: Predictor = build(config)
    return model


def images() -> Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return get_tokenizer(CONV.tokenizer, 12)(TEXTS)


def sharded_gradients() -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, config in CASES.items():
        model = shard(model_of(config), make_mesh("fsdp", "cpu", dist.get_world_size(), 1), bf16=False)
        share = Share.of(8, dist.group.WORLD)
        run = Prediction().prepare(get_tokenizer(config.tokenizer, 12), share, lambda: TEXTS, 3)
        run(model, images()[share.own], Targets(TEXTS[share.own]), lambda first: None)
        found[name] = whole_gradients(model)
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_gradients_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    """In parts of at most three rows; padding beyond a part's longest text is cut off, and changes nothing."""
    per_rank = on_ranks(world, tmp_path, sharded_gradients)
    for name, config in CASES.items():
        model = model_of(config)
        model(images(), tokens()).mean().backward()
        wanted = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        for found in per_rank:
            assert found[name].keys() == wanted.keys()
            for key, grad in wanted.items():
                error = (found[name][key] - grad).norm() / grad.norm().clamp(min=1e-12)
                assert error < 1e-5 or float(grad.norm()) < 1e-6, f"{name}, {key}: {error:.2g}"


def test_words_share_the_target_evenly() -> None:
    model = model_of(CASES["words"]).eval()
    nats = -model.text.words(model.visual(images())).log_softmax(-1)
    for i, text_T in enumerate(tokens()):
        words = [int(token) for token in text_T if token not in (0, START, END)]
        assert model(images(), tokens())[i].item() == pytest.approx(nats[i, words].mean().item(), rel=1e-5)


def test_a_caption_is_predicted_word_by_word_from_what_stands_before() -> None:
    """The surprise at a text is the mean over its tokens; a later word changes nothing before it."""
    model = model_of(CASES["captions"]).eval()
    whole = tokens()[1:2]
    count = int((whole != 0).sum())
    # Sums of surprises up to each token, from prefixes.
    sums = [model(images()[:1], whole[:, :end]).item() * (end - 1) for end in range(2, count + 1)]
    other = whole.clone()
    other[0, count - 2] = 320
    for end in range(2, count - 1):
        assert float(model(images()[:1], other[:, :end])) * (end - 1) == pytest.approx(sums[end - 2], rel=1e-5)
    assert float(model(images()[:1], other)) != pytest.approx(float(model(images()[:1], whole)), rel=1e-5)
    assert float(model(images()[:1], whole)) == pytest.approx(sums[-1] / (count - 1), rel=1e-5)
    assert model(images()[:1], whole) != model(images()[1:2], whole)


@pytest.mark.parametrize("name", CASES)
def test_an_artifact_of_it_proves_itself_and_answers(name: str, tmp_path: Path) -> None:
    config = replace(CASES[name], templates=("a {}", "the {}"))
    model = model_of(config).eval()
    write(tmp_path / "artifact", Artifact("p", config, ("red",), {}), model.state_dict(), TEXTS[:2])
    loaded = load_any(tmp_path / "artifact")
    assert isinstance(loaded, TrainedPredictor) and artifacts.describe(tmp_path / "artifact").model == config
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    logits = loaded.logits(loaded.encode(pixels), ["red", "blue three"])
    prompts = get_tokenizer(config.tokenizer, 12)(["a blue three", "the blue three"])
    with torch.inference_mode():
        want = [-model(config.preprocess.normalise(pixels[:1]), prompt[None]) for prompt in prompts]
    assert float(logits[0, 1]) == pytest.approx(float(sum(want)) / 2, rel=1e-4)
    with pytest.raises(ValueError, match="predicts captions and has no embeddings of texts"):
        load_model(str(tmp_path / "artifact"))


def test_trimming_keeps_every_word() -> None:
    short = trimmed(tokens())
    assert short.shape[1] == int((tokens() != 0).sum(1).max()) and torch.equal(short, tokens()[:, : short.shape[1]])
    assert trimmed(torch.zeros(2, 12, dtype=torch.long)).shape[1] == 2


def test_the_decoder_has_blocks_of_its_own() -> None:
    assert len(blocks(build(CASES["captions of a ViT"]))) == 3 + 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"predicts": "colours"}, "give words or captions"),
        ({"predicts": "captions", "width": 8}, "cannot be built"),
        ({"predicts": "words", "colour": 8}, "cannot be built"),
    ],
)
def test_what_cannot_be_predicted_is_refused(text: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(replace(CONV, text=text))
    with pytest.raises(ValueError, match="an image tower with tokens"):
        build(replace(CONV, text=CAPTIONS, vision={"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}))
