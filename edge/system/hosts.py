"""Which host names and addresses mean this machine."""

import ipaddress
import socket

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_this_machine(host: str) -> bool:
    """Whether only this machine can reach a name or address: localhost, 127.0.0.0/8 also as 127.1, ::1, in brackets."""
    address = _address(host)
    return _name(host) == "localhost" or (address is not None and address.is_loopback)


def leads_here(host: str) -> bool:
    """Whether a connection to a name or address reaches this machine. 0.0.0.0 does, but others reach a server there."""
    address = _address(host)
    unspecified = address is not None and address.is_unspecified
    return is_this_machine(host) or unspecified or _name(host).endswith(".localhost")


def _name(host: str) -> str:
    return host.removeprefix("[").removesuffix("]").removesuffix(".").lower()


def _address(host: str) -> _Address | None:
    """The address that a text means to the system, also in a short form such as 127.1; None for a name."""
    address: _Address
    try:
        address = ipaddress.ip_address(socket.inet_aton(_name(host)))
    except (OSError, UnicodeError):
        try:
            address = ipaddress.ip_address(_name(host))
        except ValueError:
            return None
    return getattr(address, "ipv4_mapped", None) or address
