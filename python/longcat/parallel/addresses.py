"""Finds the addresses by which other machines may reach this one."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface
_NAME_BYTES = 15


def own_addresses() -> list[str]:
    """Returns the IPv4 addresses of this machine's interfaces without loopback; the host's name when there is none."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                request = struct.pack("256s", name.encode()[:_NAME_BYTES])
                found.append(socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]))
    return [address for address in found if not address.startswith("127.")] or [socket.getfqdn()]
