"""Who may ask, and how often: API keys, of which only the sha256 is kept.

A file of keys has a line for each: a name, the hash, and perhaps how many requests a second it may make. A key is 32 random
bytes, so a plain hash is as good as a slow one. All hashes are compared, each in constant time, so that the time taken says
nothing.

The rate is a token bucket that holds two seconds' worth. Each replica has buckets of its own: with n replicas a key may get n
times its rate.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from sightline.serve.problems import ProblemError

BURST_S = 2.0
NAME, SHA256 = re.compile(r"[A-Za-z0-9._-]{1,64}"), re.compile(r"[0-9a-f]{64}")
LINE = re.compile(rf"(?P<name>{NAME.pattern})\s+(?P<sha256>{SHA256.pattern})(?:\s+(?P<rate>\d+(?:\.\d+)?(?:e-?\d+)?))?")


@dataclass(frozen=True)
class ApiKey:
    """A line of the file. `per_s`: requests a second; None: as many as it likes.

    Raises:
        ValueError: the name or the hash is none, or the rate lets nobody in.
    """

    name: str
    sha256: str
    per_s: float | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot name a key; give 1 to 64 letters, digits, dots, hyphens or underscores")
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"the key {self.name} has no sha256 in 64 small hexadecimal digits; take what `sightline key` writes")
        if self.per_s is not None and not 0 < self.per_s < inf:
            raise ValueError(f"the key {self.name} may ask {self.per_s:g} times a second; give more than 0, or take it out")

    def line(self) -> str:
        return f"{self.name} {self.sha256}" + ("" if self.per_s is None else f" {self.per_s:g}")


def make(name: str, per_s: float | None) -> tuple[str, ApiKey]:
    """A new key, and what is kept of it.

    Raises:
        ValueError: the name is no name, or the rate none.
    """
    key = "sl-" + secrets.token_urlsafe(32)
    return key, ApiKey(name, sha256(key), per_s)


def read(path: Path, *, least: int = 1) -> tuple[ApiKey, ...]:
    """The keys of a file; empty lines and those that begin with # say nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, a name comes twice, or there are fewer keys than `least`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of keys {path}; `sightline key NAME --file {path}` makes one")
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path} line {number} is no key; write NAME SHA256 and perhaps a rate, as `sightline key` does")
        if match["name"] in keys:
            raise ValueError(f"{path} line {number}: the name {match['name']} comes twice; give every key its own")
        keys[match["name"]] = ApiKey(match["name"], match["sha256"], float(match["rate"]) if match["rate"] else None)
    if len(keys) < least:
        raise ValueError(f"{path} has no key, so nobody could ask; `sightline key NAME --file {path}` adds one")
    return tuple(keys.values())


class Gate:
    """Lets requests pass that carry a key, as often as the key may. Without any keys it is open."""

    def __init__(self, keys: Iterable[ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = tuple(keys)
        self._clock = clock
        self._buckets = {key.name: Bucket(key.per_s, clock()) for key in self._keys if key.per_s is not None}

    def admit(self, headers: Mapping[str, str]) -> str | None:
        """The name of the key that a request carries; None where no key is asked for.

        Raises:
            ProblemError: there is none, or a wrong one (401), or it came too often (429).
        """
        if not self._keys:
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
        if not given:
            raise ProblemError(401, "no-key", "this service asks for a key; send it as `Authorization: Bearer KEY`")
        name = self._name(given)
        if name is None:
            raise ProblemError(401, "wrong-key", "this key is not known here; ask whoever runs the service for one")
        bucket = self._buckets.get(name)
        if bucket is not None and (wait_s := bucket.take(self._clock())) > 0:
            raise ProblemError(429, "too-many-requests", f"this key may ask {bucket.per_s:g} times a second; ask later", wait_s)
        return name

    def _name(self, given: str) -> str | None:
        presented = sha256(given)
        found = None
        for key in self._keys:  # all of them, also after a match
            if hmac.compare_digest(presented, key.sha256):
                found = key.name
        return found


class Bucket:
    """Tokens that come in at a rate and are taken one by one."""

    def __init__(self, per_s: float, now: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s * BURST_S)
        self._tokens, self._at = self._most, now

    def take(self, now: float) -> float:
        """0 where a token was there, else the seconds until there is one."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self.per_s)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self.per_s
        self._tokens -= 1
        return 0.0


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
