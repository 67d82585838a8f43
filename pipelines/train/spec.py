"""A run is a frozen specification: everything that affects numbers is in `RunSpec`, and its canonical JSON names the run.

A recipe is a function that returns a `RunSpec`; the command line overrides fields by `key=value`, checked against their
types. Where a run executes (how many workers, where its files go) is `Launch`, which cannot change a number and is not
hashed. Paths are not hashed either: the corpus counts by its root hash and pretrained weights by their digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from sightline.models.augment import Augment
from sightline.models.classifier import has_batch_norms
from sightline.models.interchange.load_weights import find
from sightline.models.interchange.origin import sha256
from sightline.models.objectives import Classification, Contrastive, Prediction
from sightline.models.rand_augment import STRONGEST
from sightline.models.sharding import Strategy
from sightline.models.towers import ModelConfig, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.view import select_view
from sightline.pipelines.feed.labels import class_list, places
from sightline.pipelines.train.optim import OptimConfig


@dataclass(frozen=True)
class DataConfig:
    """What is trained on: the rows of `split`, in the corpus whose root hash is `root`, that pass all `filters`.

    `root` and `view` (the digest of the filters' rows, see `corpus/view.py`; empty without filters) are filled in when the run is
    resolved.
    """

    corpus: str = ""
    root: str = ""
    split: str | None = None
    filters: tuple[str, ...] = ()
    view: str = ""
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's numbers.

    Attributes:
        steps: optimizer steps in all.
        global_batch: pairs a step, over all workers.
        precision: `auto` is bf16 where the device has it and fp32 elsewhere; resolved before the run is named.
        compiled: each block goes through torch.compile, which rounds otherwise.
    """

    recipe: str
    model: ModelConfig
    objective: Annotated[Contrastive | Classification | Prediction, Field(discriminator="kind")]
    data: DataConfig
    optim: OptimConfig
    steps: int
    global_batch: int
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compiled: bool = False

    @property
    def run_id(self) -> str:
        """Twelve hex digits that name the run: sha256 of what decides its numbers."""
        fields = asdict(self)
        for place in ("corpus", "filters") if self.data.view else ("corpus", "filters", "view"):  # a view counts by its digest
            fields["data"].pop(place)
        fields["model"].pop("pretrained_image")
        return hashlib.sha256(canonical_json(fields).encode()).hexdigest()[:12]

    @property
    def order_key(self) -> str:
        """What the data order depends on besides the epoch."""
        return f"{self.data.root}/{self.data.split or ''}/{self.seed}"


@dataclass(frozen=True)
class Launch:
    """Where and how a run executes; none of it changes a number.

    Attributes:
        run_dir: the folder of metrics and the artifact; every worker sees it.
        workers: processes, one a GPU or one a group of CPU threads; the most there are, where `min_workers` is less.
        min_workers: the run goes on with so few, and grows again when there is room; None: always `workers`.
        threads: CPU threads a worker; on the CPU they compute, beside a GPU they load data.
        checkpoint_every: steps between checkpoints.
        checkpoints: where those of all runs go, a path or an fsspec URL, a folder for each run; "" for one in `run_dir`.
        keep: how many of the newest checkpoints stay.
        evaluate: the split that each checkpoint is evaluated on beside the training; "" for none.
        keep_best: the metric whose best checkpoint stays too; "" for none.
        gpus: whether each worker has a GPU.
        retries: how often lost workers are started again.
        at_once: samples that a worker's towers take together; more are cut into parts (GradCache). None: all.
        feed_actors: how many Ray actors, on CPUs of their own, read and decode for each worker; 0: its own threads do.
        recompute: drop the blocks' activations and compute them again in the backward pass: less memory, a third more arithmetic.
        strategy: how weights lie on the workers, see `models/sharding.py`; `auto` goes by the memory that they need.
        profile: the first and the last step of a trace by torch's profiler, in `run_dir/profile`; None for none.
        track: who else gets the figures of each step.
    """

    run_dir: Path
    workers: int = 1
    min_workers: int | None = None
    threads: int = 1
    checkpoint_every: int = 200
    checkpoints: str = ""
    keep: int = 2
    evaluate: str = ""
    keep_best: str = ""
    gpus: bool = False
    retries: int = 3
    at_once: int | None = None
    feed_actors: int = 0
    recompute: bool = False
    strategy: Strategy | Literal["auto"] = "auto"
    profile: tuple[int, int] | None = None
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()

    @property
    def saved_at(self) -> str:
        """Where this run's checkpoints lie, and nobody else's."""
        return f"{self.checkpoints.rstrip('/')}/{self.run_dir.name}" if self.checkpoints else str(self.run_dir / "checkpoints")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=list)


def prepare(spec: RunSpec, overrides: Sequence[str], *, gpus: bool) -> RunSpec:
    """A recipe's spec with the user's overrides, its corpus opened and everything resolved.

    Raises:
        ValueError, FileNotFoundError: an override, the corpus or the selection is not usable; the message says what to change.
    """
    spec = override(spec, overrides)
    if not spec.data.corpus:
        raise ValueError("which corpus? give corpus=PATH of a folder that `sightline ingest` wrote")
    corpus = Corpus.open(spec.data.corpus, spec.data.root or None)
    # The workers' GPUs, not this machine's: the command may be typed where there are none. A worker without bf16 says so.
    return resolve(spec, corpus, bf16_available=gpus)


def check_ranges(spec: RunSpec) -> None:
    """Refuse values that have the right type and make no sense, and settings that the run would ignore.

    Raises:
        ValueError: with what to give instead.
    """
    for name, value in (("steps", spec.steps), ("global_batch", spec.global_batch)):
        if value < 1:
            raise ValueError(f"{name}={value}; give at least 1")
    if not (isfinite(spec.optim.lr) and spec.optim.lr > 0):
        raise ValueError(f"optim.lr={spec.optim.lr}; give a positive number")
    optim = spec.optim
    for name, low, high in (("cooldown", 0, 1), ("layer_decay", 0, 1), ("ema", 0, 0.999999)):
        if not low <= getattr(optim, name) <= high:
            raise ValueError(f"optim.{name}={getattr(optim, name)}; give a number from {low} to {high}")
    if isinstance(spec.objective, Classification):
        check_classification(spec, spec.objective)
    else:
        check_pairs(spec, spec.objective)
    augment = spec.data.augment
    for name in ("flip", "grey", "word_drop", "feature_drop"):
        if not 0 <= getattr(augment, name) < (1 if name.endswith("drop") else 1.000001):
            raise ValueError(f"{name}={getattr(augment, name)}; give a probability")
    if augment.rand_augment and not (augment.rand_augment[0] >= 0 and 0 <= augment.rand_augment[1] <= STRONGEST):
        raise ValueError(
            f"rand_augment={list(augment.rand_augment)}; give [operations, strength], as in [2, 9], strength at most {STRONGEST}"
        )
    on_pixels = [name for name in ("crop_area", "shift", "flip", "rand_augment", "grey") if getattr(augment, name)]
    if spec.model.lock_image and on_pixels:
        raise ValueError(
            f"a locked image tower's features are computed once, without augmentation; leave out {', '.join(on_pixels)}"
        )
    if augment.feature_drop and not spec.model.lock_image:
        raise ValueError("feature_drop is for a locked image tower; give model.lock_image=true or leave it out")


def check_pairs(spec: RunSpec, objective: Contrastive | Prediction) -> None:
    """Refuse what does not go with images and captions.

    Raises:
        ValueError: with what to give instead.
    """
    if spec.model.is_classifier or spec.model.classes or spec.model.is_predictor != isinstance(objective, Prediction):
        raise ValueError(
            f"a {objective.kind} objective does not go with this model.text or model.classes; take a recipe such as clip_small "
            "(contrastive) or captions_small (prediction)"
        )
    if isinstance(objective, Contrastive) and (objective.loss == "sigmoid") != (spec.model.init_logit_bias is not None):
        raise ValueError(
            f"objective.loss={objective.loss} and model.init_logit_bias={spec.model.init_logit_bias} do not go together; "
            "the sigmoid loss begins with a bias (SigLIP: model.init_logit_bias=-10), info_nce has none"
        )
    if spec.data.augment.mixup or spec.data.augment.cutmix:
        raise ValueError("mixup and cutmix mix labels, and captions cannot be mixed; leave them out")


def check_classification(spec: RunSpec, objective: Classification) -> None:
    """Refuse what does not go with a classifier.

    Raises:
        ValueError: with what to give instead.
    """
    if not spec.model.is_classifier:
        raise ValueError("a classification objective needs a model without a text tower (text={}); take a recipe such as vit_b16")
    if spec.model.lock_image:
        raise ValueError("a classifier trains its image tower; leave out model.lock_image, or give optim.layer_decay")
    if not 0 <= objective.label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing={objective.label_smoothing}; give a share from 0 to 1")
    augment = spec.data.augment
    for name in ("mixup", "cutmix"):
        if not 0 <= getattr(augment, name) < float("inf"):
            raise ValueError(f"{name}={getattr(augment, name)}; give the α of a Beta distribution, or 0 for none")
    if ignored := [name for name in ("grey_removes", "word_drop") if getattr(augment, name)]:
        raise ValueError(f"{' and '.join(ignored)} change captions, and a classifier reads none; leave them out")


def resolve(spec: RunSpec, corpus: Corpus, *, bf16_available: bool) -> RunSpec:
    """The spec with everything filled in that depends on the corpus, the device and local files.

    Raises:
        ValueError: the selection is smaller than a global batch, a row lacks what the objective needs, the model cannot be built,
            or there are no such pretrained weights.
    """
    check_ranges(spec)
    rows, view = select_rows(corpus, spec.data)
    what = f"split {spec.data.split!r}" + (f" that pass {' and '.join(spec.data.filters)}" if view else "")
    if len(rows) < spec.global_batch:
        raise ValueError(
            f"the corpus has {len(rows)} rows in {what}, fewer than one global batch of {spec.global_batch}; "
            f"give global_batch={max(1, len(rows))} or a larger corpus"
        )
    model = spec.model
    if isinstance(spec.objective, Classification):
        model = replace(model, classes=model.classes or class_list(corpus))
        places(corpus, rows, model.classes)
    else:
        check_captions(corpus, rows, what)
    if model.pretrained_image:
        source = model.pretrained_image
        digest = sha256(find(source).path)
        source = str(Path(source).resolve()) if Path(source).exists() else source
        model = replace(model, pretrained_image=source, pretrained_image_sha256=digest)
    elif model.lock_image:
        raise ValueError("a locked image tower needs its weights; give model.pretrained_image=PATH of a timm safetensors file")
    with torch.device("meta"):  # what cannot be built is said here, before anything is started
        batch_norms = has_batch_norms(build(model))
    if batch_norms:
        raise ValueError(
            "this image tower has batch norms, and their numbers depend on which rows a worker holds; start from weights by "
            "model.pretrained_image=PATH (they are frozen then), or take a tower without: any ViT, Swin or ConvNeXt, resnet50_gn, "
            "resnetv2_50x1_bit, or a ResNet with model.vision.norm_layer=groupnorm"
        )
    precision = ("bf16" if bf16_available else "fp32") if spec.precision == "auto" else spec.precision
    # The opened corpus' own location is absolute: workers may have another working directory than the command that started them.
    data = replace(spec.data, root=corpus.root, corpus=corpus.location, view=view)
    return replace(spec, model=model, precision=precision, data=data)


def check_captions(corpus: Corpus, rows: NDArray[np.int64], what: str) -> None:
    """Refuse rows without a caption.

    Raises:
        ValueError: with how to leave them out.
    """
    captions = pc.list_value_length(corpus.sidecar(["captions"])["captions"]).take(pa.array(rows))
    if silent := int(pc.sum(pc.equal(captions, 0)).as_py()):
        raise ValueError(
            f"{silent} rows in {what} have no caption; give each image one and ingest again, or leave them out by a filter of "
            "`sightline corpus filter CORPUS NAME --caption-words 1:`"
        )


def select_rows(corpus: Corpus, data: DataConfig) -> tuple[NDArray[np.int64], str]:
    """The rows to train on, and their view's digest (empty without filters).

    Raises:
        ValueError: there is no such split or filter, or a filter means other rows than when the run was resolved.
    """
    if not data.filters:
        if data.view:
            raise ValueError("data.view is the digest of filters, and none are named; give filters=NAME,...")
        return corpus.select(data.split), ""
    view = select_view(corpus, data.filters, data.split)
    if data.view not in ("", view.digest):
        raise ValueError(
            f"the filters {', '.join(data.filters)} no longer pass the rows that this run was named for; make them again as "
            "they were, or begin another run"
        )
    return view.rows, view.digest


def adapter() -> TypeAdapter[RunSpec]:
    """Checks values against the fields' types; unknown keys never get here (`full_path`)."""
    return TypeAdapter(RunSpec)


def from_json(text: str) -> RunSpec:
    """A spec from its canonical JSON."""
    return adapter().validate_json(text)


def override(spec: RunSpec, assignments: Sequence[str]) -> RunSpec:
    """The spec with `key=value` applied: keys are dotted paths, or a last part that only one path has (`lr` for `optim.lr`).

    Raises:
        ValueError: an assignment without `=`, an unknown or ambiguous key, or a value of the wrong type.
    """
    fields = asdict(spec)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"{assignment!r} is no override; write key=value, as in steps=100 or optim.lr=1e-3")
        *parents, last = full_path(fields, key)
        node = fields
        for name in parents:
            node = node[name]
        node[last] = text if isinstance(node.get(last), str) else parsed(text)
        if key in ("filters", "data.filters") and not text.startswith("["):  # names by commas, as people write them
            node[last] = tuple(filter(None, text.split(",")))
    try:
        return adapter().validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}={first['input']!r}: {first['msg']}") from error


def full_path(fields: Mapping[str, Any], key: str) -> list[str]:
    """The path that a dotted or short key means."""
    paths = list(_paths(fields, ()))
    exact = [path for path in paths if ".".join(path) == key]
    # The towers' dictionaries are open_clip's: they take any of its settings, also ones that the recipe does not mention.
    if not exact and key.startswith(("model.vision.", "model.text.")) and key.count(".") == 2:
        return key.split(".")
    short = exact or [path for path in paths if path[-1] == key]
    if len(short) == 1:
        return list(short[0])
    if short:
        raise ValueError(f"{key!r} is ambiguous; it may be {' or '.join('.'.join(path) for path in short)}")
    raise ValueError(f"unknown setting {key!r}; settings are {', '.join('.'.join(path) for path in paths)}")


def _paths(node: Mapping[str, Any], above: tuple[str, ...]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, value in node.items():
        found += _paths(value, (*above, name)) if isinstance(value, Mapping) and value else [(*above, name)]
    return found


def parsed(text: str) -> Any:
    """A JSON value where the text is one, otherwise the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
