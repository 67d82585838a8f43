"""The commands that a user types, for benchmarks that time or repeat them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def sightline(*arguments: object) -> dict[str, Any]:
    """What a command says in JSON; its progress goes to the terminal."""
    verb = [sys.executable, "-m", "sightline", *map(str, arguments), "--json"]
    done = subprocess.run(verb, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))
