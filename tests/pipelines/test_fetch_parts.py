"""The parts of safe downloads that need no server: addresses, robots.txt, headers, the window."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BytesIO
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from yarl import URL

from sightline.fetch.addresses import BlockedError, check, public
from sightline.fetch.headers import MAGIC_BYTES, begins_like_an_image, opted_out, retry_after
from sightline.fetch.robots import Robots
from sightline.pipelines.ingest.fetch.window import Window

# --- addresses

# RFC 6890 and what was registered since, and networks that are special without a registry.
SPECIAL = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "168.63.129.16/32",
    "::1/128",
    "::/128",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "4000::/3",
    "8000::/1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "198.41.0.4", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "2400:cb00::1"]


@pytest.mark.parametrize("network", SPECIAL)
def test_no_special_network_is_public(network: str) -> None:
    net = ip_network(network)
    size = net.num_addresses
    for offset in (0, 1, size // 2, size - 1):
        assert not public(str(net[offset % size])), net[offset % size]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address: str) -> None:
    assert public(address)
    check(address, 443)


def carried(inner: IPv4Address) -> list[str]:
    """The IPv6 addresses that lead to an IPv4 address."""
    number = int(inner)
    return [
        str(IPv6Address(value))
        for value in (
            0xFFFF << 32 | number,
            number,
            0x64FF9B << 96 | number,
            0x2002 << 112 | number << 80 | 1,
            0x2001 << 112 | int(IPv4Address("198.41.0.4")) << 64 | (number ^ 0xFFFF_FFFF),
        )
    ]


@given(st.sampled_from([net for net in SPECIAL if ":" not in net]), st.integers(0, 2**32))
def test_what_carries_a_special_address_is_not_public(network: str, offset: int) -> None:
    net = IPv4Network(network)
    inner = net[offset % net.num_addresses]
    assert not any(public(address) for address in [str(inner), *carried(inner)])


@given(st.sampled_from([net for net in SPECIAL if ":" in net]), st.integers(0, 2**128))
def test_no_address_of_a_special_ipv6_network_is_public(network: str, offset: int) -> None:
    net = IPv6Network(network)
    assert not public(str(net[offset % net.num_addresses]))


def test_what_carries_a_public_address_is_public() -> None:
    assert all(public(address) for address in carried(IPv4Address("8.8.8.8")))
    assert not public("2001:0:a00:1::f7f7:f7f7")  # Teredo, with a private server


def test_a_zone_makes_an_address_local() -> None:
    assert not public("fe80::1%eth0")
    assert not public("2606:4700:4700::1111%eth0")


def test_loopback_passes_only_where_it_is_allowed_and_then_at_any_port() -> None:
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        check(address, 8080, allow_loopback=True)
        with pytest.raises(BlockedError, match="no public address"):
            check(address, 80)
    for address in ("::ffff:127.0.0.1", "10.0.0.1", "0.0.0.0"):
        with pytest.raises(BlockedError, match="no public address"):
            check(address, 80, allow_loopback=True)
    with pytest.raises(BlockedError, match="port 22"):
        check("8.8.8.8", 22)


# --- robots.txt


@pytest.mark.parametrize(
    ("text", "allowed", "disallowed"),
    [
        ("", "/a", None),
        ("User-agent: *\nDisallow:", "/a", None),
        ("User-agent: *\nDisallow: /", None, "/a"),
        ("User-agent: *\nDisallow: /\nAllow: /images/", "/images/a.jpg", "/a"),
        ("User-agent: *\nAllow: /a\nDisallow: /a", "/a", None),
        ("User-agent: *\nDisallow: /*.jpg$", "/a.jpg?x", "/x/a.jpg"),
        ("User-agent: *\nDisallow: /*?", "/a", "/a?b"),
        ("User-agent: *\nDisallow: /a*b*c", "/ab", "/a1b2c3"),
        ("User-agent: *\nDisallow: /*a*a$", "/xa", "/xaa"),
        ("User-agent: *\nDisallow: /a$", "/ab", "/a"),
        ("User-agent: *\nDisallow: /a%3cd", "/b", "/a%3Cd"),
        ("User-agent: *\nDisallow: /ü", "/u", "/%C3%BC"),
        ("User-agent: other\nDisallow: /", "/a", None),
        ("User-agent: *\nDisallow: /\n\nUser-agent: Sightline\nAllow: /", "/a", None),
        ("User-agent: other\nUser-agent: SIGHTLINE/2.0\nDisallow: /x\n\nuser-agent: sightline\ndisallow: /y", "/a", "/x"),
        ("User-agent: a\nDisallow: /x\nUser-agent: sightline\nDisallow: /y", "/x", "/y"),
        ("\ufeffUser-agent: *\r\nDisallow: /x # why\r\n", "/y", "/x"),
        ("User-agent: *\nCrawl-delay: 3\nDisallow: /x\nSitemap: http://x/y", "/y", "/x"),
        ("Disallow: /x", "/x", None),
        ("<html>not found</html>", "/a", None),
    ],
)  # fmt: skip
def test_robots_txt_as_rfc_9309_has_it(text: str, allowed: str | None, disallowed: str | None) -> None:
    robots = Robots.of(text.encode(), "sightline")
    assert allowed is None or robots.allow(URL("http://h" + allowed, encoded=True))
    assert disallowed is None or not robots.allow(URL("http://h" + disallowed, encoded=True))


def test_a_robots_txt_full_of_stars_takes_no_time() -> None:
    robots = Robots.of(b"User-agent: *\nDisallow: /" + b"*a" * 50_000 + b"b$", "sightline")
    assert robots.allow(URL("http://h/" + "a" * 5_000))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_robots_txt(text: bytes) -> None:
    Robots.of(b"User-agent: *\nDisallow: " + text, "sightline").allow(URL("http://h/a"))


# --- headers


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_header_lines_are_an_answer(lines: list[str]) -> None:
    assert opted_out(lines, "sightline") in {None, "noai", "noimageai", "noindex", "noimageindex", "noml", "none"}


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after(None) == retry_after("soon") == retry_after("-5") == retry_after("") == 0
    assert retry_after("120") == 120
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO"])
def test_every_format_with_a_signature_begins_like_an_image(format: str) -> None:
    buffer = BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, format)
    assert begins_like_an_image(buffer.getvalue()[:MAGIC_BYTES])


@pytest.mark.parametrize(
    "head", [b"", b"<!doctype html>", b"<svg xmlns=", b"\x1f\x8b\x08\0", b"%PDF-1.7", b'{"error": 1}', b"PK\3\4"]
)
def test_what_is_no_image_does_not(head: bytes) -> None:
    assert not begins_like_an_image(head)


# --- the window


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6), st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_window_keeps_its_limits_and_never_comes_to_a_halt(
    hosts: list[int], slots: int, per_host: int, chance: random.Random
) -> None:
    window = Window(slots, per_host)
    for number, host in enumerate(hosts):
        window.add(number, str(host))
    under_way: set[int] = set()
    finished: set[int] = set()
    begun: set[int] = set()
    delivered = 0
    while delivered < len(hosts):
        for number in iter(window.begin, None):
            waiting = [other for other in range(number) if other not in begun]
            assert all(sum(hosts[o] == hosts[other] for o in under_way) == per_host for other in waiting)
            under_way.add(number)
            begun.add(number)
        assert len(under_way) + len(finished) <= slots
        assert all(sum(hosts[o] == host for o in under_way) <= per_host for host in range(4))
        if delivered in finished and (not under_way or chance.random() < 0.5):
            finished.remove(delivered)
            delivered += 1
            window.deliver()
        else:
            assert under_way, "nothing is under way, and the next to deliver is not there"
            number = chance.choice(sorted(under_way))
            under_way.remove(number)
            finished.add(number)
            window.finish(number)
