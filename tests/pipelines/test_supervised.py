"""Classifiers by the one loop: the same numbers at any world size, an artifact that evaluates, fine-tuning, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from sightline.models import artifact as artifacts
from sightline.models.artifact import load_any
from sightline.models.augment import Augment
from sightline.models.classifier import TrainedClassifier
from sightline.models.load import load_model
from sightline.models.objectives import Classification
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import evaluate
from sightline.pipelines.feed.labels import Labelled, class_list, places
from sightline.pipelines.train import finish
from sightline.pipelines.train.dry_run import plan_run
from sightline.pipelines.train.locked import detach_trunk
from sightline.pipelines.train.loop import train
from sightline.pipelines.train.optim import OptimConfig
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import DataConfig, Launch, RunSpec, prepare, resolve
from sightline.recipes import find_recipe
from tests.corpora import ingest_alone
from tests.models.test_classifier import BACKBONES
from tests.processes import on_ranks

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
MIXED = Augment(crop_area=(0.3, 1.0), flip=0.5, rand_augment=(2, 9.0), mixup=0.8, cutmix=1.0)


def photos(folder: Path, colours: dict[str, tuple[int, int, int]], each: int = 10) -> Corpus:
    """A folder per colour and split, of noisy pictures of that colour."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, colour in colours.items():
            (folder / "source" / split / name).mkdir(parents=True)
            for i in range(each):
                noise = random.integers(-30, 31, (40, 36, 3)) + np.array(colour)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / "source" / split / name / f"{i}.png")
    return Corpus.open(ingest_alone(folder / "source", folder / "corpus"))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return photos(tmp_path_factory.mktemp("colours"), COLOURS)


def spec_of(backbone: str, steps: int = 2, augment: Augment = MIXED, **vision: Any) -> RunSpec:
    return RunSpec(
        recipe="colours",
        model=ModelConfig(embed_dim=0, vision=BACKBONES[backbone] | vision, text={}, preprocess=Preprocess(size=32)),
        objective=Classification(label_smoothing=0.1),
        data=DataConfig(split="train", augment=augment),
        optim=OptimConfig(lr=3e-3, warmup_steps=2, layer_decay=0.9),
        steps=steps,
        global_batch=12,
    )


def resolved(spec: RunSpec, corpus: Corpus) -> RunSpec:
    return resolve(replace(spec, data=replace(spec.data, corpus=corpus.location)), corpus, bf16_available=False)


def run(spec: RunSpec, launch: Launch) -> list[Step]:
    return train(spec, launch, Corpus.open(spec.data.corpus, spec.data.root))


def run_all(specs: list[RunSpec], folder: Path) -> list[list[Step]]:
    return [run(spec, Launch(folder / str(i))) for i, spec in enumerate(specs)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "artifact" / artifacts.WEIGHTS)


def test_steps_are_the_same_at_any_world_size(colours: Corpus, tmp_path: Path) -> None:
    """Two steps with every augmentation: the second one's loss is that of the first one's weights."""
    specs = [resolved(spec_of(name), colours) for name in ("vit", "swin", "convnext")]
    one = on_ranks(1, tmp_path / "r1", run_all, specs, tmp_path / "one")[0]
    two = on_ranks(2, tmp_path / "r2", run_all, specs, tmp_path / "two")[0]
    for i, name in enumerate(("vit", "swin", "convnext")):
        for alone, together in zip(one[i], two[i], strict=True):
            assert together.loss == pytest.approx(alone.loss, rel=1e-5), name
            assert together.grad_norm == pytest.approx(alone.grad_norm, rel=1e-5), name
            assert alone.read == together.read and alone.logit_scale is None


def test_what_a_row_becomes_is_a_function_of_row_and_epoch(colours: Corpus) -> None:
    rows = colours.select("train")
    options = replace(MIXED, rand_augment=None, crop_area=None, flip=0.0)
    plain = replace(options, mixup=0.0, cutmix=0.0)
    labelled, unmixed = (
        Labelled(colours, rows, places(colours, rows, class_list(colours)), 3, choice, Preprocess(size=32), "key")
        for choice in (options, plain)
    )
    there = labelled.weights(rows, np.zeros_like(rows))
    assert torch.equal(labelled.weights(rows[::-1], np.zeros_like(rows)), there.flip(0))
    assert not torch.equal(labelled.weights(rows, np.ones_like(rows)), there)
    torch.testing.assert_close(there.sum(1), torch.ones(len(rows)))
    for row, weight_L in zip(rows.tolist(), there, strict=True):
        pixels, caption, uid = labelled.load(row, 0)
        assert torch.equal(pixels, labelled.load(row, 0)[0]) and caption == "" and uid == colours.uid(row)
        mix = labelled.mix(row, 0)
        assert mix is not None
        want = torch.zeros(3)
        for share, of in ((mix.kept, row), (1 - mix.kept, int(rows[mix.partner]))):
            name = colours.classes[colours.sidecar(["labels"])["labels"][of].as_py()[0]]
            want[class_list(colours).index(name)] += share
        torch.testing.assert_close(weight_L, want)
        both = torch.stack([unmixed.load(of, 0)[0] for of in (row, int(rows[mix.partner]))]).float()
        assert pixels.float().mean() == pytest.approx(float(both.mean((1, 2, 3)) @ torch.tensor([mix.kept, 1 - mix.kept])), abs=4)


@pytest.fixture(scope="session")
def trained(colours: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twenty steps that knows three colours."""
    folder = tmp_path_factory.mktemp("trained")
    spec = resolved(spec_of("vit", steps=20, augment=Augment()), colours)
    on_ranks(1, folder / "r", run, spec, Launch(folder / "run"))
    return folder / "run"


def test_an_artifact_scores_by_the_names_of_classes(colours: Corpus, trained: Path, tmp_path: Path) -> None:
    folder = artifacts.find(str(trained))
    assert folder == trained / "artifact"
    model = load_any(folder)
    assert isinstance(model, TrainedClassifier) and model.classes == class_list(colours)
    found = evaluate(model, colours, "val").metrics
    assert found == {"images": 30, "classes": 3, "top1": 1.0, "top5": 1.0, "top1_rows": 30}

    # A corpus that has another class and numbers them otherwise: rows of classes that the model does not know do not count.
    other = photos(tmp_path, {"azure": (30, 30, 220), "blue": (30, 30, 220), "red": (220, 30, 30)}, each=4)
    found = evaluate(model, other, "val").metrics
    assert (found["images"], found["top1_rows"], found["top1"]) == (12, 8, 1.0)
    strange = photos(tmp_path / "strange", {"azure": (30, 30, 220)}, each=2)
    with pytest.raises(ValueError, match=r"none of 2 rows .* its classes are blue, green, red"):
        evaluate(model, strange, "val")


def test_a_classifier_is_no_dual_encoder_and_proves_itself(trained: Path) -> None:
    with pytest.raises(ValueError, match="is a classifier of 3 classes and has no embeddings"):
        load_model(str(trained))
    path = trained / "artifact" / artifacts.GOLDEN
    whole = path.read_bytes()
    described = artifacts.describe(trained / "artifact")
    try:
        golden = load_file(path)
        assert set(golden) == {"images", "logits"}
        save_file(golden | {"logits": golden["logits"].flip(1).contiguous()}, path)
        files = dict(described.files) | {artifacts.GOLDEN: artifacts._sha256(path)}
        (trained / "artifact" / artifacts.DESCRIPTION).write_text(
            (trained / "artifact" / artifacts.DESCRIPTION)
            .read_text()
            .replace(described.files[artifacts.GOLDEN], files[artifacts.GOLDEN])
        )
        with pytest.raises(ValueError, match="golden embeddings differ: logits"):
            load_any(trained / "artifact")
    finally:
        changed = artifacts._sha256(path)
        path.write_bytes(whole)
        text = (trained / "artifact" / artifacts.DESCRIPTION).read_text()
        (trained / "artifact" / artifacts.DESCRIPTION).write_text(text.replace(changed, described.files[artifacts.GOLDEN]))


def test_fine_tuning_interpolates_positions_and_swaps_the_head(trained: Path) -> None:
    before = weights(trained)
    config = artifacts.describe(trained / "artifact").model

    def started(**changes: Any) -> dict[str, torch.Tensor]:
        changed = replace(config, pretrained_image=str(trained), **changes)
        model = build(changed)
        assert detach_trunk(model, changed) is None
        return dict(model.state_dict())

    larger = started(preprocess=Preprocess(size=64), classes=("cat", "dog"))
    positions = before["visual.trunk.pos_embed"]
    prefix = positions.shape[1] - 4  # 32 pixels in patches of 16
    want = resample_abs_pos_embed(positions, new_size=(4, 4), old_size=(2, 2), num_prefix_tokens=prefix)
    torch.testing.assert_close(larger["visual.trunk.pos_embed"], want)
    assert larger["visual.head.proj.weight"].shape[0] == 2 and not larger["visual.head.proj.weight"].any()
    assert torch.equal(larger["visual.trunk.blocks.0.mlp.fc1.weight"], before["visual.trunk.blocks.0.mlp.fc1.weight"])

    # The same classes keep their head; as many others do not, nor does a head of another shape.
    assert torch.equal(started(preprocess=Preprocess(size=64))["visual.head.proj.weight"], before["visual.head.proj.weight"])
    assert not started(classes=("cat", "dog", "emu"))["visual.head.proj.weight"].any()
    assert not started(embed_dim=8)["visual.head.proj.weight"].any()


@pytest.mark.parametrize("source", ["timm file", "open_clip folder"])
def test_it_starts_from_timm_and_from_open_clip(source: str, colours: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if source == "timm file":
        theirs = timm.create_model("test_vit", img_size=160)
        save_file(theirs.state_dict(), path)
        name, vision = "blocks.0.attn.qkv.weight", {}
    else:
        theirs = build(
            ModelConfig(
                embed_dim=16,
                vision={"image_size": 32, "patch_size": 16, "width": 64, "layers": 6, "head_width": 32},
                text={"bag_of_words": True, "width": 8, "context_length": 12},
                preprocess=Preprocess(size=32),
            )
        )
        save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
        path, name = tmp_path, "visual.transformer.resblocks.0.attn.in_proj_weight"
        vision = {"timm_model_name": "vit_base_patch32_clip_224", "patch_size": 16, "embed_dim": 64, "depth": 6, "num_heads": 2}
    spec = resolved(spec_of("vit"), colours)
    spec = replace(spec, model=replace(spec.model, vision=vision or spec.model.vision, pretrained_image=str(path)))
    spec = resolve(spec, colours, bf16_available=False)
    assert len(spec.model.pretrained_image_sha256) == 64
    model = build(spec.model)
    detach_trunk(model, spec.model)
    assert torch.equal(model.state_dict()["visual.trunk.blocks.0.attn.qkv.weight"], theirs.state_dict()[name])


def test_a_resnet_starts_from_weights_and_its_batch_norms_stay(colours: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    spec = spec_of("resnet")
    spec = resolved(replace(spec, model=replace(spec.model, pretrained_image=str(path))), colours)
    one, two = (on_ranks(n, tmp_path / f"r{n}", run, spec, Launch(tmp_path / f"run{n}"))[0] for n in (1, 2))
    assert [step.loss for step in two] == pytest.approx([step.loss for step in one], rel=1e-5)
    assert torch.equal(weights(tmp_path / "run1")["visual.trunk.bn1.running_var"], load_file(path)["bn1.running_var"])
    assert isinstance(load_any(tmp_path / "run1" / "artifact"), TrainedClassifier)


def test_a_plan_knows_what_a_classifier_costs(colours: Corpus) -> None:
    plan = plan_run(resolved(spec_of("vit"), colours), workers=2)
    assert plan.pairs == 24 and plan.flops == 24 * plan.flops_per_pair > 0


WRONG: dict[str, tuple[Callable[[RunSpec], RunSpec], str]] = {
    "a label outside the list": (
        lambda spec: replace(spec, model=replace(spec.model, classes=("red", "green"))),
        "outside the class list: blue; the list is red, green",
    ),
    "a class twice": (lambda spec: replace(spec, model=replace(spec.model, classes=("red", "red"))), "stands twice"),
    "an unknown backbone": (
        lambda spec: replace(spec, model=replace(spec.model, vision={"timm_model_name": "vit_bse_patch16_224"})),
        "timm has no 'vit_bse_patch16_224'; give model.vision.timm_model_name=vit_base",
    ),
    "batch norms": (lambda spec: replace(spec, model=replace(spec.model, vision=BACKBONES["resnet"])), "batch norms"),
    "a text tower": (
        lambda spec: replace(spec, model=replace(spec.model, text={"bag_of_words": True, "width": 8})),
        "without a text tower",
    ),
    "a locked tower": (lambda spec: replace(spec, model=replace(spec.model, lock_image=True)), "leave out model.lock_image"),
    "smoothing": (lambda spec: replace(spec, objective=Classification(label_smoothing=1.0)), "give a share"),
    "words": (lambda spec: replace(spec, data=replace(spec.data, augment=Augment(word_drop=0.1))), "word_drop change"),
    "a mixture": (lambda spec: replace(spec, data=replace(spec.data, augment=Augment(mixup=-1))), "mixup=-1"),
    "strength": (lambda spec: replace(spec, data=replace(spec.data, augment=Augment(rand_augment=(2, 31)))), "at most 30"),
    "no weights": (
        lambda spec: replace(spec, model=replace(spec.model, pretrained_image="absent.safetensors")),
        "absent.safetensors",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_cannot_be_trained_is_said_before_the_run(mistake: str, colours: Corpus) -> None:
    change, message = WRONG[mistake]
    with pytest.raises(ValueError, match=message):
        resolved(change(spec_of("vit")), colours)


def test_rows_need_one_label_each(digits: Corpus, tmp_path: Path) -> None:
    """Scenes of two digits have two labels; a table of captions has none."""
    with pytest.raises(ValueError, match=r"rows have several labels, as row \d+, .* give split=SPLIT"):
        resolved(spec_of("vit"), digits)
    source = tmp_path / "source"
    source.mkdir()
    for i in range(2):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(source / f"{i}.png")
    (source / "captions.csv").write_text("image,caption\n0.png,one\n1.png,two\n")
    spec = spec_of("vit")
    spec = replace(spec, global_batch=2, data=replace(spec.data, split=None))
    with pytest.raises(ValueError, match=r"2 of 2 rows have no label, as row 0"):
        resolved(spec, Corpus.open(ingest_alone(source, tmp_path / "corpus")))


def test_captions_cannot_be_mixed_nor_trained_without_a_text_tower(digits: Corpus) -> None:
    demo = find_recipe("clip_demo")
    corpus = f"corpus={digits.location}"
    with pytest.raises(ValueError, match="captions cannot be mixed"):
        prepare(demo, [corpus, "global_batch=8", "mixup=0.2"], gpus=False)
    with pytest.raises(ValueError, match=r"does not go with this model\.text"):
        prepare(replace(demo, model=replace(demo.model, text={})), [corpus, "global_batch=8"], gpus=False)


def baseline(recipe: str, corpus: Corpus) -> RunSpec:
    spec = find_recipe(recipe)
    return resolve(
        replace(spec, steps=3, global_batch=24, data=replace(spec.data, corpus=corpus.location)), corpus, bf16_available=False
    )


def test_captions_are_predicted_by_the_same_loop_and_scored_by_the_same_evaluation(digits: Corpus, tmp_path: Path) -> None:
    specs = [baseline(name, digits) for name in ("words_demo", "captions_demo")]
    demo = find_recipe("clip_demo")
    assert all(
        (spec.model.vision, spec.data.augment, spec.optim) == (demo.model.vision, demo.data.augment, demo.optim) for spec in specs
    )
    one = on_ranks(1, tmp_path / "r1", run_all, specs, tmp_path / "one")[0]
    two = on_ranks(2, tmp_path / "r2", run_all, specs, tmp_path / "two")[0]
    for i in range(2):
        assert [step.loss for step in two[i]] == pytest.approx([step.loss for step in one[i]], rel=1e-5)
        found = evaluate(load_any(tmp_path / "one" / str(i) / "artifact"), digits, "val").metrics
        assert found["images"] == 20 and 0 <= found["top1"] <= found["top5"] <= 1 and found["top1_rows"] > 0
        assert found["captions"] == sum(len(digits.captions(int(row))) for row in digits.select("val"))
        assert 0 < found["caption_loss"] < 11  # the logarithm of the vocabulary's size is 10.8


def test_an_artifact_is_written_also_where_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version_of(name: str) -> str:
        if name == "ray":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(finish, "version", version_of)
    assert set(finish.versions()) == {"python", *finish.PACKAGES} - {"ray"}
