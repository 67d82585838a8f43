"""robots.txt as RFC 9309 has it: the rules for our agent, of which the longest that matches decides.

The standard library's parser takes the first rule that matches and knows no `*` and `$`, which most files use. Matching
looks for the pieces between the stars from left to right, so that no file can make it slow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from yarl import URL

MAX_BYTES = 512 * 1024  # the part of a file that is looked at; the standard asks for 500 KiB


@dataclass(frozen=True)
class Robots:
    """Rules for one agent: patterns, each with whether it allows."""

    rules: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def of(cls, text: bytes, product: str) -> Robots:
        """The rules for a product token in lower case: its own groups', or else those for everybody."""
        groups: dict[str, list[tuple[str, bool]]] = {}
        agents: list[str] = []
        begun = False  # a group's rules have begun: the next agent opens another group
        for line in text.decode("utf-8-sig", "replace").splitlines():
            name, colon, value = line.partition("#")[0].partition(":")
            name, value = name.strip().lower(), value.strip()
            if name == "user-agent" and colon:
                agents, begun = ([] if begun else agents), False
                agents.append("*" if value.startswith("*") else re.split("[^A-Za-z_-]", value, maxsplit=1)[0].lower())
                groups.setdefault(agents[-1], [])
            elif name in ("allow", "disallow") and colon:
                begun = True
                for agent in agents if value else ():
                    groups[agent].append((value, name == "allow"))
        return cls(tuple(groups.get(product, groups.get("*", []))))

    def allow(self, url: URL) -> bool:
        path = unquote(url.raw_path_qs)
        return max(((len(pattern), allows) for pattern, allows in self.rules if matches(pattern, path)), default=(0, True))[1]


def matches(pattern: str, path: str) -> bool:
    """Whether a path begins as a pattern says; `*` is anything, `$` at the end is the path's end."""
    first, *pieces = [unquote(piece) for piece in pattern.removesuffix("$").split("*")]
    ends = pattern.endswith("$")
    if not pieces:
        return path == first if ends else path.startswith(first)
    if not path.startswith(first):
        return False
    at = len(first)
    *middle, last = pieces
    for piece in middle:
        if (found := path.find(piece, at)) < 0:
            return False
        at = found + len(piece)
    return path.endswith(last) and len(path) - len(last) >= at if ends else path.find(last, at) >= 0
