"""What a tar holds: its members by offset and size, and the contents of small ones, from one pass over it.

A tar that is cut off gives the members before the cut and the reason; so does one without its closing zero block, which
Python's reader takes for whole.
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import SEEK_END
from typing import IO, cast

from sightline.pipelines.ingest.sources.place import Place, open_file

SUFFIXES = (".tar", ".tar.gz", ".tgz")
BLOCK = tarfile.BLOCKSIZE
# A compressed tar may unpack to so many times its size, and so much besides; images hardly shrink, so more is a trap.
MAX_RATIO, MAX_SLACK = 100, 2**30


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: as the tar has it.
        start, nbytes: where its bytes lie in the (decompressed) tar.
        content: the bytes themselves, of members that were asked for.
        regular: False for links and devices, and for files stored with holes.
    """

    name: str
    start: int
    nbytes: int
    content: bytes | None
    regular: bool


def is_compressed(name: str) -> bool:
    return name.lower().endswith((".gz", ".tgz"))


def open_tar(root: Place, name: str) -> tuple[IO[bytes], str | None]:
    """A tar open at any position, and why it is not whole; a compressed one is decompressed into a temporary file."""
    if not is_compressed(name):
        return open_file(root, name), None
    file = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115 (whoever asked closes it)
    broken = None
    with open_file(root, name) as packed:
        limit = MAX_RATIO * packed.seek(0, SEEK_END) + MAX_SLACK
        packed.seek(0)
        try:
            unpacked = gzip.GzipFile(fileobj=packed)
            while data := unpacked.read1(2**20):  # `read` would throw away what it has when the end is missing
                file.write(data)
                if file.tell() > limit:
                    file.close()
                    raise ValueError(
                        f"{name} unpacks to more than {limit} bytes, far beyond its size; unpack it yourself to a .tar"
                    )
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            broken = f"its compression breaks off ({error})"
    file.seek(0)
    return file, broken


def scan(root: Place, name: str, wanted: Callable[[str, int], bool]) -> tuple[list[Member], str | None]:
    """The members of a tar, and why there may be more that cannot be read (None: it is whole).

    Args:
        wanted: whether the content of a member of that name and size is to be read.
    """
    members: list[Member] = []
    file, broken = open_tar(root, name)
    with file:
        try:
            # Not for extraction: names are keys and never become paths.
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                for info in tar:  # one by one: what came before a break is kept
                    if not info.isdir():
                        members.append(member(tar, info, wanted))  # noqa: PERF401
                end = tar.offset
            file.seek(end)
            if broken is None and file.read(BLOCK) != bytes(BLOCK):
                broken = f"it has no end: what should follow byte {end} is missing or damaged"
        except (tarfile.TarError, EOFError, ValueError) as error:  # ValueError: a PAX header with numbers that are none
            broken = broken or f"it breaks off ({error})"
        length = file.seek(0, SEEK_END)
    return [entry for entry in members if entry.start + entry.nbytes <= length], broken


def member(tar: tarfile.TarFile, info: tarfile.TarInfo, wanted: Callable[[str, int], bool]) -> Member:
    regular = info.isreg() and not info.issparse()
    content = None
    if regular and wanted(info.name, info.size):
        file = tar.extractfile(info)
        assert file is not None
        content = file.read()
        if len(content) != info.size:
            raise tarfile.ReadError("unexpected end of data")
    return Member(info.name, info.offset_data, info.size, content, regular)
