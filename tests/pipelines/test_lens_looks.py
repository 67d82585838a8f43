"""The lenses that look at images, as a person runs them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.models.classifier import TrainedClassifier
from sightline.models.lenses.nlmeans import denoise
from sightline.models.lenses.subject import Subject
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.lens.attention import score_of
from tests.conftest import InlineCommandLine

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("matplotlib")


def test_attention_over_images(cli_inline: InlineCommandLine, digits: Corpus, tmp_path: Path) -> None:
    verb = ("lens", "attention", "timm/test_vit", digits.location, "--seed", 0, "--images", 3, "--layer", "1", "--json")
    done = cli_inline(*verb)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 3 and all(len(one["distance_px"]) == len(one["entropy_nats"]) for one in found["layers"])
    places = np.prod(found["layers"][0]["grid"])
    assert all(0 <= nats <= np.log(places + 1) + 1e-4 for one in found["layers"] for nats in one["entropy_nats"])
    names = ["attention-depth.svg", "attention.png", "attention-heads.png"]
    assert [Path(figure).name for figure in found["figures"]] == names
    drawn = [(tmp_path / "lens" / name).read_bytes() for name in names]
    assert cli_inline(*verb).exit_code == 0
    assert [(tmp_path / "lens" / name).read_bytes() for name in names] == drawn, "the same numbers draw the same bytes"


def test_positions_and_what_another_resolution_costs(cli_inline: InlineCommandLine, tmp_path: Path, digits: Corpus) -> None:
    verb = ("lens", "positions", "timm/test_vit", "--seed", 0, "--corpus", digits.location, "--split", "test", "--images", 8)
    done = cli_inline(*verb, "--size", 128, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["top1_by_size"]) == {"128", "160"} and all(0 <= one <= 1 for one in found["top1_by_size"].values())
    assert (tmp_path / "lens" / "positions-sizes.svg").exists()
    (learned,) = found["embeddings"]
    assert learned["kind"] == "learned" and all(abs(value) < 0.2 for value in learned["cosine"].values()), (
        "random ones know nothing"
    )


def test_noise_is_taken_out(cli_inline: InlineCommandLine, shared_data: Path, tmp_path: Path) -> None:
    photos = shared_data / "imagenette" / "val"
    picked = sorted(photos.rglob("*.jpg"))[:2]
    folder = tmp_path / "photos" / "some"
    folder.mkdir(parents=True)
    for path in picked:
        (folder / path.name).write_bytes(path.read_bytes())
    corpus = ingested(tmp_path / "photos", tmp_path / "corpus")
    done = cli_inline("lens", "nlmeans", corpus, "--sigma", 25, "--images", 1, "--distance", 5, "--json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["denoised"]["psnr_db"] > row["noisy"]["psnr_db"] + 3 and row["denoised"]["ssim"] > row["noisy"]["ssim"]


def ingested(source: Path, dest: Path) -> str:
    from tests.corpora import ingest_alone

    return str(ingest_alone(source, dest))


def test_a_gallery_needs_nothing_else(cli_inline: InlineCommandLine, digits: Corpus, tmp_path: Path) -> None:
    done = cli_inline("lens", "gallery", "timm/test_resnet", digits.location, "--seed", 0, "--images", 2, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lenses"] == ["receptive-field", "erf", "nlmeans"]
    assert set(found["without"]) == {"attention", "positions", "supervised"} and "no attention" in found["without"]["attention"]
    page = (tmp_path / "lens" / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) == 3 and all(link.startswith("data:image/") for link in links)
    assert base64.b64decode(links[0].partition(",")[2]) == (tmp_path / "lens" / "receptive-field.svg").read_bytes()


def test_what_cannot_be_looked_at_costs_one_line(cli_inline: InlineCommandLine, digits: Corpus) -> None:
    for arguments, says in (
        (("attention", "timm/test_resnet", digits.location, "--seed", 0), "has no attention"),
        (("attention", "timm/test_vit", digits.location, "--seed", 0, "--layer", "nowhere"), "choose"),
        (("attention", "timm/test_vit", digits.location, "--seed", 0, "--label", "a dog"), "no text tower"),
        (("attention", "timm/test_vit", "no/corpus", "--seed", 0), "no/corpus"),
        (("positions", "timm/test_resnet", "--seed", 0), "no position embeddings"),
        (("positions", "timm/test_vit", "--seed", 0, "--size", 96), "--corpus"),
        (("nlmeans", digits.location, "--patch", 4), "patch=4"),
    ):
        done = cli_inline("lens", *arguments)
        assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, (arguments, done.stderr)


def test_noise_of_no_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma"):
        denoise(np.zeros((40, 40, 3), np.uint8), 0)


def test_relevance_is_for_the_logit_of_a_class() -> None:
    classes = ("cat", "dog", "newt")
    vision = {"timm_model_name": "test_vit"}
    config = ModelConfig(embed_dim=0, vision=vision, text={}, preprocess=Preprocess(size=64), classes=classes)
    torch.manual_seed(0)
    network = build(config).eval()
    torch.nn.init.normal_(network.visual.head.proj.weight)
    classifier = TrainedClassifier(network, config.preprocess, "few", "0" * 64, classes)
    subject = Subject("few", network.visual.trunk, config.preprocess, classifier=classifier)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    output, logits = subject.tower(config.preprocess.normalise(pixels)), classifier.logits(pixels)
    for number, label in enumerate(classes):
        torch.testing.assert_close(score_of(subject, label)(output), logits[:, number])
    torch.testing.assert_close(score_of(subject, "")(output), logits.amax(1))
    with pytest.raises(ValueError, match="cat, dog, newt"):
        score_of(subject, "unicorn")
