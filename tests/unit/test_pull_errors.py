"""What a registry's refusal means: the image is wrong, or another time may be well."""

from __future__ import annotations

import pytest

from batchyard.broker.errors import DiskFull, ImageError, ImageUnavailable
from batchyard.worker.engine import docker


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('Get "https://r/v2/": net/http: TLS handshake timeout', ImageUnavailable),
        ('Get "https://r/v2/": context deadline exceeded', ImageUnavailable),
        ("dial tcp 10.0.0.1:443: i/o timeout", ImageUnavailable),
        ("dial tcp 127.0.0.1:1: connect: connection refused", ImageUnavailable),
        ("read tcp: connection reset by peer", ImageUnavailable),
        ("unexpected EOF", ImageUnavailable),
        ("toomanyrequests: You have reached your pull rate limit", ImageUnavailable),
        ("received unexpected HTTP status: 503 Service Unavailable", ImageUnavailable),
        ("lookup r: Temporary failure in name resolution", ImageUnavailable),
        ("write /var/lib/docker/tmp/x: no space left on device", DiskFull),
        ("manifest for busybox:none not found: manifest unknown", ImageError),
        ("pull access denied for x, repository does not exist or may require 'docker login'", ImageError),
        ("dial tcp: lookup nosuch.example: no such host", ImageError),
        ("invalid reference format", ImageError),
        ("received unexpected HTTP status: 404 Not Found", ImageError),
    ],
)
def test_a_refused_pull_is_told_apart_from_one_that_may_go_well_later(said: str, kind: type[Exception]) -> None:
    assert type(docker._image_error("i", said)) is kind
