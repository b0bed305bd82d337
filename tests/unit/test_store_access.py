"""How a store is named and reached, as far as no server is needed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from batchyard.broker.errors import InvalidConfig, NotFound
from batchyard.cache.stores.access import S3Access
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.place import store_at
from batchyard.cache.stores.s3 import S3Store

SECRET = "a-secret-that-is-shown-nowhere"
FILE = f"""\
[default]
aws_access_key_id = id
aws_secret_access_key = {SECRET}
endpoint_url = https://127.0.0.1:9000

[profile other]
aws_access_key_id = other
aws_secret_access_key = {SECRET}
aws_session_token = token
region = eu-central-1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    path.write_text(FILE)
    return path


def test_a_file_in_the_aws_clis_format_is_read_by_profile(file: Path) -> None:
    access, other = S3Access.of_file(file), S3Access.of_file(file, "other")
    assert (access.access_key, access.secret_key, access.region) == ("id", SECRET, "us-east-1")
    assert access.endpoint_url == "https://127.0.0.1:9000"
    assert (other.access_key, other.session_token, other.region) == ("other", "token", "eu-central-1")
    assert other.endpoint_url is None


def test_secrets_are_in_no_repr_and_no_message(file: Path) -> None:
    assert SECRET not in repr(S3Access.of_file(file))
    file.write_text(FILE.replace("[default]\n", ""))
    with pytest.raises(InvalidConfig) as raised:
        S3Access.of_file(file)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[other]\nregion = x\n", r"has no section \[default\]; it has other"),
        ("[default]\naws_access_key_id = id\n", "has no aws_secret_access_key; give both keys"),
        ("[default]\naws_secret_access_key = x\n", "has no aws_access_key_id; give both keys"),
        ("[default]\nendpoint_url = 127.0.0.1:9000\n", r"endpoint_url must be https://HOST\[:PORT\]"),
        ("[default]\nendpoint_url = https://host/path\n", r"endpoint_url must be https://HOST\[:PORT\]"),
        ("[default]\nendpoint_url = https://a:b@host\n", "must not hold a password"),
        ("[default]\nca_bundle = /nosuch\n", 'ca_bundle "/nosuch" is not there'),
        ("no section", "is no credentials file"),
    ],
)
def test_a_file_that_is_wrong_says_how(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        S3Access.of_file(file)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read: No such file"):
        S3Access.of_file(tmp_path / "nosuch")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match="not UTF-8"):
        S3Access.of_file(tmp_path / "binary")


def test_the_environment_is_read_under_amazons_names() -> None:
    access = S3Access.of_environment(
        {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": "https://h", "AWS_REGION": ""}
    )
    assert (access.access_key, access.secret_key, access.endpoint_url) == ("id", SECRET, "https://h")
    assert access.region == "us-east-1"
    assert S3Access.of_environment({}).access_key is None


def test_a_spec_is_a_folder_or_a_bucket(tmp_path: Path, file: Path) -> None:
    assert isinstance(store_at(str(tmp_path / "store"), create=True), DirectoryStore)
    assert isinstance(store_at(str(tmp_path / "store")), DirectoryStore)
    assert isinstance(store_at(f"s3://bucket/a/b?credentials={file}&profile=other"), S3Store)


def test_a_path_that_a_url_would_take_apart_is_quoted(tmp_path: Path) -> None:
    odd = tmp_path / "a & b?#%+"
    odd.write_text(FILE)
    assert isinstance(store_at(f"s3://bucket?credentials={quote(str(odd))}"), S3Store)


def test_a_bundle_without_a_certificate_is_named(tmp_path: Path, file: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    file.write_text(FILE.replace("[profile other]", f"ca_bundle = {tmp_path / 'ca.crt'}\n[profile other]"))
    with pytest.raises(InvalidConfig, match=r"ca_bundle .*is no file of certificates"):
        store_at(f"s3://bucket?credentials={file}")


def test_a_folder_that_is_no_store_is_not_made_for_a_reader(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r'there is no blob store at ".*nosuch"; correct --store'):
        store_at(str(tmp_path / "nosuch"))
    assert not (tmp_path / "nosuch").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("http://host/bucket", "is no store; give a folder, or s3://"),
        ("s3://key:secret@bucket", "keys and endpoint stand in FILE"),
        ("s3://bucket:9000", "keys and endpoint stand in FILE"),
        ("s3:///prefix", "a store is s3://BUCKET"),
        ("s3://bucket#x", "a store is s3://BUCKET"),
        ("s3://bucket?credential=x", 'option "credential" is not known; there are credentials, profile'),
        ("s3://bucket:port", "a store is s3://BUCKET"),
        ("s3://[bucket", "a store is s3://BUCKET"),
        ("s3://b?credentials={file}", "cannot be a bucket"),
        ("s3://bucket?credentials={file}&profile=third", r"has no section \[third\]"),
    ],
)
def test_a_spec_that_is_wrong_says_how(file: Path, spec: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message) as raised:
        store_at(spec.format(file=file))
    assert SECRET not in str(raised.value)
