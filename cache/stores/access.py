"""How an S3 is reached: endpoint, keys and trust, from a file in the AWS CLI's format or from AWS_* variables.

    [default]
    aws_access_key_id = …
    aws_secret_access_key = …
    region = us-east-1
    endpoint_url = https://127.0.0.1:9000     # left out: Amazon's
    ca_bundle = /path/ca.crt                  # left out: the system's

The names are those of the AWS CLI (https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html).
"""

from __future__ import annotations

import configparser
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import certifi
import urllib3

from batchyard.broker.errors import InvalidConfig

if TYPE_CHECKING:
    from minio import Minio

DEFAULT_REGION = "us-east-1"
_CONNECT_S, _READ_S = 5.0, 30.0
_MOST_CONNECTIONS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """Keys of None: unsigned requests, for what is public. source: where this was read, for messages."""

    source: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str = DEFAULT_REGION
    endpoint_url: str | None = None
    ca_bundle: str | None = None

    @classmethod
    def of_file(cls, path: Path, profile: str = "default") -> S3Access:
        """Raises InvalidConfig, which shows no value of the file."""
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidConfig(f'the credentials file "{path}" cannot be read: {why}') from None
        except configparser.Error:
            raise InvalidConfig(
                f'"{path}" is no credentials file: write [{profile}] and lines of NAME = VALUE'
            ) from None
        for section in (profile, f"profile {profile}"):
            if parser.has_section(section):
                return cls._of(dict(parser.items(section)), f"{path} [{section}]")
        raise InvalidConfig(f'"{path}" has no section [{profile}]; it has {", ".join(parser.sections()) or "none"}')

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> S3Access:
        """From AWS_ACCESS_KEY_ID and so on. Raises InvalidConfig."""
        names = {
            "aws_access_key_id": "AWS_ACCESS_KEY_ID",
            "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
            "aws_session_token": "AWS_SESSION_TOKEN",
            "region": "AWS_REGION",
            "endpoint_url": "AWS_ENDPOINT_URL",
            "ca_bundle": "AWS_CA_BUNDLE",
        }
        found = {name: environ[variable] for name, variable in names.items() if environ.get(variable)}
        return cls._of(found, "the environment (AWS_…)")

    @classmethod
    def _of(cls, values: Mapping[str, str], source: str) -> S3Access:
        access, secret = values.get("aws_access_key_id"), values.get("aws_secret_access_key")
        if (access is None) != (secret is None):
            lacking = "aws_secret_access_key" if secret is None else "aws_access_key_id"
            raise InvalidConfig(f"{source} has no {lacking}; give both keys, or none for what is public")
        endpoint = values.get("endpoint_url")
        if endpoint is not None:
            parts = urlsplit(endpoint)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
                raise InvalidConfig(f"{source}: endpoint_url must be https://HOST[:PORT]")
            if parts.username or parts.password:
                raise InvalidConfig(f"{source}: endpoint_url must not hold a password; write it as aws_… keys")
        bundle = values.get("ca_bundle")
        if bundle is not None and not Path(bundle).is_file():
            raise InvalidConfig(f'{source}: ca_bundle "{bundle}" is not there')
        return cls(
            source=source,
            access_key=access,
            secret_key=secret,
            session_token=values.get("aws_session_token"),
            region=values.get("region", DEFAULT_REGION),
            endpoint_url=endpoint,
            ca_bundle=bundle,
        )

    def pool(self, *, context: ssl.SSLContext | None = None) -> urllib3.PoolManager:
        """Connections that trust this access's authority, by the context if one is given. Nothing is repeated here:
        bodies can be sent only once.
        """
        trust: dict[str, Any] = {"ca_certs": self.authorities} if context is None else {"ssl_context": context}
        return urllib3.PoolManager(
            **trust,
            cert_reqs="CERT_REQUIRED",
            maxsize=_MOST_CONNECTIONS,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
            retries=False,
            blocksize=1 << 16,
        )

    @property
    def authorities(self) -> str:
        """The file of those that are trusted."""
        return self.ca_bundle or certifi.where()

    def client(self, pool: urllib3.PoolManager | None = None) -> Minio:
        """The region is always said, else the SDK asks the server for each bucket's."""
        from minio import Minio  # takes a while, and most processes reach no S3

        endpoint = self.endpoint_url or f"https://s3.{self.region}.amazonaws.com"
        parts = urlsplit(endpoint)
        return Minio(
            parts.netloc,
            access_key=self.access_key,
            secret_key=self.secret_key,
            session_token=self.session_token,
            secure=parts.scheme == "https",
            region=self.region,
            http_client=pool or self.pool(),
        )
