from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batchyard.broker.certificate import write_server_certificate

NOW = datetime.now(UTC)


def handshake(folder: Path, ca: Path, host: str) -> None:
    """A TLS connection to a server with that certificate, under the name of `host`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "public.crt", folder / "private.key")
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=host).close()
    finally:
        ours.close()
        thread.join(10)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_clients_that_know_the_authority_trust_the_server_on_this_machine(tmp_path: Path, host: str) -> None:
    ca = write_server_certificate(tmp_path)
    handshake(tmp_path, ca, host)


def test_other_names_and_other_authorities_are_not_trusted(tmp_path: Path) -> None:
    ca = write_server_certificate(tmp_path / "one")
    other = write_server_certificate(tmp_path / "two")
    for trusted, host in ((ca, "example.org"), (other, "localhost")):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(tmp_path / "one", trusted, host)


def test_only_its_owner_reads_the_key_and_nobody_keeps_the_authoritys(tmp_path: Path) -> None:
    write_server_certificate(tmp_path / "certs")
    assert sorted(p.name for p in (tmp_path / "certs").iterdir()) == ["ca.crt", "private.key", "public.crt"]
    assert (tmp_path / "certs" / "private.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "certs").stat().st_mode & 0o777 == 0o700


def test_it_stays_until_a_month_before_its_end(tmp_path: Path) -> None:
    ca = write_server_certificate(tmp_path, now=NOW, days=100)
    first = ca.read_bytes()
    assert write_server_certificate(tmp_path, now=NOW + timedelta(days=69)).read_bytes() == first
    assert write_server_certificate(tmp_path, now=NOW + timedelta(days=71)).read_bytes() != first
    (tmp_path / "private.key").unlink()
    handshake(tmp_path, write_server_certificate(tmp_path), "localhost")
