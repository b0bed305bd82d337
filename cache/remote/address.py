"""Which addresses a node may be sent to by a job: public ones, and those of hosts that the operator allows.

A job names a host, and whoever owns that name says where it leads: also to this machine, to the private network around
it, or to a cloud's metadata service. So every answer of the resolver is looked at, and the connection is made to an
address that was looked at: nothing is resolved a second time.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from batchyard.broker.errors import InputError, StoreUnavailable

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve: TypeAlias = Callable[[str, int], Sequence[str]]

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_TEREDO = ipaddress.IPv6Network("2001::/32")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet. Those that lead on to an IPv4 address count as that one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not (address.is_multicast or address.is_reserved)
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _SIX_TO_FOUR or address in _TEREDO:
        return False  # tunnels of old: whose relay it is, nobody says
    return address in _GLOBAL_UNICAST and address.is_global


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, by the system's resolver. Raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def reachable(host: str, port: int, *, allowed: Collection[str] = (), ask: Resolve = resolve) -> list[str]:
    """The addresses that a connection to `host` may be made to. allowed: hosts, in lower case, that may be anywhere.

    InputError: one of its addresses is not public, or there is no such name. StoreUnavailable: the resolver is away.
    """
    try:
        found = list(ask(host, port))
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise StoreUnavailable(f'the resolver does not answer for "{host}"') from None
        raise InputError(f'there is no host "{host}"; correct the URI') from None
    except (OSError, UnicodeError):
        raise InputError(f'"{host}" is no name of a host; correct the URI') from None
    if host.lower().rstrip(".") not in allowed:
        for text in found:
            if not is_public(ipaddress.ip_address(text)):
                raise InputError(
                    f'"{host}" leads to {text}, which is not a public address; '
                    f"the node's operator may allow it (--allow-url-host {host})"
                )
    if not found:
        raise InputError(f'"{host}" has no address; correct the URI')
    return found
