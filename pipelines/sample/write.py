"""Write a sample as a plain folder: images, masks, classes.csv, captions.jsonl, and sample.json as the seal.

All of it is made in a hidden sibling of the destination and renamed at the end: the destination is whole or absent. The
digest covers the name and the bytes of every file, so two samples with one digest are the same sample.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.pipelines.sample.pairs import CLASS_IDS, COLOURS, DIGITS, colour_of, digit_of, held_out, name_of
from sightline.pipelines.sample.scenes import render
from sightline.pipelines.sample.spec import SPLITS, SampleSpec, Split

FORMAT = "sightline-sample/1"
SEAL = "sample.json"
PACKAGES = ("numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class SampleReport:
    """What stands at `dest`: the settings, the digest over all files, and whether it was there before (`reused`)."""

    dest: Path
    spec: SampleSpec
    digest: str
    held_out: tuple[str, ...]
    reused: bool


def write_sample(dest: Path, spec: SampleSpec, progress: Callable[[int, int], None] | None = None) -> SampleReport:
    """Write the sample that `spec` determines; a complete sample of the same settings is returned as it is.

    Args:
        dest: a folder that is absent, empty, or holds just this sample.
        progress: called with (scenes done, scenes in all).

    Raises:
        FileExistsError: `dest` is a file or holds something else.
    """
    dest = dest.expanduser().resolve()
    if digest := _present(dest, spec):
        return SampleReport(dest, spec, digest, _held_out_names(spec), reused=True)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FileExistsError(f"{dest} lies below a file: name a folder that can be made") from None
    draft = dest.with_name(f".{dest.name}.{uuid.uuid4().hex}.partial")
    try:
        digest = _write(draft, spec, progress)
        draft.rename(dest)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # after the rename there is none
    return SampleReport(dest, spec, digest, _held_out_names(spec), reused=False)


def _present(dest: Path, spec: SampleSpec) -> str | None:
    """The digest of the sample at `dest` if it is the one wanted; None if `dest` is free."""
    if dest.is_dir():
        if not any(dest.iterdir()):
            return None
        if (dest / SEAL).is_file():
            found = _read_seal(dest / SEAL)
            if found.get("settings") == asdict(spec):
                return str(found["digest"])
            raise FileExistsError(f"{dest} holds a sample of other settings: delete it or name another folder")
        raise FileExistsError(f"{dest} is not empty and holds no sample: name a new or an empty folder")
    if dest.exists():
        raise FileExistsError(f"{dest} is a file: name a new or an empty folder")
    return None


def _read_seal(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if isinstance(found, dict) and found.get("format") == FORMAT:
        return found
    raise FileExistsError(f"{path} is no seal of a sample of this version: delete the folder or name another")


def _write(draft: Path, spec: SampleSpec, progress: Callable[[int, int], None] | None) -> str:
    (draft / "images").mkdir(parents=True)
    (draft / "masks").mkdir()
    sums: dict[str, str] = {}

    def put(name: str, data: bytes) -> None:
        (draft / name).write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()

    put("classes.csv", "".join(["id,name\n", *(f"{c},{name_of(c)}\n" for c in (0, *CLASS_IDS))]).encode())
    lines: list[str] = []
    palette = _palette()
    for number, (split, index) in enumerate(_scenes(spec)):
        scene = render(spec, split, index)
        image, mask = f"images/{number:06}.jpg", f"masks/{number:06}.png"
        put(image, _jpeg(scene.image))
        put(mask, _png(scene.mask, palette))
        row = {"image": image, "captions": scene.captions, "labels": scene.labels, "mask": mask, "split": split}
        lines.append(json.dumps(row) + "\n")
        if progress:
            progress(number + 1, spec.scenes)
    put("captions.jsonl", "".join(lines).encode())

    digest = hashlib.sha256("".join(f"{name}\0{sums[name]}\n" for name in sorted(sums)).encode()).hexdigest()
    seal = {
        "format": FORMAT,
        "settings": asdict(spec),
        "scenes": spec.scenes,
        "colours": list(COLOURS),
        "digits": list(DIGITS),
        "held_out": _held_out_names(spec),
        "packages": {name: version(name) for name in PACKAGES},
        "digest": digest,
    }
    unsealed = draft / f"{SEAL}.partial"
    unsealed.write_text(json.dumps(seal, indent=2) + "\n")
    unsealed.rename(draft / SEAL)
    return digest


def _scenes(spec: SampleSpec) -> Iterator[tuple[Split, int]]:
    return ((split, index) for split in SPLITS for index in range(spec.count(split)))


def _held_out_names(spec: SampleSpec) -> tuple[str, ...]:
    return tuple(name_of(c) for c in held_out(spec.seed))


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92, subsampling="4:4:4")
    return file.getvalue()


def _png(mask: NDArray[np.uint8], palette: bytes) -> bytes:
    picture = Image.fromarray(mask)
    picture.putpalette(palette)  # turns the mode from L to P; the bytes stay class ids
    file = io.BytesIO()
    picture.save(file, "PNG", bits=8)
    return file.getvalue()


def _palette() -> bytes:
    """Black for the background, each class in its colour, brighter with the digit: a mask opens as a picture."""
    entries = [0, 0, 0]
    for class_id in CLASS_IDS:
        share = 0.55 + 0.05 * digit_of(class_id)
        entries += [round(255 * share * value) for value in COLOURS[colour_of(class_id)].rgb((0.5, 0.5, 1))]
    return bytes(entries)
