"""A MinIO for `batchyard up` alone: loopback, TLS by an authority of its own, random keys in files of mode 0600.

<folder>/root          its administrator's keys, JSON; used here only
<folder>/credentials   the yard's keys, which may do anything with one bucket and nothing else
<folder>/certs         ca.crt, public.crt, private.key
<folder>/data          what it keeps, unless told otherwise
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import urllib3
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException

from batchyard.broker.certificate import write_server_certificate
from batchyard.broker.errors import InvalidConfig

from .redis_server import write_private
from .supervise import DidNotStart, Part

BUCKET = "batchyard"
READY = r"^API: https://"
_POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": ["s3:*"],
            "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"],
        }
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MinioServer:
    """One that is to run on `port`, from files that are there. spec: the store's, for --store."""

    port: int
    data: Path
    folder: Path
    root: Mapping[str, str]
    key: Mapping[str, str]

    @classmethod
    def prepare(cls, folder: Path, data: Path, port: int) -> MinioServer:
        """Writes what it needs. Keys, once made for a folder, stay. Raises InvalidConfig."""
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            data.mkdir(parents=True, mode=0o700, exist_ok=True)
        except OSError as error:
            raise InvalidConfig(f'"{data}" cannot be made: {error.strerror}; give another --minio-data') from None
        authority = write_server_certificate(folder / "certs")
        root = _kept(folder / "root")
        made = cls(port=port, data=data, folder=folder, root=root["root"], key=root["yard"])
        write_private(
            made.credentials,
            "# Written by `batchyard up` at each start.\n[default]\n"
            f"aws_access_key_id = {made.key['user']}\naws_secret_access_key = {made.key['password']}\n"
            f"region = us-east-1\nendpoint_url = https://127.0.0.1:{port}\nca_bundle = {authority}\n",
        )
        return made

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials"

    @property
    def spec(self) -> str:
        return f"s3://{BUCKET}?credentials={quote(str(self.credentials))}"

    def part(self, binary: Path, environ: Mapping[str, str]) -> Part:
        """The process; the user's own MINIO_… settings are not for it."""
        mine = {
            **{name: value for name, value in environ.items() if not name.startswith(("MINIO_", "_MINIO_"))},
            "MINIO_ROOT_USER": self.root["user"],
            "MINIO_ROOT_PASSWORD": self.root["password"],
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CALLHOME_ENABLE": "off",
        }
        words = ("--certs-dir", str(self.folder / "certs"), "--address", f"127.0.0.1:{self.port}", str(self.data))
        return Part(name="minio", argv=(str(binary), "server", *words), ready=READY, environ=mine)

    def admit_yard(self) -> None:
        """Makes the yard's keys known to the server, which must be up. May be done again. Raises DidNotStart."""
        pool = urllib3.PoolManager(
            ca_certs=str(self.folder / "certs" / "ca.crt"), timeout=10.0, retries=urllib3.Retry(5, backoff_factor=0.2)
        )
        provider = StaticProvider(self.root["user"], self.root["password"])
        admin = MinioAdmin(
            endpoint=f"127.0.0.1:{self.port}", credentials=provider, region="us-east-1", http_client=pool
        )
        try:
            admin.policy_add(BUCKET, policy=_POLICY)
            admin.user_add(self.key["user"], self.key["password"])
            admin.policy_set(BUCKET, user=self.key["user"])
        except (MinioException, MinioAdminException, urllib3.exceptions.HTTPError) as error:
            raise DidNotStart(f"minio does not take the yard's keys: {str(error)[:300]}") from None
        finally:
            pool.clear()


def earlier_port(folder: Path) -> int | None:
    """The port that an earlier start in this folder took."""
    parser = ConfigParser(interpolation=None)
    try:
        parser.read_string((folder / "credentials").read_text())
        return urlsplit(parser["default"]["endpoint_url"]).port
    except (OSError, ValueError, KeyError, ConfigParserError):
        return None


def _kept(path: Path) -> dict[str, dict[str, str]]:
    try:
        found: dict[str, dict[str, str]] = json.loads(path.read_text())
        return found
    except FileNotFoundError:
        pass
    except ValueError:
        raise InvalidConfig(f'"{path}" is not JSON; restore it, or remove it to have new keys made') from None
    keys = {name: {"user": secrets.token_hex(10), "password": secrets.token_hex(20)} for name in ("root", "yard")}
    write_private(path, json.dumps(keys))
    return keys
