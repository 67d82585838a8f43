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
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from sightline.models.augment import Augment
from sightline.models.interchange.load_weights import find
from sightline.models.interchange.origin import sha256
from sightline.models.objectives import Classification, Contrastive, Prediction, Segmentation
from sightline.models.sharding import Strategy
from sightline.models.towers import ModelConfig
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.view import select_view
from sightline.pipelines.feed.labels import class_list, places
from sightline.pipelines.feed.order import Samples
from sightline.pipelines.train.checks import check_model, check_ranges, mask_classes
from sightline.pipelines.train.optim import OptimConfig

# Settings that count only where they are used: they came later, and gave no run another name.
LATER: dict[tuple[str, ...], Any] = {
    ("model", "pretrained_sha256"): "",
    ("model", "pretrained_text_sha256"): "",
    ("model", "quick_gelu"): False,
    ("model", "dense"): None,
    ("data", "each"): "image",
    ("data", "augment", "denoise"): None,
}


@dataclass(frozen=True)
class DataConfig:
    """What is trained on: the rows of `split`, in the corpus whose root hash is `root`, that pass all `filters`.

    `root` and `view` (the digest of the filters' rows, see `corpus/view.py`; empty without filters) are filled in when the run is
    resolved.

    Attributes:
        each: what an epoch goes through once: each `image`, whose captions take turns over the epochs, or each `pair` of an image
            and one of its captions, as open_clip's trainer does.
    """

    corpus: str = ""
    root: str = ""
    split: str | None = None
    filters: tuple[str, ...] = ()
    view: str = ""
    each: Literal["image", "pair"] = "image"
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
    objective: Annotated[Contrastive | Classification | Prediction | Segmentation, Field(discriminator="kind")]
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
        for source in ("pretrained_image", "pretrained", "pretrained_text"):
            fields["model"].pop(source)
        for (*rooms, name), unused in LATER.items():
            room = reduce(getitem, rooms, fields)
            if room[name] == unused:
                room.pop(name)
        return hashlib.sha256(canonical_json(fields).encode()).hexdigest()[:12]

    @property
    def contrasted(self) -> int:
        """With how many pairs each one is compared; 0 without a contrastive loss."""
        return self.global_batch if isinstance(self.objective, Contrastive) else 0

    @property
    def label_texts(self) -> list[str]:
        """What the places of a dense head are compared with in training: its classes, then the words of the objective."""
        words = self.objective.words if isinstance(self.objective, Segmentation) else ()
        return [*self.model.classes, *words]

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


def resolve(spec: RunSpec, corpus: Corpus, *, bf16_available: bool) -> RunSpec:
    """The spec with everything filled in that depends on the corpus, the device and local files.

    Raises:
        ValueError: the selection is smaller than a global batch, a row lacks what the objective needs, the model cannot be built,
            or there are no such pretrained weights.
    """
    check_ranges(spec)
    rows, view = select_rows(corpus, spec.data)
    what = "all splits" if spec.data.split is None else f"split {spec.data.split!r}"
    what += f" that pass {' and '.join(spec.data.filters)}" if view else ""
    samples = len(samples_of(corpus, rows, spec.data))
    if samples < spec.global_batch:
        raise ValueError(
            f"the corpus has {samples} {'rows' if spec.data.each == 'image' else 'pairs'} in {what}, fewer than one global batch "
            f"of {spec.global_batch}; give global_batch={max(1, samples)} or a larger corpus"
        )
    model, objective = spec.model, spec.objective
    if spec.data.each == "pair" and isinstance(objective, Classification | Segmentation):
        raise ValueError(f"data.each=pair counts captions, and {objective.kind} has none; give data.each=image")
    if isinstance(objective, Classification):
        model = replace(model, classes=model.classes or class_list(corpus))
        places(corpus, rows, model.classes)
    elif isinstance(objective, Segmentation):
        objective, model = mask_classes(objective, model, corpus, rows)
    else:
        check_captions(corpus, rows, what)
    if model.pretrained_image:
        source, digest = located(model.pretrained_image)
        model = replace(model, pretrained_image=source, pretrained_image_sha256=digest)
    if model.pretrained:
        source, digest = located(model.pretrained)
        model = replace(model, pretrained=source, pretrained_sha256=digest)
    if model.pretrained_text:
        source, digest = located(model.pretrained_text)
        model = replace(model, pretrained_text=source, pretrained_text_sha256=digest)
    if model.lock_image and not model.image_is_given:
        raise ValueError("a locked image tower needs its weights; give model.pretrained_image=PATH of a timm safetensors file")
    check_model(model)
    precision = ("bf16" if bf16_available else "fp32") if spec.precision == "auto" else spec.precision
    # The opened corpus' own location is absolute: workers may have another working directory than the command that started them.
    data = replace(spec.data, root=corpus.root, corpus=corpus.location, view=view)
    return replace(spec, model=model, objective=objective, precision=precision, data=data)


def located(source: str) -> tuple[str, str]:
    """Pretrained weights as every worker finds them, whatever its working directory, and their digest.

    Raises:
        ValueError: there are none.
    """
    digest = sha256(find(source).path)
    return (str(Path(source).resolve()) if Path(source).exists() else source), digest


def samples_of(corpus: Corpus, rows: NDArray[np.int64], data: DataConfig) -> Samples:
    """What an epoch goes through, of the selected rows."""
    return Samples(rows) if data.each == "image" else Samples.often(rows, captions_of(corpus, rows))


def captions_of(corpus: Corpus, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many captions each row has [R]."""
    counts: NDArray[np.int64] = corpus.caption_counts[rows]
    return counts


def check_captions(corpus: Corpus, rows: NDArray[np.int64], what: str) -> None:
    """Refuse rows without a caption.

    Raises:
        ValueError: with how to leave them out.
    """
    if silent := int((captions_of(corpus, rows) == 0).sum()):
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
        if last in ("filters", "held_out") and not text.startswith("["):  # names by commas, as people write them
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
