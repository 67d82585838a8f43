"""A locked image tower (LiT): each image passes it once, and the numbers are those of a tower that is passed in every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sightline.models.artifact import WEIGHTS
from sightline.models.codec import decode_rgb
from sightline.models.interchange.load_weights import load_into
from sightline.models.load import load_model
from sightline.models.text import get_tokenizer
from sightline.models.towers import build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import caption_of
from sightline.pipelines.feed.order import rows_at
from sightline.pipelines.train.loop import train
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import Launch, RunSpec, resolve
from sightline.recipes import find_recipe
from tests.processes import on_ranks


def spec_for(corpus: Corpus, weights: Path) -> RunSpec:
    """`lit_small` around a trunk of a few thousand weights, without what it draws by chance."""
    spec = find_recipe("lit_small")
    vision = {**spec.model.vision, "timm_model_name": "test_vit", "image_size": 160}
    model = replace(
        spec.model,
        embed_dim=16,
        vision=vision,
        text={**spec.model.text, "width": 16},
        preprocess=replace(spec.model.preprocess, size=160),
        pretrained_image=str(weights),
    )
    augment = replace(spec.data.augment, word_drop=0.0, feature_drop=0.0)
    data = replace(spec.data, corpus=corpus.location, augment=augment)
    return resolve(replace(spec, model=model, data=data, steps=4, global_batch=16), corpus, bf16_available=False)


def run(spec: RunSpec, folder: Path) -> list[Step]:
    return train(spec, Launch(folder), Corpus.open(spec.data.corpus, spec.data.root))


def first_loss(spec: RunSpec, corpus: Corpus) -> float:
    """Of the first step, with the whole tower and torch's own cross-entropy."""
    torch.manual_seed(spec.seed)
    towers = build(spec.model)
    load_into(towers.visual.trunk, spec.model.pretrained_image, image_only=True)
    index, _ = rows_at(0, spec.global_batch, len(corpus.select("train")), spec.order_key)
    rows = [int(row) for row in corpus.select("train")[index]]
    pixels = torch.stack([spec.model.preprocess.pixels(decode_rgb(corpus.image(row))) for row in rows])
    tokenizer = get_tokenizer(spec.model.tokenizer, spec.model.context_length)
    with torch.no_grad():
        image_BD = F.normalize(towers.eval().encode_image(spec.model.preprocess.normalise(pixels)), dim=-1)
        text_BD = F.normalize(towers.encode_text(tokenizer([caption_of(corpus.captions(row), row, 0) for row in rows])), dim=-1)
        logits, target = towers.logit_scale.exp() * image_BD @ text_BD.T, torch.arange(len(rows))
        return float(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test_a_locked_tower_is_passed_once_and_stays_as_it_was(digits: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "trunk.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    spec = spec_for(digits, path)
    one, two = (on_ranks(n, tmp_path / f"r{n}", run, spec, tmp_path / f"run{n}")[0] for n in (1, 2))
    assert one[0].loss == pytest.approx(first_loss(spec, digits), abs=1e-5)
    assert [step.loss for step in two] == pytest.approx([step.loss for step in one], abs=1e-4)
    assert [step.read for step in two] == [step.read for step in one]
    (cached,) = (load_file(file) for file in (tmp_path / "run1").glob("features-*.safetensors"))
    assert cached["rows"].tolist() == digits.select("train").tolist()
    trained = load_file(tmp_path / "run1" / "artifact" / WEIGHTS)
    for name, tensor in load_file(path).items():
        assert torch.equal(trained[f"visual.trunk.{name}"], tensor), name
    load_model(str(tmp_path / "run1"))  # with its golden embeddings, from pixels
