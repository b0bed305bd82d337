"""The secrets of a compose stack: made once, never overwritten, each in a file that only its owner can read.

    python make_secrets.py FOLDER [--shown-as FOLDER] [--scratch FOLDER] [--redis-port N] [--minio-port N]
        [--flower-port N]

`prepare.sh` runs it in Batchyard's image. --shown-as is FOLDER's path on the host; --scratch is
where the node works there; the ports are those on loopback.
What is in `host/` is for the host's own tools (BATCHYARD_STATE=FOLDER/host); it holds no secret of its own, and is
written again each time.
"""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from batchyard.broker.certificate import HOSTS, write_server_certificate
from batchyard.broker.endpoints import Endpoints
from batchyard.broker.remote import TRANSPORT_OPTIONS
from batchyard.broker.seal import KeyRing

STORES = ("minio-durable", "minio-near")
IN_CONTAINERS = "/run/secrets"


def main() -> None:
    """Makes what is missing in the folder."""
    parser = argparse.ArgumentParser(description="Make the secrets of a compose stack.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shown-as", type=Path)
    parser.add_argument("--scratch")
    for name, port in (("redis", 6379), ("minio", 9000), ("flower", 5555)):
        parser.add_argument(f"--{name}-port", type=int, default=port)
    told = parser.parse_args()
    folder: Path = told.folder
    os.umask(0o077)
    password = once(folder / "redis.password", lambda: secrets.token_hex(24))
    once(folder / "redis.auth", lambda: f"requirepass {password}\n")
    once(folder / "broker_url", lambda: broker_url(password, "redis:6379"))
    once(folder / "flower_auth", lambda: f"batchyard:{secrets.token_urlsafe(18)}")
    KeyRing.load_or_create(folder / "keys.json")
    for name in STORES:
        store(folder / name, name)
    host(folder, told.shown_as or folder, broker_url(password, f"127.0.0.1:{told.redis_port}"), told)


def once(path: Path, made: Callable[[], str]) -> str:
    """The file's text, made if there is none; whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(made())
        fresh.chmod(0o400)
        fresh.rename(path)
    return path.read_text()


def broker_url(password: str, where: str) -> str:
    """The yard's Redis."""
    return f"redis://:{password}@{where}/0"


def store(folder: Path, name: str) -> None:
    """Keys and certificate of one MinIO, and how the node reaches it.

    The key ids are random too: flaws are known that let whoever knows one write objects. A certificate that ends
    within a month is made anew: start the stack again then.
    """
    user = once(folder / "user", lambda: secrets.token_hex(10))
    password = once(folder / "password", lambda: secrets.token_hex(24))
    write_server_certificate(folder, (name, *HOSTS))
    once(folder / "ini", lambda: credentials(user, password, f"https://{name}:9000", f"{IN_CONTAINERS}/{name}.crt"))


def credentials(user: str, password: str, endpoint: str, bundle: str) -> str:
    """In the AWS CLI's form."""
    return (
        f"[default]\naws_access_key_id = {user}\naws_secret_access_key = {password}\n"
        f"region = us-east-1\nendpoint_url = {endpoint}\nca_bundle = {bundle}\n"
    )


def host(folder: Path, shown_as: Path, url: str, told: argparse.Namespace) -> None:
    """What the host's own producers and tools need: endpoints.json, and the durable store as seen from there."""
    here, name = folder / "host", STORES[0]
    here.mkdir(exist_ok=True)
    user, password = ((folder / name / what).read_text() for what in ("user", "password"))
    fresh = here / ".new"
    fresh.write_text(credentials(user, password, f"https://127.0.0.1:{told.minio_port}", f"{shown_as}/{name}/ca.crt"))
    fresh.rename(here / f"{name}.ini")
    Endpoints(
        broker_url=url,
        result_backend=url,
        transport_options=TRANSPORT_OPTIONS,
        flower_url=f"http://127.0.0.1:{told.flower_port}",
        key_file=f"{shown_as}/keys.json",
        store=f"s3://yard?credentials={shown_as}/host/{name}.ini",
        scratch=told.scratch,
    ).save(here)


if __name__ == "__main__":
    main()
