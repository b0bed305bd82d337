"""URIs that a job may name: where an input comes from and where an output goes. Pure.

    s3://BUCKET/KEY       an object; the key is taken as it stands, nothing in it is decoded
    s3://BUCKET/PREFIX/   everything below the prefix, as a directory (s3://BUCKET/: the whole bucket)
    https://HOST/PATH     what a GET gives
    file:///PATH          a file or directory of the node

Of every URI there is one reading: what could be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

MOST_CHARACTERS = 8192
MOST_KEY_BYTES = 1024  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
_BUCKET = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:[.-][a-z0-9]+|-+[a-z0-9]+)*")
_ADDRESS = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]")
_UNPRINTED = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]")
_FORMS = "s3://BUCKET/KEY, s3://BUCKET/PREFIX/, https://HOST/PATH or file:///PATH of the node"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Uri:
    """A place in a bucket. key: `a/b` for an object, `a/b/` or "" for all that lies below."""

    bucket: str
    key: str

    @property
    def is_directory(self) -> bool:
        return self.key == "" or self.key.endswith("/")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def check_input(uri: str) -> None:
    """ValueError, with the rule that it breaks: a job cannot have this as an input."""
    scheme, parts = _scheme(uri)
    if scheme == "s3":
        parse_s3(uri)
    elif scheme == "https":
        parse_https(uri)
    elif scheme == "http":
        raise ValueError("http:// is not taken, since anybody on the way could change the bytes; use https://")
    elif parts.scheme == "file":
        _check_file(parts)
    else:
        raise ValueError(f"an input is a digest sha256:<64 hex>, {_FORMS}")


def parse_s3(uri: str) -> S3Uri:
    """The place that a `s3://…` names. ValueError, with the rule that it breaks."""
    scheme, _ = _scheme(uri)
    bucket, slash, key = uri.removeprefix("s3://").partition("/")
    if scheme != "s3" or not slash:
        raise ValueError('write s3://BUCKET/KEY, or with a "/" at its end for a directory')
    if "?" in key or "#" in key:
        raise ValueError('an s3:// URI must not hold "?" or "#"')
    if not _BUCKET.fullmatch(bucket) or _ADDRESS.fullmatch(bucket):
        raise ValueError("a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens, and is no address")
    if len(key.encode()) > MOST_KEY_BYTES:
        raise ValueError(f"a key has at most {MOST_KEY_BYTES} bytes")
    if key.startswith("/") or {".", ".."} & set(key.split("/")):
        raise ValueError('a key must not begin with "/", and has no "." or ".." between its slashes')
    return S3Uri(bucket=bucket, key=key)


def parse_https(uri: str) -> SplitResult:
    """The parts of a `https://…`. ValueError, with the rule that it breaks."""
    scheme, parts = _scheme(uri)
    if scheme != "https":
        raise ValueError("must be https://HOST/PATH")
    if not uri.isascii() or "\\" in uri:
        raise ValueError('must be plain ASCII without "\\"; write other characters as %XX, and a host as xn--…')
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password: everybody who sees the job would see them")
    if parts.fragment or "#" in uri:
        raise ValueError('must not hold a "#"')
    host, colon, port = parts.netloc.rpartition(":") if not parts.netloc.endswith("]") else (parts.netloc, "", "")
    if not _HOST.fullmatch(host if colon else parts.netloc):
        raise ValueError("needs a host: https://HOST/PATH")
    if colon and not (port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError("a port is a number from 1 to 65535")
    return parts


def shown(uri: str) -> str:
    """The URI for messages, logs and records: without query, which may be a signature, and without user."""
    text = uri.partition("?")[0].partition("#")[0]
    scheme, colon, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    _, at, host = authority.rpartition("@")
    return f"{scheme}{colon}{host if at else authority}{slash}{path}"[:300] + ("?…" if "?" in uri else "")


def without_secrets(value: object) -> object:
    """Something that broke a rule, for a message: what looks like a URI is cut down to where it leads, and what may be
    a key in the place of its name is left out.
    """
    if isinstance(value, str):
        return re.sub(r"//.*@", "//", shown(value), flags=re.DOTALL) if "://" in value else value
    if isinstance(value, Mapping):
        return {name: "…" if name == "credentials" else without_secrets(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part) for part in value]
    return value


def _scheme(uri: str) -> tuple[str, SplitResult]:
    if len(uri) > MOST_CHARACTERS:
        raise ValueError(f"a URI has at most {MOST_CHARACTERS} characters")
    scheme = uri.partition("://")[0]
    # a key may have blanks and letters of any script, but nothing that a log or a terminal would act on
    if _UNPRINTED.search(uri.replace(" ", "") if scheme == "s3" else uri):
        raise ValueError("a URI must not hold control characters or blanks; write them as %XX")
    try:
        return scheme, urlsplit(uri)
    except ValueError:
        raise ValueError(f"cannot be read as a URI; write {_FORMS}") from None


def _check_file(parts: SplitResult) -> None:
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
        raise ValueError(f"an input is a digest sha256:<64 hex>, {_FORMS}")
    path = unquote(parts.path)
    if not path.startswith("/") or "\0" in path:
        raise ValueError("file:// needs an absolute path")
