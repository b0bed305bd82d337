"""URIs that a job may name: what is taken, what is refused and in which words, and what is shown of them."""

from __future__ import annotations

import pytest

from batchyard.broker.uri import S3Uri, check_input, parse_https, parse_s3, shown, without_secrets


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/key",
        "s3://bucket/",
        "s3://a.b-c.d1/dir/",
        "s3://bucket/with blank/ünï%20code+=&,",
        "s3://bucket/a//b",
        "https://host/",
        "https://host.example:8443/a/b?X-Amz-Signature=abc&b=%20",
        "https://[2606:4700::1111]/x",
        "https://1.1.1.1/x",
        "file:///data/a%20b",
        "file://localhost/data",
    ],
)
def test_these_can_be_inputs(uri: str) -> None:
    check_input(uri)


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("ftp://host/x", "s3://BUCKET/KEY"),
        ("HTTPS://host/x", "s3://BUCKET/KEY"),
        ("relative", "s3://BUCKET/KEY"),
        ("", "s3://BUCKET/KEY"),
        ("http://host/x", "use https://"),
        ("https://user:password@host/x", "user or password"),
        ("https://user@host/x", "user or password"),
        ("https://host/x#part", '"#"'),
        ("https:///x", "needs a host"),
        ("https://", "needs a host"),
        ("https://host:/x", "port"),
        ("https://host:0/x", "port"),
        ("https://host:65536/x", "port"),
        ("https://host:443x/x", "port"),
        ("https://-host/x", "needs a host"),
        ("https://ho%73t/x", "needs a host"),
        ("https://host\\@other/x", "\\"),
        ("https://hôst/x", "ASCII"),
        ("https://host/a b", "blanks"),
        ("https://host/a\r\nHost: b", "control characters"),
        ("https://ho\tst/a", "control characters"),
        ("https://[::1/x", "cannot be read|needs a host"),
        ("https://host/" + "x" * 9000, "at most 8192"),
        ("s3://bucket", "with a"),
        ("s3:///key", "bucket"),
        ("s3://bu/key", "bucket"),
        ("s3://Bucket/key", "bucket"),
        ("s3://bucket.-x/key", "bucket"),
        ("s3://bucket..x/key", "bucket"),
        ("s3://192.168.1.1/key", "address"),
        ("s3://user:pw@bucket/key", "bucket"),
        ("s3://bucket:443/key", "bucket"),
        ("s3://bucket\n/key", "control characters"),
        ("s3://bucket/key?versionId=1", '"?"'),
        ("s3://bucket/key#1", '"#"'),
        ("s3://bucket//key", "begin with"),
        ("s3://bucket/a/../b", '".."'),
        ("s3://bucket/./b", '"."'),
        ("s3://bucket/..", '".."'),
        ("s3://bucket/a\x1b[2J", "control characters"),
        ("s3://bucket/" + "ü" * 600, "at most 1024 bytes"),
        ("file://host/y", "file:///PATH"),
        ("file:relative", "absolute"),
        ("file:///a%00b", "absolute"),
        ("file:///a?b", "file:///PATH"),
    ],
)
def test_these_cannot_be_inputs(uri: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule.replace("\\", "\\\\")):
        check_input(uri)


def test_a_key_is_taken_as_it_stands() -> None:
    assert parse_s3("s3://bucket/a%20b/c+d") == S3Uri(bucket="bucket", key="a%20b/c+d")
    assert [parse_s3(uri).is_directory for uri in ("s3://bucket/", "s3://bucket/a/", "s3://bucket/a")] == [
        True,
        True,
        False,
    ]
    assert str(parse_s3("s3://bucket/a/")) == "s3://bucket/a/"


def test_the_host_that_is_checked_is_the_host_that_is_asked() -> None:
    parts = parse_https("https://Host.example:8443/a?b")
    assert (parts.hostname, parts.port, parts.path, parts.query) == ("host.example", 8443, "/a", "b")


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("https://host/a?X-Amz-Signature=secret", "https://host/a?…"),
        ("https://user:secret@host/a", "https://host/a"),
        ("https://host/a#secret", "https://host/a"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("no uri", "no uri"),
    ],
)
def test_what_is_shown_of_a_uri_has_no_secret(uri: str, text: str) -> None:
    assert shown(uri) == text


def test_what_broke_a_rule_is_shown_without_secrets() -> None:
    value = {"uri": "https://u:sec/ret@host/a?secret", "credentials": "secret", "more": ["ftp://a:secret@b"]}
    assert "sec" not in repr(without_secrets(value))
    assert without_secrets("plain?text") == "plain?text"
