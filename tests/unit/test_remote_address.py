"""Which addresses a job can send a node to."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from batchyard.broker.errors import InputError, StoreUnavailable
from batchyard.cache.remote.address import is_public, reachable


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_these_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "100::1",
    ],
)
def test_these_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


def test_a_public_name_is_reached_at_the_addresses_that_were_looked_at() -> None:
    assert reachable("host", 443, ask=lambda host, port: ["1.1.1.1", "2606:4700::1111"]) == [
        "1.1.1.1",
        "2606:4700::1111",
    ]


def test_one_private_answer_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(InputError, match=r'"host" leads to 10\.0\.0\.1.*--allow-url-host host'):
        reachable("host", 443, ask=lambda host, port: ["1.1.1.1", "10.0.0.1"])


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "017700000001", "localhost", "::1"])
def test_no_spelling_of_this_machine_gets_through(host: str) -> None:
    with pytest.raises(InputError):
        reachable(host, 443)


def test_an_allowed_host_may_be_anywhere_and_only_it() -> None:
    def ask(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    assert reachable("Files.Intern.", 443, allowed={"files.intern"}, ask=ask) == ["10.0.0.1"]
    with pytest.raises(InputError):
        reachable("x.files.intern", 443, allowed={"files.intern"}, ask=ask)


def test_a_name_that_is_not_there_is_told_from_a_resolver_that_is_away() -> None:
    def none(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    def away(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    with pytest.raises(InputError, match='no host "host"'):
        reachable("host", 443, ask=none)
    with pytest.raises(StoreUnavailable, match="resolver"):
        reachable("host", 443, ask=away)
    with pytest.raises(InputError, match="has no address"):
        reachable("host", 443, ask=lambda host, port: [])
