"""An image that a request names by its URL: fetched as ingest fetches, from public addresses only.

The address is checked at the moment of connecting, at every redirect, and neither the URL nor an address comes back in an error,
nor whether a name has an address or a port is open: what this machine can reach is nobody's business.
"""

from __future__ import annotations

from sightline.fetch.client import Client, Gate
from sightline.fetch.result import Failed, FetchOptions
from sightline.serve.problems import ProblemError

TIMEOUT_S = 10.0
UNREACHABLE = frozenset({"blocked_address", "bad_port", "dns", "connect", "tls", "timeout"})
USER_AGENT = "Sightline (an image that a user asks about)"


async def fetch(url: str, field: str, max_bytes: int, gate: Gate | None = None) -> bytes:
    """The body of a URL. `gate` is for tests.

    Raises:
        ProblemError: it gave none (400), or too long a one (413).
    """
    # A user asks for one image that he sees anyway: robots.txt is for those who come by themselves.
    options = FetchOptions(
        total_timeout_s=TIMEOUT_S,
        idle_timeout_s=TIMEOUT_S / 2,
        max_bytes=max_bytes,
        retries=0,
        respect_robots_txt=False,
        respect_opt_out=False,
        user_agent=USER_AGENT,
    )
    async with Client(options, gate=gate) as client:
        answer = await client.fetch(url)
    if not isinstance(answer, Failed):
        return answer.data
    if answer.code == "too_many_bytes":
        raise ProblemError(413, "image-too-large", f"{field}: the image is too large; it may have {max_bytes:,} bytes")
    why = "it cannot be reached" if answer.code in UNREACHABLE else answer.code.replace("_", " ")
    raise ProblemError(400, "cannot-fetch", f"{field}: the URL gave no image ({why}); give a public one, or send the bytes")
