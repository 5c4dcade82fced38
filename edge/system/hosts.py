"""Which host names and addresses mean this machine."""

import ipaddress


def is_this_machine(host: str) -> bool:
    """Whether only this machine can reach a host name or address: localhost, 127.0.0.0/8 and ::1, also in brackets."""
    name = host.removeprefix("[").removesuffix("]")
    if name.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
