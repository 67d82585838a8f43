"""What the headers and first bytes of an answer say: an opt-out, a wait, an image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# `none` stands for noindex and nofollow.
OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
# Directives with a value look like a user agent's prefix.
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
AGENT = re.compile(r"\s*([A-Za-z*][\w.*-]*)\s*:(.*)", re.DOTALL)
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM|II\*\x00|MM\x00\*|RIFF....WEBP|P[1-6fF]\s|\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"
    rb"|....ftyp(?:avi[fs]|mif1|msf1)|\x00\x00\x01\x00|\x80\xe8\x00\x00",
    re.DOTALL,
)
MAGIC_BYTES = 16


def opted_out(lines: Iterable[str], product: str) -> str | None:
    """The first directive of some X-Robots-Tag header lines that asks us (`product`, in lower case) to stay away.

    `noai, noindex` is for everybody, `otherbot: noai, noindex` for that agent alone, up to the end of the line or the
    next agent.
    """
    for line in lines:
        addressed = True
        for part in line.split(","):
            if (prefixed := AGENT.match(part)) and prefixed[1].lower() not in VALUED:
                addressed = prefixed[1].lower() in ("*", product)
                part = prefixed[2]
            if addressed and (directive := part.strip().lower()) in OPT_OUTS:
                return directive
    return None


def retry_after(value: str | None) -> float:
    """The seconds that a Retry-After header asks to wait, given as a number or as a date; 0 for none or nonsense."""
    if value is None:
        return 0.0
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def begins_like_an_image(head: bytes) -> bool:
    """Whether the first `MAGIC_BYTES` are of a format with a signature (TGA has none, so it is refused)."""
    return MAGIC.match(head) is not None
