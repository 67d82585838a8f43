"""Which addresses a download may connect to: public ones, and nothing that leads back into our own network.

An address that carries another one (IPv4-mapped, IPv4-compatible, 6to4, Teredo, NAT64) is as public as what it carries.
Of IPv6, only 2000::/3 is in use for hosts (RFC 4291, IANA's special-purpose registry), so everything else is refused
without a list. `check` is called with the very address that is about to be connected to.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

PORTS = (80, 443)
HOSTS_V6 = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
COMPATIBLE = IPv6Network("::/96")
# What the standard library calls global, and no server of the public Internet lives at.
DENIED_V4 = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # the former relays of 6to4
    IPv4Network("168.63.129.16/32"),  # the metadata service of a large cloud, on a public address
)
DENIED_V6 = (IPv6Network("2001::/23"), IPv6Network("3fff::/20"))  # protocol assignments; documentation


class BlockedError(OSError):
    """This connection is not allowed. `code`: `blocked_address` or `bad_port`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check(address: str, port: int, *, allow_loopback: bool = False) -> None:
    """Let a connection pass: to a public address at port 80 or 443, or, if that is allowed, to this machine at any port.

    Raises:
        BlockedError: it must not be made.
    """
    if allow_loopback and ip_address(address).is_loopback:
        return
    if not public(address):
        raise BlockedError("blocked_address", f"{address} is no public address")
    if port not in PORTS:
        raise BlockedError("bad_port", f"port {port} is neither 80 nor 443")


def public(address: str) -> bool:
    """Whether an address, as text, is one of the public Internet; a zone (`%eth0`) makes it local."""
    if "%" in address:
        return False
    return all(_public(inner) for inner in _unwrap(ip_address(address)))


def _public(ip: IPv4Address | IPv6Address) -> bool:
    if not ip.is_global or ip.is_multicast:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in DENIED_V4)
    return ip in HOSTS_V6 and not any(ip in network for network in DENIED_V6)


def _unwrap(ip: IPv4Address | IPv6Address) -> tuple[IPv4Address | IPv6Address, ...]:
    """The IPv4 addresses that an IPv6 address carries, or else the address itself."""
    if isinstance(ip, IPv4Address):
        return (ip,)
    if ip.teredo:
        return ip.teredo  # its server and its client
    if inner := ip.ipv4_mapped or ip.sixtofour:
        return (inner,)
    if ip in NAT64 or ip in COMPATIBLE:
        return (IPv4Address(int(ip) & 0xFFFF_FFFF),)
    return (ip,)
