"""A webhook told of events, by real HTTPS on a real Redis: signed, in order, each at least once, whoever delivers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import functions, keys
from batchyard.broker.cli import run
from batchyard.broker.config import Config, parse
from batchyard.broker.delivery import Delivery, find_secret
from batchyard.broker.errors import InvalidConfig
from batchyard.broker.store import Incoming, Yard
from batchyard.broker.webhook import key_of, signature
from yardtest.wait import until
from yardtest.website import Page, Website

pytestmark = pytest.mark.system
KEY = b"a key of more than sixteen bytes"
QUEUES = {"queues": {"cpu": {"environments": ["here"]}}, "environments": {"here": {"vcpus": 8, "memory_mib": 4096}}}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    folder = tmp_path / "site"
    folder.mkdir()
    with Website(folder) as made:
        monkeypatch.setenv("SSL_CERT_FILE", str(made.ca))
        made.pages["/hook"] = Page()
        yield made


def config_of(url: str | None, **more: Any) -> Config:
    hook = {"webhook": {"url": url, "secret": "HOOK", "timeout_s": 30, **more}} if url else {}
    return parse({**QUEUES, "events": hook}, "test")


@contextmanager
def delivering(yard: Yard, config: Callable[[], Config], backoff_s: Callable[[int], float] = lambda n: 0.01) -> Any:
    """A controller's thread; what was there before is not told, so it begins when that has its cursor."""
    made = Delivery(yard, config, lambda name: KEY, backoff_s=backoff_s)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    if config().events.webhook:
        until(lambda: yard.redis.hexists(keys.WEBHOOK, "cursor"), "it has begun", timeout_s=10)
    try:
        yield made
    finally:
        made.stop()
        thread.join(10)
        assert not thread.is_alive()


def send(yard: Yard, *ids: str) -> None:
    for job_id in ids:
        one = Incoming(list_key="cpu", raw=job_id.encode(), kind="job", id=job_id, queue="cpu", vcpus=1,
                       memory_mib=64, disk_gib=1, document=b"x")  # fmt: skip
        yard.redis.lpush("cpu", one.raw)
        assert yard.intake([one]) == 1


def noted(yard: Yard) -> str:
    """What went wrong last."""
    found: Any = yard.redis.hget(keys.WEBHOOK, "note")
    return (found or b"").decode()


def told(site: Website) -> list[str]:
    return [one["detail"]["jobId"] for body in list(site.posted) for one in json.loads(body)["data"]["events"]]


def verify(headers: dict[str, str], body: bytes) -> None:
    """As a receiver that knows nothing of ours does."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"


def test_events_come_signed_in_order_and_once_when_all_is_well(yard: Yard, site: Website) -> None:
    send(yard, "before")
    config = config_of(site.url("/hook?token=x"))
    with delivering(yard, lambda: config):
        ids = [f"j{n}" for n in range(250)]
        send(yard, *ids)
        until(lambda: len(told(site)) >= 250, "all came", timeout_s=20)
    assert told(site) == ids
    for (method, path, headers), body in zip(site.asked, site.posted, strict=True):
        assert (method, path, headers["content-type"]) == ("POST", "/hook?token=x", "application/json")
        verify(headers, body)
        message = json.loads(body)
        assert message["type"] == "batchyard.job_state_changes"
        assert message["data"]["dropped"] is False
        assert len(message["data"]["events"]) <= 100
        assert {one["source"] for one in message["data"]["events"]} == {"aws.batch"}
    assert len({headers["webhook-id"] for _, _, headers in site.asked}) == len(site.asked)


def test_a_receiver_that_is_in_trouble_gets_the_same_message_again_and_later_ones_after_it(
    yard: Yard, site: Website
) -> None:
    site.pages["/hook"] = Page(status=503)
    config = config_of(site.url("/hook"))
    with delivering(yard, lambda: config):
        send(yard, "a")
        until(lambda: len(site.posted) >= 3, "it tries again", timeout_s=10)
        send(yard, "b")
        assert "answered 503" in noted(yard)
        site.pages["/hook"] = Page()
        until(lambda: "b" in told(site), "the next one came", timeout_s=10)
    first = [h["webhook-id"] for _, _, h in site.asked if h["webhook-id"] == site.asked[0][2]["webhook-id"]]
    assert len(first) >= 4
    assert told(site)[-1] == "b"
    assert set(told(site)[:-1]) == {"a"}
    assert noted(yard) == ""


def _hang(handler: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(3)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (Page(status=302, headers={"Location": "/other"}), "redirects are not followed"),
        (Page(status=410), "answered 410"),
        (Page(act=_hang), "cannot be reached: ReadTimeoutError"),
        (None, "cannot be reached"),
    ],
    ids=["redirect", "gone", "silent", "no such port"],
)
def test_what_goes_wrong_is_noted_without_what_may_be_private(
    yard: Yard, site: Website, page: Page | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.pages["/hook"] = page or Page()
    url = site.url("/hook?token=private") if page else "https://localhost:1/hook?token=private"
    config = config_of(url, timeout_s=0.5)
    with delivering(yard, lambda: config):
        send(yard, "a")
        note = until(lambda: words if said in (words := noted(yard)) else "", f"a note says {said}", timeout_s=30)
        assert "private" not in note + caplog.text
        assert KEY.decode() not in repr(yard.redis.hgetall(keys.WEBHOOK)) + caplog.text
    assert "/other" not in [path for _, path, _ in site.asked]


def test_a_certificate_of_nobody_is_refused(yard: Yard, site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    config = config_of(site.url("/hook"))
    with delivering(yard, lambda: config):
        send(yard, "a")
        until(lambda: "SSLError" in noted(yard), "it is refused", timeout_s=10)
    assert site.posted == []


def test_of_several_that_deliver_one_does_and_another_goes_on_after_it(yard: Yard, site: Website) -> None:
    config = config_of(site.url("/hook"))
    with delivering(yard, lambda: config), delivering(Yard(yard.url, yard.ring), lambda: config):
        send(yard, *(f"a{n}" for n in range(30)))
        until(lambda: len(told(site)) >= 30, "all came", timeout_s=10)
    with delivering(Yard(yard.url, yard.ring), lambda: config):
        send(yard, "later")
        until(lambda: "later" in told(site), "it goes on", timeout_s=10)
    assert told(site) == [*(f"a{n}" for n in range(30)), "later"]


def test_what_was_not_delivered_by_one_that_died_is_delivered_by_the_next(yard: Yard, site: Website) -> None:
    config = config_of(site.url("/hook"))
    with delivering(yard, lambda: config):
        send(yard, "a")
        until(lambda: told(site) == ["a"], "it came", timeout_s=10)
        until(lambda: yard.redis.hget(keys.WEBHOOK, "at"), "and is known to have come", timeout_s=5)
    send(yard, "b", "c")  # nobody delivers
    with delivering(yard, lambda: config):
        until(lambda: told(site) == ["a", "b", "c"], "the rest came", timeout_s=10)


def test_where_the_stream_lost_events_the_next_message_says_so(
    yard: Yard, site: Website, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = functions.library()
    monkeypatch.setattr(functions, "library", lambda: text.replace("EVENTS = '100000'", "EVENTS = '100'"))
    yard.prepare()
    config = config_of(site.url("/hook"))
    with delivering(yard, lambda: config):
        send(yard, "a")
        until(lambda: yard.redis.hget(keys.WEBHOOK, "at"), "it came", timeout_s=10)
    send(yard, *(f"b{n}" for n in range(400)))
    with delivering(yard, lambda: config):
        until(lambda: "b399" in told(site), "the newest came", timeout_s=10)
    monkeypatch.undo()
    yard.prepare()
    assert [json.loads(body)["data"]["dropped"] for body in site.posted[:2]] == [False, True]
    assert not json.loads(site.posted[-1])["data"]["dropped"] or len(site.posted) == 2


def test_a_webhook_that_was_taken_away_and_comes_back_begins_anew(yard: Yard, site: Website) -> None:
    holds = [config_of(site.url("/hook"))]
    with delivering(yard, lambda: holds[0]):
        holds[0] = config_of(None)
        until(lambda: not yard.redis.exists(keys.WEBHOOK), "it is forgotten", timeout_s=10)
        send(yard, "unheard")
        holds[0] = config_of(site.url("/hook"))
        until(lambda: yard.redis.exists(keys.WEBHOOK), "it begins", timeout_s=10)
        send(yard, "heard")
        until(lambda: "heard" in told(site), "it came", timeout_s=10)
    assert told(site) == ["heard"]


def test_the_command_line_tells_how_far_it_has_come(
    yard: Yard, site: Website, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--broker", yard.url, "--key-file", str(key_file)]
    assert run(["events", "--webhook", *named]) == 0
    assert capsys.readouterr().out.startswith("no webhook is told of events")
    site.pages["/hook"] = Page(status=503)
    config = config_of(site.url("/hook"))
    with delivering(yard, lambda: config):
        send(yard, "a", "b")
        until(lambda: noted(yard), "it failed", timeout_s=10)
    assert run(["events", "--webhook", *named]) == 0
    out = capsys.readouterr().out
    assert "answered 503" in out
    assert run(["events", "--webhook", "--json", *named]) == 0
    told_ = json.loads(capsys.readouterr().out)
    assert (told_["waiting"], told_["failures"] > 0) == (2, True)


def test_a_controller_without_the_secret_that_its_file_names_does_not_start(
    yard: Yard, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "yard.yaml"
    file.write_text(json.dumps({**QUEUES, "events": {"webhook": {"url": "https://example.org/", "secret": "NOSUCH_"}}}))
    named = ["--broker", yard.url, "--key-file", str(key_file), "--secrets", str(tmp_path)]
    assert run(["controller", "--config", str(file), *named]) == 2
    assert 'secret "NOSUCH_" of events.webhook is not there' in capsys.readouterr().err
    assert not yard.redis.exists(keys.CONFIG)


def test_a_secret_is_a_file_or_a_variable_and_never_quoted(tmp_path: Path) -> None:
    (tmp_path / "HOOK").write_text("whsec_" + base64.b64encode(KEY).decode() + "\n")
    assert find_secret("HOOK", tmp_path, {"HOOK": "another one of some length"}) == KEY
    assert find_secret("OTHER", tmp_path, {"OTHER": KEY.decode()}) == KEY
    with pytest.raises(InvalidConfig, match=r'"NOSUCH".*no file of'):
        find_secret("NOSUCH", tmp_path, {})
    for bad in ("short", "whsec_!!!!", ""):
        with pytest.raises(InvalidConfig) as caught:
            key_of(bad, "HOOK")
        assert not bad or bad not in str(caught.value)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of https://github.com/standard-webhooks/standard-webhooks, its libraries' tests."""
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "x")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/x", "must be https://"),
        ("http://127.0.0.1/x", "allow_http"),
        ("https://user:pass1234@example.org/", "leave them out"),
        ("https://example.org/#x", "fragment"),
        ("https:///x", "https://HOST"),
        ("ftp://example.org/", "https://HOST"),
        ("https://example.org/a b", "blanks"),
        ("https://[::1/x", "url is none"),
        ("https://example.org:99999/x", "url is none"),
    ],
)
def test_a_url_that_is_none_or_not_safe_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=r"events\.webhook") as caught:
        config_of(url)
    assert said in str(caught.value)
    assert "pass1234" not in str(caught.value)


def test_http_is_for_this_machine_itself_when_it_is_allowed() -> None:
    hook = config_of("http://127.0.0.1:8080/x", allow_http=True).events.webhook
    assert hook is not None
    with pytest.raises(InvalidConfig, match="must be https://"):
        config_of("http://example.org/x", allow_http=True)
    with pytest.raises(InvalidConfig, match="no such field"):
        config_of("https://example.org/x", retries=3)
