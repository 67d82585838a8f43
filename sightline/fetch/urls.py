"""URLs that may be fetched: http or https, with a host, without a user name."""

from __future__ import annotations

import re
from ipaddress import ip_address

from yarl import URL

from sightline.fetch.result import RefusedError

SCHEMES = ("http", "https")
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")  # a name (international ones as punycode), or an address
CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # some programs take these out, others do not
ADDRESS = re.compile(r"[0-9.]+|.*:.*")


def parse(text: str) -> URL:
    """A URL as it is sent: one in plain ASCII keeps its bytes (a signature may cover them), others are quoted.

    Raises:
        RefusedError: `bad_url` or `bad_scheme`.
    """
    text = text.strip().partition("#")[0]
    if CONTROL.search(text):
        raise RefusedError("bad_url", f"{shown(text)} contains control characters")
    exact = text.isascii() and text.isprintable() and " " not in text
    try:
        url = URL(text, encoded=exact)
        scheme, host, _ = url.scheme, url.raw_host, url.port
        if host is not None:
            host.encode("idna")  # no label is empty or too long
            if ADDRESS.fullmatch(host):
                ip_address(host)  # other spellings (2130706433, 127.1) are read in as many ways as there are programs
    except ValueError as error:  # also what is no valid Unicode
        raise RefusedError("bad_url", f"{shown(text)} is no URL ({error})") from None
    if scheme not in SCHEMES:
        raise RefusedError("bad_scheme" if scheme else "bad_url", f"{shown(text)} does not begin with http:// or https://")
    if host is None or not HOST.fullmatch(host):
        raise RefusedError("bad_url", f"{shown(text)} names no host")
    if url.raw_user is not None or url.raw_password is not None:
        raise RefusedError("bad_url", "the URL carries a user name or password, which would end up in the corpus")
    return url


def shown(text: str) -> str:
    """A text for a message: quoted, escaped and not too long."""
    return ascii(text if len(text) <= 200 else text[:200] + "...")
