"""An endpoint that answers, but not as an S3 does, is a store that is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from batchyard.broker.errors import StoreUnavailable
from batchyard.cache.stores.access import S3Access
from batchyard.cache.stores.s3 import S3Store


class Page(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"<p>Welcome<br>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3Store]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        file = tmp_path / "credentials"
        keys = "aws_access_key_id = id\naws_secret_access_key = secret\n"
        file.write_text(f"[default]\n{keys}endpoint_url = http://127.0.0.1:{server.server_port}\n")
        yield S3Store(S3Access.of_file(file), "bucket")
        server.shutdown()
        thread.join()


def test_a_page_instead_of_an_answer_is_a_store_that_is_away(store: S3Store) -> None:
    with pytest.raises(StoreUnavailable, match="is it an S3"):
        store.stat("a" * 64)
    with pytest.raises(StoreUnavailable, match="does not answer as S3 does"):
        list(store.names())
