"""Dense heads by the one loop: the same numbers at any world size and after an interruption, an artifact; refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sightline.models.artifact import Artifact, describe, load, write
from sightline.models.augment import Augment
from sightline.models.interchange.export import refuse
from sightline.models.lseg import DenseHead
from sightline.models.objectives import Contrastive
from sightline.models.segment import segment
from sightline.models.towers import build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import evaluate
from sightline.pipelines.evaluate.protocols import evaluate_segmentation
from sightline.pipelines.train.dry_run import plan_run
from sightline.pipelines.train.rank import Step, masked_rows
from sightline.pipelines.train.spec import Launch, RunSpec, prepare, resolve
from sightline.recipes import find_recipe
from tests.corpora import ingest_alone
from tests.pipelines.test_loop import run
from tests.processes import on_ranks

STEPS, STOP, SAVED = 6, 5, 3
COLOURS = {"grass": (30, 200, 30), "sky": (120, 160, 250), "road": (120, 120, 120), "sign": (230, 30, 30)}


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Pictures of four quarters, each of a class' colour; no background, and a border without truth."""
    folder = tmp_path_factory.mktemp("street")
    random = np.random.default_rng(0)
    colours = np.array(list(COLOURS.values()), np.float32)
    for split, count in (("train", 16), ("val", 6)):
        for kind in ("images", "masks"):
            (folder / "source" / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = random.permutation(4).reshape(2, 2).repeat(20, 0).repeat(24, 1).astype(np.uint8)
            image = (colours[mask] + random.normal(0, 12, (*mask.shape, 3))).clip(0, 255).astype(np.uint8)
            mask[:2] = 255
            Image.fromarray(image).save(folder / f"source/{split}/images/{i}.png")
            Image.fromarray(mask).save(folder / f"source/{split}/masks/{i}.png")
    (folder / "source/classes.csv").write_text("\n".join(["id,name", *(f"{i},{name}" for i, name in enumerate(COLOURS))]))
    return Corpus.open(ingest_alone(folder / "source", folder / "corpus"))


def clip_of(folder: Path) -> Path:
    """An artifact of a dual encoder with random weights: where the towers come from."""
    model = find_recipe("clip_demo").model
    torch.manual_seed(1)
    write(folder, Artifact("clip", model, (), {}), build(model).state_dict(), ["a red three"])
    return folder


def street_spec(corpus: Corpus, source: Path, **changes: object) -> RunSpec:
    """As `lseg_camvid`: the maps of a frozen tower are kept."""
    spec = find_recipe("lseg_scenes")
    spec = replace(
        spec,
        model=replace(
            spec.model,
            dense=DenseHead(taps=(1,), widths=(16, 16), blocks=1),
            pretrained_image=str(source),
            pretrained_text=str(source),
        ),
        objective=replace(find_recipe("lseg_camvid").objective, loss_stride=2),
        data=replace(spec.data, corpus=corpus.location, augment=Augment(flip=0.5)),
        optim=replace(spec.optim, warmup_steps=2),
        steps=STEPS,
        global_batch=5,
    )
    return resolve(replace(spec, **changes), corpus, bf16_available=False)


def scenes_spec(corpus: Corpus, source: Path) -> RunSpec:
    """As `lseg_scenes`: a frozen tower beside pixels, a background, words."""
    spec = find_recipe("lseg_scenes")
    assert spec.model.dense
    model = replace(
        spec.model,
        dense=replace(spec.model.dense, widths=(16, 8), blocks=1),
        pretrained_image=str(source),
        pretrained_text=str(source),
    )
    data, optim = replace(spec.data, corpus=corpus.location), replace(spec.optim, warmup_steps=2)
    spec = replace(spec, model=model, data=data, optim=optim, steps=STEPS, global_batch=10)
    return resolve(spec, corpus, bf16_available=False)


def runs(specs: list[RunSpec], folder: Path, stop_after: int | None = None) -> list[list[Step]]:
    """One after the other in the same processes; interrupted and resumed, if so told."""
    found = []
    for i, spec in enumerate(specs):
        launch = Launch(folder / str(i), checkpoint_every=SAVED)
        if stop_after is not None:
            assert run(spec, launch, stop_after) == []
        found.append(run(spec, launch))
    return found


@pytest.mark.timeout(300)
def test_world_size_and_interruption_change_nothing(street: Corpus, digits: Corpus, tmp_path: Path) -> None:
    source = clip_of(tmp_path / "clip")
    whole = replace(street_spec(street, source), steps=3)
    whole = replace(
        whole, model=replace(whole.model, lock_image=False), data=replace(whole.data, augment=Augment(crop_area=(0.5, 1)))
    )
    specs = [street_spec(street, source), scenes_spec(digits, source), whole]
    one = on_ranks(1, tmp_path / "r1", runs, specs, tmp_path / "one")[0]
    two = on_ranks(2, tmp_path / "r2", runs, specs, tmp_path / "two")[0]
    again = on_ranks(1, tmp_path / "r3", runs, specs[:2], tmp_path / "again", STOP)[0]
    for i, spec in enumerate(specs):
        assert [step.loss for step in two[i]] == pytest.approx([step.loss for step in one[i]], rel=1e-4)
        artifact = tmp_path / "one" / str(i) / "artifact"
        assert describe(artifact).model.dense == spec.model.dense
        if i < 2:
            assert one[i][-1].loss < one[i][0].loss
            assert [step.loss for step in again[i]] == [step.loss for step in one[i][SAVED:]]
            weights, resumed = (
                load_file(tmp_path / name / str(i) / "artifact" / "weights.safetensors") for name in ("one", "again")
            )
            assert all(torch.equal(weights[name], resumed[name]) for name in weights)
            # The frozen towers are those that it came from.
            theirs = load_file(source / "weights.safetensors")
            frozen = [name for name in theirs if name.startswith(("text.", "visual.trunk."))]
            assert frozen and all(torch.equal(weights[name], theirs[name]) for name in frozen)

    street_model, digits_model = (load(tmp_path / "one" / str(i) / "artifact") for i in (0, 1))
    assert street_model.classes == tuple(COLOURS)
    found = segment(street_model, np.zeros((50, 30, 3), np.uint8), ["sky", "a lake|sea"])
    assert set(np.unique(found.label_map_HW)) <= {1, 2} and found.label_map_HW.shape == (50, 30)
    assert evaluate(street_model, street).metrics["foreground_iou"] > 0  # a corpus without captions
    scores = evaluate_segmentation(digits_model, digits, options=["refine_steps=2"]).metrics
    assert len(digits_model.classes) == 48 and 0 <= scores["foreground_iou_given_labels_held_out"] <= 1
    # Its own towers are the CLIP's, so it classifies as that does.
    image = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(digits_model.embed_images(image), load(source).embed_images(image))
    with pytest.raises(ValueError, match="has a decoder for masks"):
        refuse(specs[1].model, "onnx")
    plan = plan_run(specs[0], workers=2)
    weights = load_file(tmp_path / "one" / "0" / "artifact" / "weights.safetensors")
    assert plan.flops > 0
    held = sum(weights[name].numel() for name in weights if not name.startswith(("text.", "visual.trunk.")))
    assert plan.state_bytes_ddp == 16 * held < 16 * plan.parameters and plan.state_bytes_fsdp == 8 * held


def test_what_is_kept_of_a_frozen_tower_and_its_mask_are_mirrored_together(street: Corpus, tmp_path: Path) -> None:
    spec = street_spec(street, clip_of(tmp_path / "clip"))
    masked = masked_rows(spec, street)
    rows, epochs = street.select("train"), np.arange(16) % 3
    pixels = torch.stack([masked.load(int(row), int(epoch))[0] for row, epoch in zip(rows, epochs, strict=True)])
    assert torch.equal(masked.masks(rows, epochs), pixels[:, 3])
    kept = {int(row): torch.tensor([[0.0], [1.0]]) for row in rows}
    mirrored = [bool(masked.load_kept(kept, int(row), int(epoch))[0]) for row, epoch in zip(rows, epochs, strict=True)]
    plain = replace(masked, options=Augment())
    for one, row, turned in zip(pixels, rows, mirrored, strict=True):
        straight = plain.load(int(row), 0)[0]
        assert torch.equal(one, straight.flip(-1) if turned else straight)
    assert len(set(mirrored)) == 2


def test_held_out_classes_are_ignored_and_never_background(street: Corpus, tmp_path: Path) -> None:
    source = clip_of(tmp_path / "clip")
    spec = street_spec(street, source)
    for objective in (replace(spec.objective, held_out=("sign",)), replace(spec.objective, fold="4/4")):
        changed = resolve(replace(spec, objective=objective, model=replace(spec.model, classes=())), street, bf16_available=False)
        assert changed.model.classes == ("grass", "sky", "road") and changed.objective.held_out == ("sign",)
        assert changed.run_id != spec.run_id
        truth = masked_rows(changed, street).load(0, 0)[0][3]
        assert set(truth.unique().tolist()) == {0, 1, 2, 255} and (truth == 255).float().mean() > 0.2


WRONG: dict[str, tuple[Callable[[RunSpec], RunSpec], str]] = {
    "no head": (lambda spec: replace(spec, model=replace(spec.model, dense=None)), "needs a dual encoder with model.dense"),
    "a background that is not there": (
        lambda spec: replace(spec, model=replace(spec.model, dense=DenseHead((1,), background=True))),
        "has no background class; give model.dense.background=false",
    ),
    "grey": (lambda spec: replace(spec, data=replace(spec.data, augment=Augment(grey=0.1))), "grey cannot be done to masks"),
    "a crop of kept maps": (
        lambda spec: replace(spec, data=replace(spec.data, augment=Augment(crop_area=(0.5, 1.0)))),
        "computed once, without augmentation; leave out crop_area",
    ),
    "a stride": (lambda spec: replace(spec, objective=replace(spec.objective, loss_stride=0)), "give 1 to 48"),
    "a weight": (lambda spec: replace(spec, objective=replace(spec.objective, background_weight=-1)), "give 0 or more"),
    "an unknown class": (lambda spec: replace(spec, objective=replace(spec.objective, held_out=("bus",))), "no class bus"),
    "too much held out": (
        lambda spec: replace(spec, objective=replace(spec.objective, held_out=("sky", "road", "sign"))),
        "1 classes",
    ),
    "a head for captions": (lambda spec: replace(spec, objective=Contrastive()), "model.dense; take a recipe"),
    "no such text tower": (lambda spec: replace(spec, model=replace(spec.model, pretrained_text="absent")), "absent"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_cannot_be_trained_is_said_before_the_run(mistake: str, street: Corpus, tmp_path: Path) -> None:
    change, message = WRONG[mistake]
    spec = street_spec(street, clip_of(tmp_path / "clip"))
    spec = change(replace(spec, model=replace(spec.model, classes=())))
    with pytest.raises(ValueError, match=message):
        resolve(spec, street, bf16_available=False)


def test_rows_need_masks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (40, 40)).save(source / "0.png")
    (source / "captions.csv").write_text("image,caption,label,split\n0.png,one,sky,train\n")
    with pytest.raises(ValueError, match="row 0 has no mask, and segmentation needs one each"):
        prepare(find_recipe("lseg_camvid"), [f"corpus={ingest_alone(source, tmp_path / 'corpus')}", "global_batch=1"], gpus=False)
