"""What may be chosen about downloads, and how each of them ends: in bytes, or in a reason.

Reason codes are stable; corpora keep them in their tables of errors:

    bad_url             the URL cannot be parsed, has no host, or carries a user name
    bad_scheme          neither http nor https, at first or after a redirect
    bad_port            neither port 80 nor 443
    blocked_address     the host, or a redirect's, is not on the public Internet
    dns                 the host's name has no address
    connect             no connection, or it broke before the body
    tls                 the certificate or the handshake is wrong
    protocol            the answer is no HTTP
    incomplete          the body ended before its announced end
    timeout             not done by the deadline, or silent for too long
    http_status         any status but 200, after retries; `status` has it
    too_many_redirects  more than five
    robots_txt          the host's robots.txt disallows it, or cannot be had because the server is failing
    opted_out           an X-Robots-Tag header keeps it from indexing or machine learning
    content_encoding    the body is compressed though that was declined: a file of unknown size once unpacked
    too_many_bytes      more than `max_bytes`, announced or counted
    empty               no bytes
    not_an_image        the first bytes are of no image format (the Content-Type is not asked)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class FetchOptions:
    """What may be chosen.

    Attributes:
        total_timeout_s: for one URL, with all its redirects, retries and waits.
        idle_timeout_s: to connect, and between two reads.
        max_bytes: of one body. At most `concurrency` bodies are in memory.
        per_host: connections to one host at a time, of all workers together (see `shared`).
        concurrency: downloads at a time, and finished ones that wait for their turn.
        retries: after the first attempt; only for failures that may pass.
        backoff_s: the mean wait before the first retry; it doubles with each.
        allow_loopback: let URLs (and redirects) lead to this machine, at any port.
        respect_robots_txt: ask each host's robots.txt (RFC 9309).
        respect_opt_out: leave alone what an X-Robots-Tag header opts out.
        user_agent: what we call ourselves; robots.txt and X-Robots-Tag are matched with its first word.
    """

    total_timeout_s: float = 30.0
    idle_timeout_s: float = 10.0
    max_bytes: int = 32 * 2**20
    per_host: int = 4
    concurrency: int = 16
    retries: int = 3
    backoff_s: float = 0.5
    allow_loopback: bool = False
    respect_robots_txt: bool = True
    respect_opt_out: bool = True
    user_agent: str = "Sightline (image-text datasets)"

    def __post_init__(self) -> None:
        if min(self.total_timeout_s, self.idle_timeout_s, self.max_bytes, self.per_host, self.concurrency) <= 0:
            raise ValueError("timeouts, max_bytes, per_host and concurrency must be above 0")
        if self.total_timeout_s > 300:  # a worker that is busy with one item for ten minutes is taken for hung
            raise ValueError(f"a timeout of {self.total_timeout_s} s for one URL is too long; give 300 at most")
        if self.retries < 0 or self.backoff_s < 0:
            raise ValueError("retries and backoff_s must not be negative")
        if not (re.match("[A-Za-z_-]", self.user_agent) and self.user_agent.isascii() and self.user_agent.isprintable()):
            raise ValueError(f"the user agent {self.user_agent!r} must be printable ASCII that begins with a name")

    def shared(self, workers: int) -> tuple[int, FetchOptions]:
        """How many of some workers may download at a time, and the part of each: a host's limit is the whole job's, so there are
        no more workers than connections to one host.
        """
        few = max(1, min(workers, self.per_host))
        return few, replace(self, per_host=self.per_host // few)

    def config(self) -> dict[str, Any]:
        """What decides which rows a list of URLs has. Patience (timeouts, retries, connections) is left out: it may be changed
        when an ingest goes on.
        """
        return {
            "allow_loopback": self.allow_loopback,
            "max_bytes": self.max_bytes,
            "product": self.product,
            "respect_opt_out": self.respect_opt_out,
            "respect_robots_txt": self.respect_robots_txt,
        }

    @property
    def product(self) -> str:
        """The user agent's name, in lower case, as robots.txt files spell it."""
        return re.split("[^A-Za-z_-]", self.user_agent, maxsplit=1)[0].lower()


@dataclass(frozen=True)
class Fetched:
    """A body that begins like an image. The last four are header lines as they came."""

    url: str
    final_url: str
    status: int
    data: bytes
    etag: str | None
    last_modified: str | None
    date: str | None
    content_type: str | None


@dataclass(frozen=True)
class Failed:
    """Why there is no body. `nbytes`: how many were read, where some were."""

    url: str
    code: str
    message: str
    status: int | None = None
    nbytes: int | None = None


class RefusedError(Exception):
    """A failure on its way to becoming a `Failed`. `transient`: another attempt may help, after `wait_s` at the least."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        nbytes: int | None = None,
        transient: bool = False,
        wait_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.nbytes, self.transient, self.wait_s = code, status, nbytes, transient, wait_s

    def of(self, url: str) -> Failed:
        message = str(self).encode("utf-8", "backslashreplace").decode()  # headers may hold what is no Unicode
        return Failed(url, self.code, message, self.status, self.nbytes)
