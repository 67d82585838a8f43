"""`sightline key NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Json, emit


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; requests are logged under this name.")],
    file: Annotated[Path, typer.Option(help="The file that `sightline serve --keys` reads; it holds hashes only.")] = Path(
        "keys.txt"
    ),
    rate: Annotated[float | None, typer.Option(min=0.01, help="Requests a second; by default as many as it likes.")] = None,
    json: Json = False,
) -> None:
    """Make an API key: print it, once, and add its hash to a file. A line taken out of the file ends its key at the next start.

    \b
    Example:
      sightline key alice --rate 5
      sightline serve runs/clip_demo-1a2b3c4d --host 0.0.0.0 --keys keys.txt
      curl -H "Authorization: Bearer KEY" -F image=@photo.jpg -F labels="cat, dog" http://HOST:8000/v1/classify
    """
    from sightline.serve.keys import make, read

    if file.exists() and any(known.name == name for known in read(file, least=0)):
        raise ValueError(f"{file} has a key for {name} already; take that line out first, or choose another name")
    secret, made = make(name, rate)
    cut = file.exists() and (before := file.read_text()) != "" and not before.endswith("\n")
    with file.open("a") as lines:
        lines.write("\n" * cut + made.line() + "\n")
    file.chmod(0o600)
    emit({"name": name, "key": secret, "file": str(file)}, json, secret)
