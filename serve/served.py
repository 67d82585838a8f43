"""A model that takes requests: loaded, checked, and known by the digest of all that it consists of.

What was rolled out is pinned by that digest. A folder that changed since then is refused when it is loaded again, by a replica that
starts anew or by one that grows: two replicas must never answer differently under one name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file

from sightline.models import artifact as artifacts
from sightline.models.clip import Clip
from sightline.models.load import load_model
from sightline.serve.engine import Engine
from sightline.serve.precision import Precision, image_tower

# Of the provenance; the rest names folders of the machine that trained it.
PROVENANCE = ("corpus_root", "view", "run_id", "steps", "final_loss", "versions", "machine")


@dataclass(frozen=True)
class Served:
    """A model and where it comes from.

    Attributes:
        artifact: sha256 of the artifact's description, which names its files by theirs; else the weights' revision.
        provenance: of an artifact: corpus root, run, versions.
    """

    engine: Engine
    artifact: str
    provenance: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: Clip, precision: Precision = "float32") -> Served:
        """A model that is in memory already, without a provenance."""
        return cls(Engine(model, image_tower(model, precision)), model.revision)

    @property
    def model(self) -> Clip:
        return self.engine.model

    @property
    def who(self) -> dict[str, str]:
        """What every answer says of its model."""
        return {"model": self.model.name, "revision": self.model.revision, "artifact": self.artifact}

    def is_called(self, name: str) -> bool:
        """Whether a request that names a model means this one."""
        return name == self.model.name or (len(name) >= 8 and self.artifact.startswith(name))


def digest(name: str) -> str | None:
    """The digest that an artifact of that name has on disk now; None where it is no artifact."""
    folder = artifacts.find(name)
    return None if folder is None else hashlib.sha256((folder / artifacts.DESCRIPTION).read_bytes()).hexdigest()


def load(name: str, precision: Precision, device: str = "cpu", pinned: str | None = None) -> Served:
    """The model of that name, proved.

    Args:
        pinned: the digest that it must have.

    Raises:
        ValueError: there is no such model, it does not prove itself, or it is another one than was rolled out.
    """
    folder = artifacts.find(name)
    found = digest(name)
    if pinned is not None and found is not None:
        check_pin(name, found, pinned)
    model = load_model(name, device)
    if folder is None:
        if pinned is not None:
            check_pin(name, model.revision, pinned)
        return Served(Engine(model, image_tower(model, precision)), model.revision)
    golden = load_file(folder / artifacts.GOLDEN)
    tower = image_tower(model, precision, (golden["images"], golden["image_embeddings"]))
    known = artifacts.describe(folder).provenance
    assert found is not None
    return Served(Engine(model, tower), found, {key: known[key] for key in PROVENANCE if key in known})


def check_pin(name: str, found: str, pinned: str) -> None:
    """Raises: ValueError: they differ."""
    if found != pinned:
        raise ValueError(
            f"the model {name} has changed since it was rolled out ({pinned[:12]} then, {found[:12]} now); "
            "put the old one back, or roll out the new one with `sightline rollout`"
        )
